"""Diagnose a pool by its weights and, with tasks, by the predictions of its models."""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fusion_core import AdaptiveTask, RunOptions, hub, load_models, merge, plan, show_notes_on
from fusion_core.commands import below_base_warnings, evaluate_experts, load_recipe, resolve_device
from fusion_core.errors import PluginError, RecipeError
from fusion_report.diagnosis.advice import advise
from fusion_report.diagnosis.cautions import find_cautions
from fusion_report.diagnosis.kinds import matching_kinds
from fusion_report.diagnosis.merges import AVERAGE, MERGES, TRIED, Mean
from fusion_report.diagnosis.predictions import Survey
from fusion_report.diagnosis.weights import measure_weights

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from fusion_core import ModelPool, Progress, Report, TaskPool, WeightSource
    from fusion_report.diagnosis.advice import Advice
    from fusion_report.diagnosis.figures import Answers, Figures

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Questions:
    """Settings of a diagnosis: what to measure besides weights."""

    #: whether to measure predictions on tasks
    tasks: bool = True
    #: whether to measure the base and the experts with labels
    labels: bool = True
    #: number of unlabeled examples per task
    samples: int = 64
    #: whether to try some merges
    trials: bool = False
    #: whether to measure models on the lines between models
    connectivity: bool = False


@dataclass(frozen=True)
class Diagnosis:
    """Measurements of a pool, and the predictions of the rules.

    There are no predictions if an expert scores below the base on its own task, because rules
    predict shares of the experts' scores.
    """

    figures: Figures
    advice: Sequence[Advice]
    #: scores of the base and the experts on their tasks; None without labels
    measured: Report | None = None

    @property
    def warnings(self) -> list[str]:
        """One warning about experts that score below the base on their own tasks, if any do."""
        return [] if self.measured is None else below_base_warnings({"": self.measured})

    def as_json(self) -> dict[str, Any]:
        """Return the diagnosis as JSON data."""
        measured = None if self.measured is None else self.measured.as_json()
        return {
            "schema": 2,
            "kind": {
                **asdict(self.figures.kind),
                "counted_as": matching_kinds(self.figures.kind),
            },
            "figures": self.figures.as_json(),
            "advice": [prediction.as_json() for prediction in self.advice],
            "cautions": [asdict(caution) for caution in find_cautions(self.figures)],
            "experts_below_base": measured and measured["experts_below_base"],
        }


def diagnose(
    recipe: Mapping[str, Any] | str | Path,
    questions: Questions | None = None,
    options: RunOptions | None = None,
) -> Diagnosis:
    """Predict which merges of a recipe's models will work; the recipe's algorithm is ignored.

    Writes nothing. Raises a `FusionError` for missing or misaligned models and for missing data of
    tasks. Tasks that need trust are skipped with a warning, even if the options give it. Nested
    recipes are merged, and need the trust that they ask for.
    """
    questions, options = questions or Questions(), options or RunOptions()
    raw = dict(load_recipe(recipe) if isinstance(recipe, str | Path) else recipe)
    dropped = {"algorithm", "output"} | ({"task_pool"} if not questions.tasks else set())
    raw = {key: value for key, value in raw.items() if key not in dropped}
    with hub.session(options.progress):
        planned = plan({**raw, "algorithm": Mean()}, replace(options, evaluate=questions.tasks))
        tasks = planned.trusted_tasks
        if tasks is not planned.used_tasks:
            _LOG.warning("tasks that need trust are skipped: only weights are measured")
        if questions.tasks:
            planned.check_data(untrusted=True)
        pool = load_models(planned)
        figures = measure(pool, tasks, questions, options)
        measured = _measure_experts(pool, tasks, questions, options)
    is_plausible = measured is None or not measured.experts_below_base
    return Diagnosis(figures, advise(figures) if is_plausible else [], measured)


def _measure_experts(
    pool: ModelPool[Any],
    tasks: TaskPool[Any] | None,
    questions: Questions,
    options: RunOptions,
) -> Report | None:
    """Measure the base and the experts on the experts' tasks with labels."""
    if tasks is None or not (questions.tasks and questions.labels) or pool.base is None:
        return None
    names = [task.name for task in _expert_tasks(pool, tasks)]
    if not names:
        return None
    device = resolve_device(options.device)
    return evaluate_experts(pool, tasks, names, device=device, progress=options.progress)


def measure(
    pool: ModelPool[Any],
    tasks: TaskPool[Any] | None,
    questions: Questions,
    options: RunOptions,
) -> Figures:
    """Measure an aligned pool, with at most one live model in memory at a time."""
    figures = measure_weights(pool, options.progress)
    adaptive = [*_expert_tasks(pool, tasks)] if questions.tasks and tasks is not None else []
    if not adaptive:
        return figures
    survey = Survey(pool, adaptive, questions.samples, resolve_device(options.device))
    merges = dict(_merges(pool, options, trials=questions.trials))
    answers = _measure_models(survey, merges, options.progress)
    paths = [*survey.measure_paths(options.progress)] if questions.connectivity else ()
    return replace(figures, answers=answers, paths=paths)


def _expert_tasks(pool: ModelPool[Any], tasks: TaskPool[Any]) -> Iterator[AdaptiveTask]:
    """Yield the tasks that have batches and an expert in the pool."""
    names = {pool.task_of(name) for name in pool.experts}
    return (task for task in tasks if isinstance(task, AdaptiveTask) and task.name in names)


def _measure_models(
    survey: Survey, merges: Mapping[str, WeightSource], progress: Progress
) -> dict[str, dict[str, Answers]]:
    """Measure the predictions of the experts, the base and the merges."""
    base = survey.pool.base
    models = {**({} if base is None else {"base": base}), **merges}
    with progress.track("measure models", total=1 + len(models)) as advance, show_notes_on(advance):
        answers = {"experts": survey.measure_experts()}
        advance(1)
        for name, weights in models.items():
            answers[name] = survey.measure(weights)
            advance(1, note=name)
    return answers


def _merges(
    pool: ModelPool[Any], options: RunOptions, *, trials: bool
) -> Iterator[tuple[str, WeightSource]]:
    """Yield the average and, for trials, all further merges that the installed plugins can make."""
    yield AVERAGE, merge(Mean(), pool, options)
    for name in TRIED[1:] if trials else ():
        try:
            yield name, merge(MERGES[name], pool, options)
        except (PluginError, RecipeError):  # the method is not installed, or needs a base
            continue
