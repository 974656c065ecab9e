"""Models on which other tools dropped tensors or deltas without a message: here, nothing is lost.

mergekit#696: linear attention and the vision tower of Qwen3.5's mixtures were missing from merges.
unsloth#6387 and unsloth-zoo#779: adapters of packed experts that are narrow (twice their inner size
is less than the hidden size) were not applied, because shapes were taken for transposed ones.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import peft
import pytest
import torch
import transformers
from hybrid_mixture import HIDDEN, HYBRID, INNER, TEXT
from safetensors.torch import load_file
from typer.testing import CliRunner

from fusion_core import run_fusion
from fusion_core.cli.app import app

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    State = dict[str, Tensor]

pytestmark = [pytest.mark.plugins, pytest.mark.filterwarnings("ignore")]


def save_noisy(model: Any, seed: int, path: Path) -> str:
    model = copy.deepcopy(model)
    draw = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.data += 0.02 * torch.randn(parameter.shape, generator=draw)
    model.save_pretrained(path)
    return str(path)


def test_linear_attention_and_vision_towers_of_a_mixture_are_merged(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = transformers.AutoModelForImageTextToText.from_config(HYBRID, dtype=torch.float32)
    paths = [save_noisy(model, seed, tmp_path / name) for seed, name in enumerate("xab")]
    states = [load_file(f"{path}/model.safetensors") for path in paths]
    for kind in ("linear_attn", "visual", ".experts.", "shared_expert", "self_attn"):
        assert any(kind in name for name in states[0]), kind
    run_fusion(
        algorithm={"name": "task-arithmetic", "scale": 0.5},
        model_pool={"base": paths[0], "models": dict(zip("ab", paths[1:], strict=True))},
        output=tmp_path / "out",
    )
    merged = load_file(tmp_path / "out" / "model.safetensors")
    base, *experts = states
    assert merged.keys() == base.keys()
    for name, values in merged.items():
        expected = base[name] + 0.5 * sum(expert[name] - base[name] for expert in experts)
        assert torch.allclose(values, expected, atol=1e-6), name
        assert not torch.equal(values, base[name]), name
    _, report = transformers.AutoModelForImageTextToText.from_pretrained(
        tmp_path / "out", output_loading_info=True
    )
    assert not any(report[problem] for problem in ("missing_keys", "unexpected_keys"))


@pytest.mark.parametrize("layout", ["separate", "packed"])
def test_every_delta_of_an_adapter_on_narrow_experts_is_applied(
    tmp_path: Path, layout: str
) -> None:
    assert 2 * INNER < HIDDEN
    torch.manual_seed(0)
    config = transformers.Qwen3MoeConfig(**TEXT, intermediate_size=INNER)
    model = transformers.Qwen3MoeForCausalLM(config)
    model.save_pretrained(tmp_path / "base", save_original_format=layout == "separate")
    targets = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
    adapted = peft.get_peft_model(
        copy.deepcopy(model), peft.LoraConfig(r=3, lora_alpha=6, target_parameters=targets)
    )
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.copy_(torch.randn_like(parameter) / 10)
    adapted.save_pretrained(tmp_path / "run" / "checkpoint-1")
    command = ["average", str(tmp_path / "run"), "--base", str(tmp_path / "base")]
    done = CliRunner().invoke(app, [*command, "-q", "-o", str(tmp_path / "out")])
    assert done.exit_code == 0, done.output
    merged = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out").state_dict()
    expected = adapted.merge_and_unload().state_dict()
    before = model.state_dict()
    changed = [name for name in expected if not torch.equal(expected[name], before[name])]
    assert len(changed) == 2 * len(targets)  # in both layers
    for name in changed:
        assert all(not torch.equal(*pair) for pair in zip(merged[name], before[name], strict=True))
    for name, values in expected.items():
        assert torch.allclose(merged[name], values, atol=1e-6), name
