"""A mixture holds its experts' values, loads in transformers, and computes what it should."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import torch
from dense_models import CONFIGS, WORDS, make_model, mix
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM

from fusion_core.weights import CheckpointSource
from fusion_moe.mixture_config import mixture_config
from fusion_moe.targets import TARGETS

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from transformers import PreTrainedModel

#: Dense models with each target that holds them, and factors with which copies of one expert sum
#: to the expert itself. A gate without prompts lets half of the shared expert through.
CASES: dict[tuple[str, str], dict[str, float]] = {
    ("llama", "mixtral"): {},
    ("mistral", "mixtral"): {},
    ("qwen3", "qwen3_moe"): {},
    ("llama", "qwen2_moe"): {"a": 0.5, "b": 0.5},
    ("qwen2", "qwen2_moe"): {"a": 0.5, "b": 0.5},
    ("llama", "glm4_moe"): {"a": 0.75, "b": 0.75, "c": 0.25},
    ("qwen2", "glm4_moe"): {"a": 0.75, "b": 0.75, "c": 0.25},
    ("qwen3", "glm4_moe"): {"a": 0.75, "b": 0.75, "c": 0.25},
}
LAYOUTS = ("separate", "packed")


def texts(count: int = 3, length: int = 12) -> torch.Tensor:
    """Return token ids, longer than Mistral's sliding window here."""
    draw = torch.Generator().manual_seed(5)
    return torch.randint(len(WORDS), (count, length), generator=draw)


def load(path: Path) -> PreTrainedModel:
    """Load a mixture; fail if transformers misses a tensor, or ignores one."""
    model, info = AutoModelForCausalLM.from_pretrained(path, output_loading_info=True)
    assert {name for name, problems in info.items() if problems} == set()
    return model.eval()


@torch.no_grad()
def logits(model: PreTrainedModel) -> torch.Tensor:
    return model(texts()).logits


@pytest.mark.sampled(4)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("kind", "target"), CASES)
def test_copies_of_one_model_compute_what_it_computes(
    kind: str, target: str, layout: str, save: Callable[..., Any], tmp_path: Path
) -> None:
    scale = CASES[kind, target]
    pool = save(kind, [0, 0, *([0] if scale else [])])
    options = {"shared_expert": "c", "output_scale": scale} if scale else {}
    mix(pool, tmp_path / "out", target=target, layout=layout, **options)
    mixture = load(tmp_path / "out")
    assert mixture.config.model_type == target
    expected = logits(make_model(kind, 0))
    torch.testing.assert_close(logits(mixture), expected, rtol=0, atol=2e-6 * expected.abs().max())
    new = mixture.generate(texts(1), max_new_tokens=4, do_sample=False)
    assert new.shape[1] > texts(1).shape[1]
    mixture.save_pretrained(tmp_path / "again", save_original_format=layout == "separate")
    ours, theirs = (CheckpointSource(tmp_path / name).infos for name in ("out", "again"))
    assert ours == theirs


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("kind", "target"), [("mistral", "mixtral"), ("qwen2", "qwen2_moe")])
def test_experts_are_blocks_of_their_models_and_all_else_is_the_base(
    kind: str, target: str, layout: str, save: Callable[..., Any], tmp_path: Path
) -> None:
    pool = save(kind, [1, 2, 3])
    options = {"shared_expert": "b"} if target == "qwen2_moe" else {}
    mix(pool, tmp_path / "out", layout=layout, output_scale={"c": 0.25}, **options)
    mixture, base = load(tmp_path / "out"), make_model(kind, 0)
    chosen = {"a": 1, "c": 3} if options else {"a": 1, "b": 2, "c": 3}
    state = mixture.state_dict()
    for name, expected in base.state_dict().items():
        if ".mlp." not in name:
            assert torch.equal(state.pop(name), expected), name
    for layer in range(2):
        block = f"model.layers.{layer}.mlp"
        gate_up, down = (state.pop(f"{block}.experts.{n}_proj") for n in ("gate_up", "down"))
        assert len(gate_up) == len(down) == len(chosen)
        assert state.pop(f"{block}.gate.weight").std() > 0.5
        for number, (name, seed) in enumerate(chosen.items()):
            mlp = make_model(kind, seed).get_submodule(block)
            assert torch.equal(
                gate_up[number], torch.cat([mlp.gate_proj.weight, mlp.up_proj.weight])
            )
            factor = 0.25 if name == "c" else 1
            assert torch.equal(down[number], factor * mlp.down_proj.weight)
        if options:
            shared = make_model(kind, 2).get_submodule(block)
            for part, values in shared.state_dict().items():
                assert torch.equal(state.pop(f"{block}.shared_expert.{part}"), values)
            assert not state.pop(f"{block}.shared_expert_gate.weight").any()
    assert state == {}


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_the_output_has_the_dtype_that_is_asked_for(
    dtype: str, save: Callable[..., Any], tmp_path: Path
) -> None:
    mix(save("llama"), {"path": str(tmp_path / "out"), "dtype": dtype}, layout="packed")
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {getattr(torch, dtype)}
    assert load(tmp_path / "out").dtype is getattr(torch, dtype)


def test_equal_recipes_give_equal_bytes_and_each_seed_its_own_routers(
    save: Callable[..., Any], tmp_path: Path
) -> None:
    pool = save("qwen3")
    for name, seed in (("one", 0), ("two", 0), ("other", 1)):
        mix(pool, tmp_path / name, seed=seed)
    files = [(tmp_path / n / "model.safetensors").read_bytes() for n in ("one", "two", "other")]
    assert files[0] == files[1]
    one, other = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "other"))
    changed = {name for name in one if not torch.equal(one[name], other[name])}
    assert changed == {f"model.layers.{layer}.mlp.gate.weight" for layer in range(2)}


#: The attributes in which a mixture's configuration may differ from its base's.
CHOSEN = {"architectures", "model_type", "rope_parameters", "transformers_version", "head_dim"}


@pytest.mark.parametrize(("kind", "target"), CASES)
@pytest.mark.parametrize("written", ["all", "few", "old"])
def test_a_configuration_means_the_same_in_the_mixture(
    kind: str, target: str, written: str
) -> None:
    """Values that a file leaves out are those of the dense class, not those of the mixture's."""
    fields: dict[str, Any] = {"model_type": kind}
    if written == "all":
        fields = {**CONFIGS[kind].to_dict(), "sliding_window": None}
    elif kind == "mistral":
        fields |= {"sliding_window": None}
    if written == "old":
        fields |= {"rope_theta": 5000.0, "num_hidden_layers": 3, "head_dim": 32}
    dense = AutoConfig.for_model(**fields)
    made = mixture_config(
        fields, TARGETS[target], experts=2, experts_per_token=2, attention=frozenset()
    )
    mixture = AutoConfig.for_model(**json.loads(json.dumps(made)))
    shared = dense.to_dict().keys() & mixture.to_dict().keys() - CHOSEN
    shared -= {"sliding_window", "max_window_layers", "use_sliding_window", "attention_bias"}
    assert {"vocab_size", "rms_norm_eps", "max_position_embeddings", "eos_token_id"} <= shared
    different = {n for n in shared if getattr(dense, n) != getattr(mixture, n)} - {"layer_types"}
    assert different == set()
    assert dense.rope_parameters.items() <= mixture.rope_parameters.items()
    assert mixture.rope_parameters.get("partial_rotary_factor", 1) == 1
    width = dense.hidden_size // dense.num_attention_heads
    heads = [getattr(config, "head_dim", None) or width for config in (dense, mixture)]
    assert heads[0] == heads[1]
