"""A search that diverges or collapses is stopped, and its last good coefficients are saved."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import torch

from fusion_adamerging.adamerging import AdaMerging
from fusion_adamerging.adarank import AdaRank
from fusion_adamerging.config import AdaMergingConfig
from fusion_adamerging.learnable import check_size
from fusion_adapting import SearchMonitor, SearchStoppedError, TaskSummary
from fusion_core import Batch, RunContext
from fusion_core.errors import FusionError, RecipeError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from pools_checkpoints import CheckpointsPool


VARIED = {0: 8, 1: 8}


def test_a_collapse_is_many_predictions_in_a_row_of_one_class() -> None:
    monitor = SearchMonitor()
    assert monitor.check(0, {"a": TaskSummary(1.0, VARIED)})
    for step in range(1, 4):
        assert not monitor.check(step, {"a": TaskSummary(0.1, {7: 16})}), "suspicious, so not good"
    with pytest.raises(SearchStoppedError, match=r"step 4 .* 64 predictions .* 'a' .* class 7"):
        monitor.check(4, {"a": TaskSummary(0.1, {7: 16})})


def test_another_class_or_a_varied_batch_restarts_the_count() -> None:
    monitor = SearchMonitor()
    monitor.check(0, {"a": TaskSummary(1.0, VARIED)})
    for step in range(1, 40):
        classes = VARIED if step % 4 == 0 else {step % 2: 16}
        assert monitor.check(step, {"a": TaskSummary(0.1, classes)}) == (step % 4 == 0)


def test_a_task_that_never_had_two_classes_has_not_collapsed() -> None:
    monitor = SearchMonitor()
    assert all(monitor.check(step, {"a": TaskSummary(0.1, {0: 16})}) for step in range(20))


def test_a_class_that_was_common_before_takes_more_in_a_row() -> None:
    monitor = SearchMonitor()
    monitor.check(0, {"a": TaskSummary(1.0, {3: 95, 1: 5})})
    for step in range(1, 17):
        monitor.check(step, {"a": TaskSummary(0.1, {3: 16})})
    with pytest.raises(SearchStoppedError, match=r"the last 272 predictions"):  # 0.95**270 = 1e-6
        monitor.check(17, {"a": TaskSummary(0.1, {3: 16})})


def test_a_task_of_nearly_one_class_is_not_stopped() -> None:
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        monitor = SearchMonitor()
        for step in range(100):
            rare = int((torch.rand(16, generator=generator) < 0.05).sum())
            classes = {key: count for key, count in ((0, 16 - rare), (1, rare)) if count}
            monitor.check(step, {"a": TaskSummary(0.1, classes)})


def test_a_collapse_is_detected_with_batches_of_one() -> None:
    monitor = SearchMonitor()
    assert all(monitor.check(step, {"a": TaskSummary(1.0, {step % 3: 1})}) for step in range(30))
    with pytest.raises(SearchStoppedError, match=r"the last 64 predictions .* class 7"):
        for step in range(30, 100):
            monitor.check(step, {"a": TaskSummary(0.1, {7: 1})})
    assert step == 93


def test_a_monitor_continues_from_its_state() -> None:
    monitor = SearchMonitor()
    monitor.check(0, {"a": TaskSummary(1.0, VARIED)})
    monitor.check(1, {"a": TaskSummary(0.1, {7: 40})})
    restored = SearchMonitor.from_state(json.loads(json.dumps(monitor.state())))
    assert restored == monitor
    with pytest.raises(SearchStoppedError, match="80 predictions"):
        restored.check(2, {"a": TaskSummary(0.1, {7: 40})})


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_an_objective_that_is_not_finite_is_refused(value: float) -> None:
    with pytest.raises(SearchStoppedError, match=f"step 3: the objective of task 'a' is {value}"):
        SearchMonitor().check(3, {"a": TaskSummary(value, VARIED)})


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_start_that_is_not_finite_has_not_diverged(value: float) -> None:
    with pytest.raises(FusionError, match=f"'a' is {value} before the first step") as caught:
        SearchMonitor().check(0, {"a": TaskSummary(value, VARIED)})
    assert not isinstance(caught.value, SearchStoppedError)
    assert "examples of task 'a'" in str(caught.value.hint)


@pytest.mark.parametrize("method", [AdaMerging, AdaRank])
def test_a_search_with_bad_examples_or_a_bad_start_saves_nothing(
    method: Any,
    make_pool: Callable[..., CheckpointsPool],
    tasks: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    context = RunContext(tasks=tasks, output=tmp_path / "out")
    with pytest.raises(RecipeError, match=r"algorithm\.init: expected .* at most 10, got 11"):
        method(init=11.0).run(make_pool("mlp"), context)
    kind = type(tasks["b"])
    bad = Batch(torch.full((16, 3, 4, 4), torch.nan))
    monkeypatch.setattr(kind, "batch", lambda *_, **__: bad)
    with pytest.raises(FusionError, match="before the first step"):
        method(steps=5).run(make_pool("mlp"), context)
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize("value", [float("nan"), float("-inf"), 11.0, -11.0])
def test_too_large_coefficients_are_refused(value: float) -> None:
    with pytest.raises(SearchStoppedError, match="step 3: a coefficient has become"):
        check_size(3, torch.tensor([[0.3, value]]))


@pytest.mark.parametrize(
    ("method", "options"),
    [(AdaMerging, {}), (AdaMerging, {"granularity": "row+column"}), (AdaRank, {})],
)
def test_divergence_stops_the_run_and_saves_the_last_good_coefficients(
    method: Any, options: Any, make_pool: Callable[..., CheckpointsPool], tasks: Any, tmp_path: Path
) -> None:
    pool = make_pool("convolution")
    context = RunContext(tasks=tasks, output=tmp_path / "out")
    algorithm = method(steps=5, lr=1e30, **options)
    with pytest.raises(SearchStoppedError, match="diverged at step 1: a coefficient") as caught:
        algorithm.run(pool, context)
    saved = tmp_path / "out.coefficients.json"
    assert str(saved) in str(caught.value)
    log = tmp_path / "out.metrics.jsonl"
    assert str(log) in str(caught.value)
    assert json.loads(log.read_text().splitlines()[0])["step"] == 0
    good = json.loads(saved.read_text())["coefficients"]
    assert list(good["a"].values()) == pytest.approx([algorithm.config.init] * len(good["a"]))
    again = method(coefficients=str(saved))
    assert again.run(pool, RunContext()).tensor("0.weight").isfinite().all()


def test_a_run_without_output_saves_them_in_a_temporary_directory(
    make_pool: Callable[..., CheckpointsPool],
    tasks: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    config = AdaMergingConfig(steps=5, lr=1e30)
    with pytest.raises(SearchStoppedError, match=r"smaller algorithm\.lr") as caught:
        AdaMerging(config).run(make_pool("mlp"), RunContext(tasks=tasks))
    (saved,) = tmp_path.glob("*/coefficients.json")
    assert str(saved) in str(caught.value)


def test_nan_in_examples_names_the_task(
    make_pool: Callable[..., CheckpointsPool], tasks: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind = type(tasks["b"])
    original = kind.batch

    def batch(self: Any, step: int, **options: Any) -> Batch:
        result = original(self, step, **options)
        return result if (self.name, step) != ("b", 2) else Batch(result.inputs * torch.nan)

    monkeypatch.setattr(kind, "batch", batch)
    with pytest.raises(SearchStoppedError, match="diverged at step 2: the objective of task 'b'"):
        AdaMerging(AdaMergingConfig(steps=5)).run(make_pool("mlp"), RunContext(tasks=tasks))


def test_a_search_that_collapses_a_task_is_stopped(
    make_pool: Callable[..., CheckpointsPool], tasks: Any
) -> None:
    config = AdaMergingConfig(steps=200, lr=0.05, schedule="constant")
    with pytest.raises(SearchStoppedError, match=r"collapsed: .* of task '[ab]' are all of class"):
        AdaMerging(config).run(make_pool("transformer"), RunContext(tasks=tasks))


def test_a_teacher_may_predict_one_class_for_everything(
    make_pool: Callable[..., CheckpointsPool], tasks: Any
) -> None:
    pool = make_pool("mlp")
    for expert in pool.config.models.values():
        expert[3].bias.data[0] += 10
    context = RunContext(tasks=tasks)
    AdaMerging(objective="teacher", init=0.0, steps=40, lr=0.05).run(pool, context)
    assert len(context.metrics.steps) == 40
