"""The example for `transformers.Trainer`, in a real training."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = [
    pytest.mark.plugins,
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning"),
]

EXAMPLE = Path(__file__).parents[2] / "examples" / "trainer_average.py"


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Trainer]:
    """Return a trainer of 4 steps that saves after each."""
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 2}
    rows = [{"input_ids": torch.arange(4), "labels": torch.arange(4)}] * 4

    def make(last: int, **options: Any) -> Trainer:
        quiet = {"report_to": "none", "disable_tqdm": True}
        steps = {"max_steps": 4, "save_steps": 1, "learning_rate": 0.1, "save_only_model": True}
        arguments = TrainingArguments(
            str(tmp_path / "run"), use_cpu=True, **quiet, **steps, **options
        )
        model = LlamaForCausalLM(LlamaConfig(vocab_size=8, num_hidden_layers=1, **sizes))
        callback = runpy.run_path(str(EXAMPLE))["AverageCheckpoints"](last)
        return Trainer(model, arguments, train_dataset=rows, callbacks=[callback])

    return make


def load(directory: Path) -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = LlamaForCausalLM.from_pretrained(directory).state_dict()
    return state


def test_the_last_checkpoints_are_averaged(make: Callable[..., Trainer], tmp_path: Path) -> None:
    for _ in range(2):  # the second training replaces the mean of the first
        make(3, save_total_limit=4).train()
    run = tmp_path / "run"
    last = [load(run / f"checkpoint-{step}") for step in (2, 3, 4)]
    averaged = load(run / "averaged")
    for name, value in averaged.items():
        mean = torch.stack([state[name] for state in last]).mean(dim=0)
        torch.testing.assert_close(value, mean)
    moved = [name for name, value in averaged.items() if not torch.equal(value, last[-1][name])]
    assert moved, "training changed nothing"


def test_too_few_checkpoints_are_refused_before_training(make: Callable[..., Trainer]) -> None:
    with pytest.raises(ValueError, match="save_total_limit of at least 3, got 2"):
        make(3, save_total_limit=2).train()
