"""Diagnose a pool: its weights and, where there are tasks, what its models predict."""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fusion_core import AdaptiveTask, RunOptions, hub, load_models, merge, plan, show_notes_on
from fusion_core.commands import below_base_warnings, evaluate_experts, load_recipe, resolve_device
from fusion_core.errors import PluginError, RecipeError
from fusion_report.diagnosis.advice import advise
from fusion_report.diagnosis.kinds import counted_as
from fusion_report.diagnosis.merges import AVERAGE, MERGES, TRIED, Mean
from fusion_report.diagnosis.of_weights import measure_weights
from fusion_report.diagnosis.predictions import Asked, paths

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from fusion_core import ModelPool, Progress, Report, TaskPool, WeightSource
    from fusion_report.diagnosis.advice import Advice
    from fusion_report.diagnosis.figures import Answers, Figures

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Questions:
    """What is asked beside the weights, of live models."""

    #: whether any are asked, where there are tasks
    tasks: bool = True
    #: whether experts and the base are measured with labels: only these tell whether they fit
    labels: bool = True
    #: unlabeled examples of each task
    samples: int = 64
    #: whether merges are tried
    trials: bool = False
    #: whether models on the lines between models are asked
    connectivity: bool = False


@dataclass(frozen=True)
class Diagnosis:
    """Figures, and what rules say of them.

    Nothing is expected of merges where experts score below the base on their own tasks: rules speak
    of shares of the experts' figures.
    """

    figures: Figures
    advice: Sequence[Advice]
    #: the base and the experts on their tasks; None where no labels were looked at
    measured: Report | None = None

    @property
    def warnings(self) -> list[str]:
        """Which experts score below the base on their own tasks."""
        return [] if self.measured is None else below_base_warnings({"": self.measured})

    def as_json(self) -> dict[str, Any]:
        """Return all of it as JSON's data."""
        said = [each.as_json() for each in self.advice]
        measured = None if self.measured is None else self.measured.as_json()
        return {
            "schema": 2,
            "kind": {
                **asdict(self.figures.kind),
                "counted_as": counted_as(self.figures.kind),
            },
            "figures": self.figures.as_json(),
            "advice": said,
            "experts_below_base": measured and measured["experts_below_base"],
        }


def diagnose(
    recipe: Mapping[str, Any] | str | Path,
    questions: Questions | None = None,
    options: RunOptions | None = None,
) -> Diagnosis:
    """Say what to expect of merges of a recipe's models; its algorithm is not looked at.

    Nothing is written. Raises a `FusionError` for models that are not here, or do not fit, and for
    tasks whose data is missing. Tasks that need trust are left alone, with a warning, even if the
    options give it; recipes in the places of models are carried out, and need theirs.
    """
    questions, options = questions or Questions(), options or RunOptions()
    raw = dict(load_recipe(recipe) if isinstance(recipe, str | Path) else recipe)
    dropped = {"algorithm", "output"} | ({"task_pool"} if not questions.tasks else set())
    raw = {name: each for name, each in raw.items() if name not in dropped}
    with hub.session(options.progress):
        planned = plan({**raw, "algorithm": Mean()}, replace(options, evaluate=questions.tasks))
        tasks = planned.trusted_tasks
        if tasks is not planned.used_tasks:
            _LOG.warning("the tasks need trust, and a diagnosis does not start them: weights alone")
        if questions.tasks:
            planned.check_data(untrusted=True)
        pool = load_models(planned)
        figures = measure(pool, tasks, questions, options)
        measured = _measured(pool, tasks, questions, options)
    fits = measured is None or not measured.experts_below_base
    return Diagnosis(figures, advise(figures) if fits else [], measured)


def _measured(
    pool: ModelPool[Any],
    tasks: TaskPool[Any] | None,
    questions: Questions,
    options: RunOptions,
) -> Report | None:
    """Measure the base and the experts on the tasks that are asked, with their labels."""
    if tasks is None or not (questions.tasks and questions.labels) or pool.base is None:
        return None
    names = [task.name for task in _adaptive(pool, tasks)]
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
    """Return the figures of an aligned pool; of live models, one is there at a time."""
    figures = measure_weights(pool, options.progress)
    asked = [*_adaptive(pool, tasks)] if questions.tasks and tasks is not None else []
    if not asked:
        return figures
    asking = Asked(pool, asked, questions.samples, resolve_device(options.device))
    merges = dict(_merges(pool, options, trials=questions.trials))
    answers = _answers(asking, merges, options.progress)
    lines = [*paths(asking, options.progress)] if questions.connectivity else ()
    return replace(figures, answers=answers, paths=lines)


def _adaptive(pool: ModelPool[Any], tasks: TaskPool[Any]) -> Iterator[AdaptiveTask]:
    """Yield the tasks that have unlabeled examples, and an expert in the pool."""
    own = {pool.task_of(name) for name in pool.experts}
    return (task for task in tasks if isinstance(task, AdaptiveTask) and task.name in own)


def _answers(
    asking: Asked, merges: Mapping[str, WeightSource], progress: Progress
) -> dict[str, dict[str, Answers]]:
    """Ask experts, the base and merges."""
    base = asking.pool.base
    models = {**({} if base is None else {"base": base}), **merges}
    with progress.track("ask models", total=1 + len(models)) as advance, show_notes_on(advance):
        found = {"experts": asking.experts()}
        advance(1)
        for name, weights in models.items():
            found[name] = asking.of(weights)
            advance(1, note=name)
    return found


def _merges(
    pool: ModelPool[Any], options: RunOptions, *, trials: bool
) -> Iterator[tuple[str, WeightSource]]:
    """Yield the mean and, for trials, the others whose plugins are here and can merge these."""
    yield AVERAGE, merge(Mean(), pool, options)
    for name in TRIED[1:] if trials else ():
        try:
            yield name, merge(MERGES[name], pool, options)
        except (PluginError, RecipeError):  # not installed, or it needs a base
            continue
