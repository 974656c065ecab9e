"""Cached answers: one per model files, question, code and device."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import save_file

from fusion_core.commands import cached_answer
from pools_checkpoints import CheckpointsConfig, CheckpointsPool

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

CPU = torch.device("cpu")


class Asked:
    """A pool of one file or live model, and a count of its answers."""

    def __init__(self, model: Any) -> None:
        self.pool = CheckpointsPool(CheckpointsConfig(models={"a": model}))
        self.count = 0

    def __call__(self, text: str = "who?", *, fresh: bool = False) -> Any:
        source = self.pool.experts["a"]
        return cached_answer(
            self.pool, source, {"text": text}, lambda: self._measure(text), device=CPU, fresh=fresh
        )

    def _measure(self, text: str) -> Any:
        self.count += 1
        return {"said": [text, float("inf")]}


@pytest.fixture
def asked(tmp_path: Path) -> Asked:
    save_file({"w": torch.zeros(3)}, tmp_path / "a.safetensors")
    return Asked(str(tmp_path / "a.safetensors"))


def test_question_is_answered_once(asked: Asked) -> None:
    answers = [asked() for _ in range(3)]
    assert answers == [{"said": ["who?", float("inf")]}] * 3
    assert asked.count == 1


AGAIN: dict[str, Callable[[Asked], Any]] = {
    "question": lambda asked: asked("why?"),
    "fresh": lambda asked: asked(fresh=True),
    "files": lambda asked: save_file({"w": torch.ones(3)}, asked.pool.config.models["a"]),
}


@pytest.mark.parametrize("change", AGAIN.values(), ids=AGAIN)
def test_changed_question_or_files_are_answered_again(
    asked: Asked, change: Callable[[Asked], Any]
) -> None:
    asked()
    change(asked)
    again = Asked(asked.pool.config.models["a"])
    again()
    assert asked.count + again.count == 2


def test_model_in_memory_is_asked_every_time() -> None:
    asked = Asked({"w": torch.zeros(3)})
    asked()
    asked()
    assert asked.count == 2
