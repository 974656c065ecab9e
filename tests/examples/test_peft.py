"""The example for PEFT: one adapter of two, where PEFT's own sum differs from the dense one."""

from __future__ import annotations

import re
import runpy
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = [
    pytest.mark.plugins,
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning"),
]

EXAMPLE = Path(__file__).parents[2] / "examples" / "peft_merge.py"
WEIGHTS = (0.7, 0.3)
WIDTH = 16
State = dict[str, torch.Tensor]


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """Save a base and two adapters of one kind, whose ranks differ, in the working directory."""
    monkeypatch.chdir(tmp_path)
    sizes = {"hidden_size": WIDTH, "intermediate_size": 24, "num_attention_heads": 2}
    config = LlamaConfig(vocab_size=32, num_hidden_layers=2, **sizes)

    def make(**options: Any) -> list[str]:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            LlamaForCausalLM(config).save_pretrained("base")
            for name, rank in (("one", 2), ("other", 4)):
                lora = LoraConfig(
                    r=rank, lora_alpha=8, target_modules=["q_proj", "down_proj"], **options
                )
                model = get_peft_model(load("base"), lora)
                for key, tensor in model.named_parameters():
                    if "lora_" in key:  # factors, and magnitudes of DoRA
                        tensor.data += 0.1 * torch.randn_like(tensor)
                model.save_pretrained(name)
        return ["one", "other"]

    return make


def load(name: str) -> Any:
    return LlamaForCausalLM.from_pretrained(name)


def merged(adapter: str) -> State:
    state: State = PeftModel.from_pretrained(load("base"), adapter).merge_and_unload().state_dict()
    return state


def dense_sum(adapters: list[str]) -> State:
    """Add the changes that adapters make to the base's matrices, in fp64."""
    base, models = load("base").state_dict(), [merged(adapter) for adapter in adapters]
    weighted = list(zip(models, WEIGHTS, strict=True))
    return {
        name: value.double() + sum(w * (model[name].double() - value) for model, w in weighted)
        for name, value in base.items()
    }


def relative_error(state: State, truth: State) -> float:
    base = load("base").state_dict()
    error, size = (
        torch.cat([(one[name].double() - two[name]).flatten() for name in truth]).norm()
        for one, two in ((state, truth), (base, truth))
    )
    return float(error / size)


def error_of_peft(adapters: list[str], truth: State) -> float:
    model = PeftModel.from_pretrained(load("base"), adapters[0], adapter_name=adapters[0])
    model.load_adapter(adapters[1], adapters[1])
    model.add_weighted_adapter(adapters, list(WEIGHTS), "sum", combination_type="cat")
    model.set_adapter("sum")
    return relative_error(model.merge_and_unload().state_dict(), truth)


@pytest.mark.parametrize(
    ("options", "rank", "is_wrong_in_peft"),
    [
        ({}, None, False),
        ({"use_rslora": True}, None, True),
        ({"use_dora": True}, WIDTH, True),  # the full rank: DoRA scales whole matrices
    ],
)
def test_a_merged_adapter_equals_the_dense_sum(
    make: Callable[..., list[str]],
    options: dict[str, bool],
    rank: int | None,
    *,
    is_wrong_in_peft: bool,
) -> None:
    adapters = make(**options)
    truth = dense_sum(adapters)
    merge = runpy.run_path(str(EXAMPLE))["merge"]
    merge("base", dict(zip(adapters, WEIGHTS, strict=True)), "sum", rank=rank)
    assert relative_error(merged("sum"), truth) < 1e-6
    # If this fails since an update of PEFT, docs/how-to/merge-lora-adapters.md is out of date.
    assert (error_of_peft(adapters, truth) > 0.1) == is_wrong_in_peft


def test_the_example_runs_as_it_is_and_states_the_error(
    make: Callable[..., list[str]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    make(use_dora=True)
    monkeypatch.setattr(sys, "argv", [str(EXAMPLE), "base", "one", "other", "sum", "6"])
    runpy.run_path(str(EXAMPLE), run_name="__main__")
    (stated,) = re.findall(r"^adapter: relative error (\S+)", capsys.readouterr().out, re.MULTILINE)
    monkeypatch.setitem(globals(), "WEIGHTS", (0.5, 0.5))
    error = relative_error(merged("sum"), dense_sum(["one", "other"]))
    assert error > 0.01
    assert float(stated) == pytest.approx(error, rel=0.01)
