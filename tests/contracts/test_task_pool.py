from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import nn

from fusion_core.contracts.batch import Batch
from fusion_core.contracts.subject import Subject
from fusion_core.contracts.task_pool import Task, TaskPool
from fusion_core.progress import Progress, note, show_notes_on
from fusion_core.recipe.config import ComponentConfig

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fusion_core.progress import Advance


class Constant(Task):
    def __init__(self, name: str, value: float) -> None:
        self.name = name
        self.value = value

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        del model
        return {"accuracy": self.value, "loss": 9.0}


class Pool(TaskPool[ComponentConfig]):
    config_class = ComponentConfig
    names = ("one", "two", "three")

    def __getitem__(self, name: str) -> Task:
        return Constant(name, {"one": 0.5, "two": 0.25, "three": 1.0}[name])


def test_a_pool_is_iterated_in_its_order() -> None:
    pool = Pool(ComponentConfig())
    assert [task.name for task in pool] == ["one", "two", "three"]
    assert len(pool) == 3
    assert not pool.transductive


def test_a_pool_measures_all_tasks_or_some() -> None:
    seen: list[object] = []

    class Recording(Progress):
        @contextmanager
        def track(self, label: str, *, total: int, unit: str = "") -> Iterator[Advance]:
            seen.append((label, total, unit))
            yield lambda count=1, *, note="": seen.append((count, note))

    pool = Pool(ComponentConfig())
    metrics = pool.measure(
        Subject.of(nn.Identity()), ["three", "one"], label="x", progress=Recording()
    )
    assert metrics == {
        "three": {"accuracy": 1.0, "loss": 9.0},
        "one": {"accuracy": 0.5, "loss": 9.0},
    }
    assert list(metrics) == ["three", "one"]
    assert seen == [("x", 2, ""), (1, "three"), (1, "one")]
    assert list(pool.measure(Subject.of(nn.Identity()))) == ["one", "two", "three"]


def test_a_task_reports_progress_on_the_innermost_bar() -> None:
    seen: list[tuple[int, str]] = []

    class Slow(Constant):
        def evaluate(self, model: nn.Module) -> dict[str, float]:
            note(f"{self.name}: half")
            return {"accuracy": 1.0}

    class Slows(Pool):
        def __getitem__(self, name: str) -> Task:
            return Slow(name, 1.0)

    def advance(count: int = 1, *, note: str = "") -> None:
        seen.append((count, note))

    with show_notes_on(advance):
        Slows(ComponentConfig()).measure(Subject.of(nn.Identity()), ["one"])
    assert seen == [(0, "one: half")]  # a silent bar inside hides nothing
    note("nobody listens")
    assert len(seen) == 1


def test_silent_progress_accepts_everything() -> None:
    with Progress().track("x", total=3, unit="B") as advance:
        advance(1)
        advance(2, note="two")


def test_a_batch_moves_with_or_without_labels() -> None:
    meta = torch.device("meta")
    moved = Batch(torch.ones(2), torch.ones(2)).to(meta)
    assert moved.inputs.device == meta
    assert moved.labels is not None
    assert moved.labels.device == meta
    assert Batch(torch.ones(2)).to(meta).labels is None
