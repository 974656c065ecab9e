"""Trials run once, are chosen on one half and tested on the other, and leave no files."""

from __future__ import annotations

import copy
import json
import math
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from fusion_core import (
    AdaptiveTask,
    Metric,
    Reference,
    Report,
    RunOptions,
    Split,
    merge,
    plan,
    run_fusion,
)
from fusion_core.errors import OutputError, RecipeError, WorkerError
from fusion_sweep import Search, sweep
from fusion_sweep.evaluator import TrialEvaluator
from fusion_sweep.objectives import Objective
from fusion_sweep.scheduler import run_in_worker
from fusion_testing import TinyTasks, tiny_pool

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fusion_sweep import SweepResult

#: Cached per process. Here one process stands in for two, before and after an edit.
_CACHES = [
    resolve_name(f"fusion_core.running._identity:{name}")
    for name in ("identify_package", "find_distributions")
]
SCALES = [0.1, 0.3, 0.6]
OVER = {"algorithm.scale": SCALES}


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "sweeps.sqlite"


def runs(log: Path) -> list[float]:
    return [float(line) for line in log.read_text().splitlines()]


def by_scale(result: SweepResult) -> dict[float, float]:
    return {
        group.point["algorithm.scale"]: group.mean(result.objectives[0]) for group in result.groups
    }


def accuracies(folder: Path, scale: float, step: int) -> list[float]:
    """Compute the accuracies of one half by hand."""
    import toys

    pool = toys.Models(toys.ModelsConfig(folder=str(folder)))
    model = tiny_pool().build(merge(toys.Scaled(scale=scale), pool))
    accuracy = []
    for name in "abc":
        task = TinyTasks()[name]
        batch = task.batch(step, size=toys.SIZE, split=Split.TEST, seed=0)
        with torch.no_grad():
            accuracy.append(
                float((task.logits(model, batch).argmax(-1) == batch.labels).double().mean())
            )
    return accuracy


def test_a_grid_is_chosen_on_one_half_and_its_best_measured_on_the_other(
    recipe: dict[str, Any], store: Path, folder: Path, log: Path
) -> None:
    result = sweep(recipe, over=OVER, store=store)
    ran = runs(log)
    assert result.on == "half"
    by_hand = {scale: sum(accuracies(folder, scale, 0)) / 3 for scale in SCALES}
    assert by_scale(result) == pytest.approx(by_hand)
    best = max(SCALES, key=by_hand.__getitem__)
    assert result.best().point == {"algorithm.scale": best}
    assert result.tested is not None
    assert result.tested.report.average == pytest.approx(sum(accuracies(folder, best, 1)) / 3)
    assert sorted(ran) == sorted([*SCALES, best])


