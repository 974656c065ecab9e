"""A search that goes wrong is noticed, named and stopped; what was good is kept."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import torch

from fusion_adamerging.adamerging import AdaMerging
from fusion_adamerging.config import AdaMergingConfig
from fusion_adamerging.watch import SearchStoppedError, Seen, Watch, check_size
from fusion_core import RunContext
from fusion_core.task_pool import Batch

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from fusion_core.checkpoints import CheckpointsPool


def test_a_collapse_is_many_predictions_in_a_row_of_one_class() -> None:
    watch = Watch()
    assert watch.look(0, {"a": Seen(1.0, 16, None)})
    for step in range(1, 4):
        assert not watch.look(step, {"a": Seen(0.1, 16, 7)}), "suspicious, so not good"
    with pytest.raises(SearchStoppedError, match=r"step 4 .* 64 predictions .* 'a' .* class 7"):
        watch.look(4, {"a": Seen(0.1, 16, 7)})


def test_another_class_or_a_varied_batch_begins_a_new_row() -> None:
    watch = Watch()
    watch.look(0, {"a": Seen(1.0, 16, None)})
    for step in range(1, 40):
        seen = Seen(0.1, 16, None if step % 4 == 0 else step % 2)
        assert watch.look(step, {"a": seen}) == (step % 4 == 0)


def test_a_task_that_never_had_two_classes_has_not_collapsed() -> None:
    watch = Watch()
    assert all(watch.look(step, {"a": Seen(0.1, 16, 0)}) for step in range(20))


def test_a_watch_goes_on_from_its_state() -> None:
    watch = Watch()
    watch.look(0, {"a": Seen(1.0, 16, None)})
    watch.look(1, {"a": Seen(0.1, 40, 7)})
    recalled = Watch.recall(json.loads(json.dumps(watch.state())))
    assert recalled == watch
    with pytest.raises(SearchStoppedError, match="80 predictions"):
        recalled.look(2, {"a": Seen(0.1, 40, 7)})


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_an_objective_that_is_no_number_is_named(value: float) -> None:
    with pytest.raises(SearchStoppedError, match=f"step 3: task 'a' has an objective of {value}"):
        Watch().look(3, {"a": Seen(value, 16, None)})


@pytest.mark.parametrize("value", [float("nan"), float("-inf"), 11.0, -11.0])
def test_coefficients_out_of_proportion_are_named(value: float) -> None:
    with pytest.raises(SearchStoppedError, match="step 3: a coefficient has become"):
        check_size(3, torch.tensor([[0.3, value]]))


def test_divergence_stops_the_run_and_keeps_the_last_good_coefficients(
    make_pool: Callable[..., CheckpointsPool], tasks: Any, tmp_path: Path
) -> None:
    pool = make_pool("convolution")
    context = RunContext(tasks=tasks, output=tmp_path / "out")
    config = AdaMergingConfig(steps=5, lr=1e30, schedule="constant")
    with pytest.raises(SearchStoppedError, match="diverged at step 1: a coefficient") as caught:
        AdaMerging(config).run(pool, context)
    kept = tmp_path / "out.coefficients.json"
    assert str(kept) in str(caught.value)
    good = json.loads(kept.read_text())["coefficients"]
    assert list(good["a"].values()) == pytest.approx([0.3] * len(good["a"])), "the first ones"
    again = AdaMergingConfig(coefficients=str(kept))
    assert AdaMerging(again).run(pool, RunContext()).tensor("0.weight").isfinite().all()


def test_a_run_that_writes_nothing_keeps_them_in_a_place_of_their_own(
    make_pool: Callable[..., CheckpointsPool],
    tasks: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    config = AdaMergingConfig(steps=5, lr=1e30)
    with pytest.raises(SearchStoppedError, match=r"smaller algorithm\.lr") as caught:
        AdaMerging(config).run(make_pool("mlp"), RunContext(tasks=tasks))
    (kept,) = tmp_path.glob("*/coefficients.json")
    assert str(kept) in str(caught.value)


def test_nan_in_examples_is_named_with_its_task(
    make_pool: Callable[..., CheckpointsPool], tasks: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind = type(tasks["b"])
    whole = kind.batch

    def batch(self: Any, step: int, **options: Any) -> Batch:
        found = whole(self, step, **options)
        return found if (self.name, step) != ("b", 2) else Batch(found.inputs * torch.nan)

    monkeypatch.setattr(kind, "batch", batch)
    with pytest.raises(SearchStoppedError, match="diverged at step 2: task 'b'"):
        AdaMerging(AdaMergingConfig(steps=5)).run(make_pool("mlp"), RunContext(tasks=tasks))


def test_a_search_that_collapses_a_task_is_stopped(
    make_pool: Callable[..., CheckpointsPool], tasks: Any
) -> None:
    config = AdaMergingConfig(steps=200, lr=0.05, schedule="constant")
    with pytest.raises(SearchStoppedError, match=r"collapsed: .* of task '[ab]' are all of class"):
        AdaMerging(config).run(make_pool("transformer"), RunContext(tasks=tasks))