def test_no_sweep_repeats_a_finished_run(
    recipe: dict[str, Any], store: Path, log: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = sweep(recipe, over=OVER, store=store)
    before = runs(log)
    again = sweep(recipe, over=OVER, store=store)
    assert [t.id for t in again.trials] == [t.id for t in first.trials]
    spelled = {**recipe, "algorithm": {"name": "scaled", "count": 1}}  # a default, written out
    wider = sweep(spelled, over={"algorithm.scale": "0.1:0.7:0.2"}, store=store)
    assert {t.id for t in first.trials} & {t.id for t in wider.trials}
    new = runs(log)[len(before) :]
    assert sorted(set(new)) == [0.5, 0.7]
    assert not caplog.records


def test_pools_are_opened_once(recipe: dict[str, Any], store: Path) -> None:
    import toys

    toys.OPENED.clear()
    sweep(recipe, over=OVER, seeds=2, store=store)
    assert toys.OPENED.count("models") == 1
    assert toys.OPENED.count("tasks") == 3  # and both halves


@pytest.mark.parametrize("change", ["option", "tasks"])
def test_what_figures_depend_on_is_another_trial(
    recipe: dict[str, Any], store: Path, change: str
) -> None:
    first = sweep(recipe, over={"algorithm.scale": [0.1]}, store=store)
    match change:
        case "option":
            recipe["algorithm"] = {"name": "scaled", "count": 2}
        case "tasks":
            recipe["task_pool"] = {"tasks": ["a", "b"]}
    again = sweep(recipe, over={"algorithm.scale": [0.1]}, store=store)
    assert first.trials[0].id != again.trials[0].id


def test_other_weights_make_another_trial(
    recipe: dict[str, Any], store: Path, tmp_path: Path, folder: Path
) -> None:
    models = tmp_path / "models"
    shutil.copytree(folder, models)
    recipe["model_pool"]["folder"] = str(models)
    first = sweep(recipe, over={"algorithm.scale": [0.1]}, store=store)
    file = models / "a" / "model.safetensors"
    save_file({name: tensor + 1 for name, tensor in load_file(file).items()}, file)
    again = sweep(recipe, over={"algorithm.scale": [0.1]}, store=store)
    assert first.trials[0].id != again.trials[0].id


def forget_code() -> None:
    for cached in _CACHES:
        cached.cache_clear()


@pytest.fixture
def _uncached_code() -> Iterator[None]:
    forget_code()
    yield
    forget_code()


@pytest.mark.usefixtures("_uncached_code")
def test_edited_code_runs_again(
    recipe: dict[str, Any],
    store: Path,
    log: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sweep(recipe, over=OVER, store=store)
    before = len(runs(log))
    import toys

    edited = tmp_path / "toys.py"
    edited.write_text(Path(toys.__file__).read_text() + "# another version\n")
    monkeypatch.setattr(toys, "__file__", str(edited))
    forget_code()
    sweep(recipe, over=OVER, store=store)
    assert runs(log)[before:] == runs(log)[:before]


def test_tasks_without_an_identity_are_measured_by_every_sweep(
    recipe: dict[str, Any],
    store: Path,
    log: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    import toys

    monkeypatch.setattr(toys.Tasks, "identity", lambda *_: None)
    for _ in range(2):
        sweep(recipe, over=OVER, store=store)
    assert len(runs(log)) == 8
    assert "the next sweep runs these trials again" in caplog.text


def test_algorithms_are_tried_with_options_of_their_own(
    recipe: dict[str, Any], store: Path
) -> None:
    result = sweep(
        recipe, algorithms=["scaled", "mean"], over={"algorithm.scaled.scale": SCALES}, store=store
    )
    assert sorted(json.dumps(t.point) for t in result.trials) == sorted(
        json.dumps(point)
        for point in (
            {"algorithm": "mean"},
            *({"algorithm": "scaled", "algorithm.scaled.scale": scale} for scale in SCALES),
        )
    )
    assert {trial.algorithm for trial in result.trials} == {"mean", "scaled"}


def test_an_unknown_option_of_the_algorithms_that_are_tried_is_refused(
    recipe: dict[str, Any], store: Path
) -> None:
    recipe["algorithm"] = {"scal": 0.5}
    with pytest.raises(RecipeError, match=r"algorithm\.scal: unknown option"):
        sweep(recipe, algorithms=["scaled"], over=OVER, store=store)


def test_a_full_name_is_the_same_algorithm(recipe: dict[str, Any], store: Path) -> None:
    recipe["algorithm"] = {"name": "scaled", "scale": 0.1}
    result = sweep(recipe, algorithms=["scaled", "toys/scaled"], over={}, store=store)
    assert len({trial.report.average for trial in result.finished}) == 1
    assert result.best().recipe["algorithm"]["scale"] == 0.1


def test_seeds_are_runs_of_one_point(recipe: dict[str, Any], store: Path) -> None:
    result = sweep(
        {**recipe, "seed": 5}, over={"algorithm.scale": [0.1, 0.2]}, seeds=3, store=store
    )
    assert [len(group.trials) for group in result.groups] == [3, 3]
    assert {trial.recipe["seed"] for trial in result.trials} == {5, 6, 7}
    assert result.groups[0].deviation(result.objectives[0]) == 0.0  # it draws nothing


def test_choosing_on_tasks_without_halves_is_warned_about(
    recipe: dict[str, Any], store: Path, caplog: pytest.LogCaptureFixture
) -> None:
    recipe["task_pool"] = {"halves": False}
    result = sweep(recipe, over=OVER, store=store)
    assert result.on == "test"
    assert result.tested is None
    assert "options are chosen on the test set itself" in caplog.text
    with pytest.raises(RecipeError, match="has no halves"):
        sweep(recipe, over=OVER, store=store, on="half")


def test_lower_is_better_if_the_metric_says_so(recipe: dict[str, Any], store: Path) -> None:
    recipe["task_pool"] = {"loss": True}
    result = sweep(recipe, over=OVER, objectives=["average", "worst"], store=store)
    losses = by_scale(result)
    assert result.best().point["algorithm.scale"] == min(losses, key=losses.__getitem__)
    worst = result.objectives[1]
    report = result.best().report
    assert worst.value(report) == max(task["loss"] for task in report.tasks.values())


def test_entropy_and_agreement_need_no_labels(
    recipe: dict[str, Any], store: Path, folder: Path
) -> None:
    import toys

    result = sweep(recipe, over=OVER, objectives=["entropy", "agreement"], samples=128, store=store)
    assert result.on == "unlabeled"
    assert result.tested is not None
    pool = toys.Models(toys.ModelsConfig(folder=str(folder)))
    trial = next(t for t in result.trials if t.point["algorithm.scale"] == 0.3)
    for name in "abc":
        task = TinyTasks()[name]
        batches = [task.batch(n, size=64, split=Split.UNLABELED, seed=0) for n in (0, 1)]
        logits, expert_logits = (
            torch.cat([task.logits(model, batch) for batch in batches]).detach()
            for model in (
                pool.build(merge(toys.Scaled(scale=0.3), pool)),
                pool.build(pool.experts[name]),
            )
        )
        measured = trial.report.tasks[name]
        entropy = torch.distributions.Categorical(logits=logits).entropy().mean()
        assert measured["entropy"] == pytest.approx(float(entropy), rel=1e-5)
        agrees = (logits.argmax(-1) == expert_logits.argmax(-1)).double().mean()
        assert measured["agreement"] == float(agrees)


def test_agreement_is_with_the_experts_of_the_trial(
    recipe: dict[str, Any], store: Path, folder: Path, tmp_path: Path
) -> None:
    import toys

    others = tmp_path / "others"
    shutil.copytree(folder, others)
    shutil.copy(others / "b" / "model.safetensors", others / "a" / "model.safetensors")
    recipe["task_pool"] = toys.Tasks(toys.TasksConfig())

    def agreement(*folders: Path) -> list[object]:
        over = {"model_pool.folder": [str(path) for path in folders]}
        result = sweep(recipe, over=over, objectives=["agreement"], samples=64, store=store)
        return [trial.report.tasks for trial in result.finished if trial.report is not None]

    assert agreement(folder, others) == [*agreement(folder), *agreement(others)]


def test_the_best_by_the_test_examples_without_labels_is_not_measured_on_them(
    recipe: dict[str, Any], store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import toys

    monkeypatch.setattr(toys.Tasks, "transductive", True)
    result = sweep(recipe, over=OVER, objectives=["entropy"], samples=64, store=store)
    assert result.tested is None


def test_a_point_with_a_failed_seed_ranks_last(recipe: dict[str, Any], store: Path) -> None:
    result = sweep(recipe, over=OVER, seeds=2, store=store)
    best = result.best()
    trials = [
        replace(trial, report=None, error="lost") if trial is best else trial
        for trial in result.trials
    ]
    groups = replace(result, trials=trials).groups
    assert len(groups) == len(OVER["algorithm.scale"])
    assert (groups[-1].point, groups[-1].scores) == (best.point, (-math.inf,))


def test_equal_points_are_in_the_order_of_their_numbers(
    recipe: dict[str, Any], store: Path
) -> None:
    first = sweep(recipe, over=OVER, store=store)
    best = first.best()
    trials = [replace(best, point={"algorithm.scale": scale}) for scale in (10, 8, 9.5)]
    points = [group.point["algorithm.scale"] for group in replace(first, trials=trials).groups]
    assert points == [8, 9.5, 10]


def test_no_errors_are_the_best_ratio() -> None:
    metrics = {name: {"errors": Metric("errors", higher_is_better=False)} for name in "ab"}
    experts = {name: {"errors": 0.5} for name in "ab"}
    report = Report(
        {"a": {"errors": 0.0}, "b": {"errors": 0.4}}, Reference({}, experts), metrics=metrics
    )
    assert Objective("normalised").score(report) == math.inf


def test_a_score_without_a_ratio_is_no_number() -> None:
    experts = {name: {"accuracy": 0.5} for name in "ab"}
    report = Report({"a": {"accuracy": 0.4}, "b": {"accuracy": -0.1}}, Reference({}, experts))
    assert math.isnan(Objective("normalised").value(report))
    with pytest.raises(RecipeError, match="undefined for these tasks"):
        Objective("normalised").value(replace(report, reference=Reference({}, {})))


def test_metrics_without_labels_are_over_all_predictions_of_an_example(
    recipe: dict[str, Any], store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def with_two_predictions(task: Any) -> Any:
        twice = copy.copy(task)
        twice.logits = lambda *args: task.logits(*args).repeat_interleave(2, dim=0)
        return twice

    seen = list[int]()

    def count(logits: torch.Tensor) -> torch.Tensor:
        seen.append(len(logits))
        return logits.mean()

    monkeypatch.setattr(AdaptiveTask, "with_all_predictions", with_two_predictions)
    monkeypatch.setattr("fusion_sweep.unlabeled.entropy", count)
    sweep(recipe, over=OVER, objectives=["entropy"], samples=64, store=store)
    assert set(seen) == {2 * 64}


def test_the_front_holds_the_points_that_no_other_beats(
    recipe: dict[str, Any], store: Path
) -> None:
    result = sweep(recipe, over={"algorithm.scale": "0:1:0.25"}, objectives=["a", "b"], store=store)
    points = {group.scores for group in result.groups}
    front = {
        one
        for one in points
        if not any(o != one and all(x >= y for x, y in zip(o, one, strict=True)) for o in points)
    }
    assert {group.scores for group in result.front} == front
    assert front < points


@pytest.mark.parametrize(
    ("kind", "error"),
    [("FusionError", "it is too large"), ("IndexError", "IndexError: it is too large")],
)
def test_a_failed_trial_stops_no_other_and_is_tried_again(
    recipe: dict[str, Any], store: Path, log: Path, kind: str, error: str
) -> None:
    recipe["algorithm"] = {"name": "scaled", "fails_above": 0.5, "fails_by": kind}
    result = sweep(recipe, over=OVER, store=store)
    assert [trial.error for trial in result.failed] == [error]
    assert len(result.finished) == 2
    sweep(recipe, over=OVER, store=store)
    assert runs(log).count(0.6) == 2


def test_an_invalid_trial_is_refused_before_any_runs(
    recipe: dict[str, Any], store: Path, log: Path
) -> None:
    with pytest.raises(RecipeError, match=r"algorithm\.scale"):
        sweep(recipe, over={"algorithm.scale": [0.1, "much"]}, store=store)
    with pytest.raises(RecipeError, match="unknown objective 'averag'"):
        sweep(recipe, over=OVER, objectives=["averag"], store=store)
    with pytest.raises(RecipeError, match="needs no labels"):
        sweep(recipe, over=OVER, objectives=["entropy"], on="test", store=store)
    with pytest.raises(RecipeError, match="a grid needs a step"):
        sweep(recipe, over={"algorithm.scale": "0:1"}, store=store)
    with pytest.raises(RecipeError, match="nothing to sweep over"):
        sweep(recipe, over={}, store=store)
    with pytest.raises(RecipeError, match=r"seed = 1\.5"):
        sweep({**recipe, "seed": 1.5}, over=OVER, store=store)
    assert runs(log) == []


@pytest.mark.parametrize(
    ("over", "search", "message"),
    [
        ({"algorithm.scale": [0.1, "much"]}, Search(), "got text"),
        ({"algorithm.count": "1:3"}, Search("random", 3), r"algorithm\.count"),
        ({"algorithm.scale": [0.1, 0.3]}, Search("cma-es", 3), r"algorithm\.scale is a list"),
    ],
)
def test_a_refused_sweep_leaves_no_store(
    recipe: dict[str, Any], store: Path, over: dict[str, Any], search: Search, message: str
) -> None:
    if search.kind == "cma-es":
        pytest.importorskip("optuna")
    with pytest.raises(RecipeError, match=message):
        sweep(recipe, over=over, search=search, store=store)
    assert not store.exists()


def test_an_output_that_exists_leaves_no_store(
    recipe: dict[str, Any], store: Path, tmp_path: Path
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes").touch()
    with pytest.raises(OutputError):
        sweep(recipe, over=OVER, store=store, keep=1, output=tmp_path / "out")
    assert not store.exists()


def test_both_ends_of_a_range_are_checked_before_a_search(
    recipe: dict[str, Any], store: Path, log: Path
) -> None:
    pytest.importorskip("optuna")
    with pytest.raises(RecipeError, match=r"algorithm\.count=11: .* less than or equal to 10"):
        sweep(recipe, over={"algorithm.count": "1:11:1"}, search=Search("tpe", 1), store=store)
    assert runs(log) == []


def test_cma_es_searches_one_algorithm(recipe: dict[str, Any], store: Path) -> None:
    pytest.importorskip("optuna")
    pytest.importorskip("cmaes")
    over = {"algorithm.scale": "0:1"}
    result = sweep(
        recipe, algorithms=["scaled"], over=over, search=Search("cma-es", 2), store=store
    )
    assert len(result.finished) == 2


def test_a_point_that_is_suggested_again_is_one_trial(recipe: dict[str, Any], store: Path) -> None:
    pytest.importorskip("optuna")
    over = {"algorithm.scale": [0.1, 0.3]}
    result = sweep(recipe, over=over, search=Search("tpe", 6), store=store)
    assert len(result.trials) == len(result.rows()) == 2
    assert result.groups[0].deviation(result.objectives[0]) is None


def test_random_points_are_reproducible(recipe: dict[str, Any], store: Path, log: Path) -> None:
    over = {"algorithm.scale": "0.01:1:log"}
    first = sweep(recipe, over=over, search=Search("random", 4), store=store)
    drawn = {t.point["algorithm.scale"] for t in first.trials}
    assert len(drawn) == 4
    assert all(0.01 <= scale <= 1 for scale in drawn)
    sweep(recipe, over=over, search=Search("random", 4), store=store)
    assert len(runs(log)) == 5  # and the best on the other half
    other = sweep(recipe, over=over, search=Search("random", 4, seed=1), store=store)
    assert drawn.isdisjoint(t.point["algorithm.scale"] for t in other.trials)


@pytest.mark.parametrize("kind", ["tpe", "cma-es"])
def test_optuna_suggests_the_same_points_again(
    recipe: dict[str, Any], store: Path, log: Path, kind: Any
) -> None:
    pytest.importorskip("optuna")
    pytest.importorskip("cmaes")
    over = {"algorithm.scale": "0:1", "algorithm.count": "1:5:1"}
    first = sweep(recipe, over=over, search=Search(kind, 7), store=store)
    assert len(first.trials) == 7
    assert all(isinstance(t.point["algorithm.count"], int) for t in first.trials)
    count = len(runs(log))
    longer = sweep(recipe, over=over, search=Search(kind, 9), store=store)
    assert [t.id for t in longer.trials[:7]] == [t.id for t in first.trials]
    assert len(runs(log)) - count in {2, 3}


def test_the_best_are_written_by_ordinary_runs(
    recipe: dict[str, Any], store: Path, tmp_path: Path
) -> None:
    out = tmp_path / "best"
    result = sweep(recipe, over=OVER, store=store, keep=2, output=out)
    assert list(result.written) == sorted(out.iterdir()) == [out / "1", out / "2"]
    report = json.loads((out / "1" / "report.json").read_bytes())
    assert report["chosen"] == (
        "by a sweep of 3 runs, by the labels of a half of the test examples"
    )
    with pytest.raises(OutputError, match="best/1"):  # before anything is run
        sweep(recipe, over={"algorithm.scale": [0.9]}, store=store, keep=2, output=out)
    again = run_fusion(out / "1" / "recipe.yaml", output=tmp_path / "again")
    weights = [(path / "model.safetensors").read_bytes() for path in (out / "1", again.path)]
    assert weights[0] == weights[1]
    assert result.best().recipe["algorithm"]["scale"] == result.groups[0].point["algorithm.scale"]


def test_the_scratch_directory_is_empty_afterwards(
    recipe: dict[str, Any], store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    written = sweep(recipe, over=OVER, store=store, scratch=scratch)
    assert list(scratch.iterdir()) == []
    in_memory = sweep(recipe, over=OVER, store=tmp_path / "other.sqlite")
    assert by_scale(written) == by_scale(in_memory)
    assert not (tmp_path / "outputs").exists()


@pytest.mark.usefixtures("installed")
def test_models_in_memory_are_swept_and_never_recalled(store: Path) -> None:
    raw = {"algorithm": "scaled", "model_pool": tiny_pool(), "task_pool": TinyTasks()}
    first = sweep(raw, over=OVER, store=store)
    again = sweep(raw, over=OVER, store=store)
    assert by_scale(first) == by_scale(again)
    assert {t.id for t in first.trials}.isdisjoint(t.id for t in again.trials)


def test_trials_become_a_data_frame(recipe: dict[str, Any], store: Path) -> None:
    pytest.importorskip("pandas")
    frame = sweep(recipe, over=OVER, store=store).to_dataframe()
    assert list(frame["average"]) == sorted(frame["average"], reverse=True)
    assert {"run", "algorithm.scale", "seed", "a.accuracy", "seconds"} <= set(frame.columns)


# --- executors ----------------------------------------------------------------------------------


@pytest.fixture
def _workers_know_toys(environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Let processes that are started import the plugin."""
    monkeypatch.setenv("PYTHONPATH", environment["PYTHONPATH"])


def run_on(executor: Any) -> RunOptions:
    return RunOptions(executor=executor)


@pytest.mark.thorough
@pytest.mark.usefixtures("_workers_know_toys")
@pytest.mark.parametrize("executor", ["processes", {"name": "dask", "workers": 2}])
def test_workers_measure_the_same_and_nothing_twice(
    recipe: dict[str, Any], store: Path, log: Path, tmp_path: Path, executor: Any
) -> None:
    if executor != "processes":
        pytest.importorskip("fusion_dask")
    recipe["algorithm"] = {"name": "scaled", "fails_above": 0.5}
    here = sweep(recipe, over=OVER, seeds=2, store=tmp_path / "other.sqlite")
    result = sweep(recipe, over=OVER, seeds=2, store=store, options=run_on(executor))
    blank = {"seconds": 0, "cpu": 0, "finished": ""}
    assert [row | blank for row in result.rows()] == [row | blank for row in here.rows()]
    assert [trial.error for trial in result.failed] == ["it is too large"] * 2
    assert result.tested is not None
    assert result.tested.report.tasks == here.tested.report.tasks
    assert result.id == here.id
    count = len(runs(log))
    again = sweep(recipe, over={"algorithm.scale": SCALES[:2]}, seeds=2, store=store)
    assert len(again.finished) == 4
    assert len(runs(log)) == count


@pytest.mark.thorough
@pytest.mark.usefixtures("_workers_know_toys")
def test_a_worker_that_dies_ends_the_sweep_and_results_are_saved(
    recipe: dict[str, Any], store: Path, log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOYS_DEATH", "0.6")
    sweep(recipe, over={"algorithm.scale": SCALES[:2]}, store=store)
    with pytest.raises(WorkerError, match="a worker died while it ran a trial") as stopped:
        sweep(recipe, over=OVER, store=store, options=run_on("processes"))
    note = "2 of 3 runs are saved; the same command continues with the others."
    assert stopped.value.__notes__ == [note]
    monkeypatch.delenv("TOYS_DEATH")
    assert len(sweep(recipe, over=OVER, store=store, options=run_on("processes")).finished) == 3
    assert {scale: runs(log).count(scale) for scale in SCALES} == {0.1: 1, 0.3: 2, 0.6: 2}


@pytest.mark.usefixtures("installed")
def test_objects_in_memory_are_not_sent_to_workers(recipe: dict[str, Any], store: Path) -> None:
    import toys

    live = {"algorithm": "scaled", "model_pool": tiny_pool(), "task_pool": TinyTasks()}
    message = "the model pool is in this process's memory, but the ProcessPoolExecutor"
    with pytest.raises(RecipeError, match=message):
        sweep(live, over=OVER, store=store, options=run_on("processes"))
    with pytest.raises(RecipeError, match="the task pool is in this process's memory"):
        sweep(
            {**recipe, "task_pool": toys.Tasks(toys.TasksConfig())},
            over=OVER,
            store=store,
            options=run_on("processes"),
        )


@pytest.mark.usefixtures("_workers_know_toys")
def test_a_worker_with_other_code_or_files_is_refused(recipe: dict[str, Any], folder: Path) -> None:
    bench = TrialEvaluator()
    trial = bench.name(bench.plan(recipe), "half")
    assert run_in_worker(bench.to_bytes(), trial).report is not None
    with pytest.raises(WorkerError, match="has different code, versions or files"):
        run_in_worker(bench.to_bytes(), replace(trial, id="another"))
    missing = {**trial.recipe, "model_pool": {"name": "toys", "folder": f"{folder}-away"}}
    with pytest.raises(WorkerError, match=r"a worker on .* cannot run a trial: .*-away"):
        run_in_worker(bench.to_bytes(), replace(trial, recipe=missing))
    with pytest.raises(WorkerError, match="cannot run a trial: device 'cuda:99'"):
        run_in_worker(TrialEvaluator(RunOptions(device="cuda:99")).to_bytes(), trial)


# --- processes ----------------------------------------------------------------------------------

PROGRAM = "from fusion_core.cli.app import main; main()"


def command(recipe: dict[str, Any], store: Path, scales: str) -> list[str]:
    folder = recipe["model_pool"]["folder"]
    return [
        *(sys.executable, "-c", PROGRAM, "sweep", "--algo", "scaled", "--pool", "toys"),
        *("--set", f"model_pool.folder={folder}", "--over", f"algorithm.scale={scales}"),
        *("--store", str(store), "--json"),
    ]


def wait_for(log: Path, count: int) -> None:
    until = time.monotonic() + 600
    while len(runs(log)) < count and time.monotonic() < until:
        time.sleep(0.01)


def test_a_killed_sweep_resumes(
    recipe: dict[str, Any], store: Path, log: Path, environment: dict[str, str]
) -> None:
    call = command(recipe, store, "0.1,0.2,0.3,0.4")
    process = subprocess.Popen(call, env={**environment, "TOYS_SECONDS": "0.4"})
    wait_for(log, 3)  # the third is under way
    process.kill()
    process.wait()
    result = sweep(recipe, over={"algorithm.scale": "0.1,0.2,0.3,0.4"}, store=store)
    assert len(result.finished) == 4
    best = result.best().point["algorithm.scale"]
    assert sorted(runs(log)) == sorted([0.1, 0.2, 0.3, 0.3, 0.4, best])


def test_an_interrupted_sweep_says_how_many_runs_are_saved(
    recipe: dict[str, Any], store: Path, log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOYS_INTERRUPT", "0.3")
    with pytest.raises(KeyboardInterrupt) as stopped:
        sweep(recipe, over=OVER, store=store)
    note = "1 of 3 runs are saved; the same command continues with the others."
    assert stopped.value.__notes__ == [note]
    monkeypatch.delenv("TOYS_INTERRUPT")
    assert len(sweep(recipe, over=OVER, store=store).finished) == 3
    assert runs(log).count(0.1) <= 2  # once, and where it is the best once more


@pytest.mark.thorough
def test_two_processes_share_a_sweep(
    recipe: dict[str, Any], store: Path, log: Path, environment: dict[str, str]
) -> None:
    slow = {**environment, "TOYS_SECONDS": "0.4"}
    call = command(recipe, store, "0:0.5:0.1")
    with subprocess.Popen(call, env=slow, stdout=subprocess.PIPE, text=True) as other:
        wait_for(log, 1)
        ours = sweep(recipe, over={"algorithm.scale": "0:0.5:0.1"}, store=store)
        theirs = json.loads(other.communicate()[0])
    assert theirs["runs"] == json.loads(json.dumps(ours.rows()))
    assert len(ours.finished) == 6
    assert len(runs(log)) == 7  # and the best on the other half


def test_a_plan_reopens_only_the_pools_that_changed(recipe: dict[str, Any], folder: Path) -> None:
    first = plan(recipe, RunOptions())
    same = plan({**recipe, "seed": 1}, RunOptions(), like=first)
    fewer = plan({**recipe, "task_pool": {"tasks": ["a"]}}, RunOptions(), like=first)
    assert same.pool is first.pool
    assert same.tasks is first.tasks
    assert fewer.pool is first.pool
    assert fewer.tasks.names == ("a",)


@pytest.mark.plugins
@pytest.mark.parametrize(
    ("name", "message"),
    [("emr", "emr makes one model per task"), ("smile", "smile adds modules to live models")],
)
def test_results_that_are_more_than_weights_are_measured_with_labels(
    name: str, message: str, tmp_path: Path
) -> None:
    recipe = {"algorithm": name, "model_pool": "mini8", "task_pool": {"tasks": ["latin", "greek"]}}
    with pytest.raises(RecipeError, match=message):
        sweep(recipe, over={"seed": [0]}, objectives=["entropy"], store=tmp_path / "s.sqlite")
