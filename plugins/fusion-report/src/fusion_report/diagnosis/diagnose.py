"""Measure a pool: its weights and, where there are tasks, what its models predict."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

import torch

from fusion_core import (
    AdaptiveTask,
    Progress,
    RunOptions,
    hub,
    load_recipe,
    merge,
    models_of,
    noting,
    plan,
)
from fusion_core.errors import PluginError, RecipeError
from fusion_core.weights import Linear, MergedSource, Operands
from fusion_report.diagnosis.advice import advise
from fusion_report.diagnosis.figures import Answers, Expert, Figures, Part, mean
from fusion_report.diagnosis.merges import AVERAGE, MERGES, TRIED, Mean
from fusion_report.diagnosis.predictions import Asked, paths
from fusion_report.diagnosis.ranks import effective_ranks
from fusion_report.diagnosis.signs import conflicts
from fusion_report.vectors import merged_infos, read_vectors

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from fusion_core import ModelPool, TaskPool, WeightSource
    from fusion_report.diagnosis.advice import Advice
    from fusion_report.vectors import TaskVectors


@dataclass(frozen=True, kw_only=True)
class Questions:
    """What is asked of live models."""

    #: unlabeled examples of each task
    samples: int = 64
    #: whether merges are tried
    trials: bool = False
    #: whether models on the lines between models are asked
    connectivity: bool = False
    device: torch.device = torch.device("cpu")


@dataclass(frozen=True)
class Diagnosis:
    """Figures, and what rules say of them."""

    figures: Figures
    advice: Sequence[Advice]

    def as_json(self) -> dict[str, Any]:
        """Return all of it as JSON's data."""
        said = [each.as_json() for each in self.advice]
        return {"schema": 1, "figures": self.figures.as_json(), "advice": said}


def diagnose(  # noqa: PLR0913 - what is asked, and where
    recipe: Mapping[str, Any] | str | Path,
    *,
    tasks: bool = True,
    trials: bool = False,
    connectivity: bool = False,
    samples: int = 64,
    device: str = "cpu",
    progress: Progress | None = None,
    block: frozenset[str] = frozenset(),
) -> Diagnosis:
    """Say what to expect of merges of a recipe's models; its algorithm is not looked at.

    Without `tasks`, of weights alone. `samples` unlabeled examples of each task are looked at.
    `trials` merges and asks some candidates, `connectivity` models on the lines between models.
    Nothing is written. Raises a `FusionError` for models that are not here, or do not fit.
    """
    progress = progress or Progress()
    raw = dict(load_recipe(recipe) if isinstance(recipe, str | Path) else recipe)
    dropped = {"output"} if tasks else {"output", "task_pool"}
    raw = {name: each for name, each in raw.items() if name not in dropped}
    with hub.session(progress):
        planned = plan(
            {**raw, "algorithm": Mean()},
            RunOptions(evaluate=tasks, device=device, progress=progress, block=block),
        )
        if tasks:
            planned.check_data()
        asked = Questions(
            samples=samples, trials=trials, connectivity=connectivity, device=planned.device
        )
        found = measure(models_of(planned), planned.tasks if tasks else None, asked, progress)
    return Diagnosis(found, advise(found))


def measure(
    pool: ModelPool[Any],
    tasks: TaskPool[Any] | None,
    questions: Questions,
    progress: Progress | None = None,
) -> Figures:
    """Return the figures of an aligned pool; without tasks, or any that can be asked, of weights.

    Weights are read block by block, several times, in memory that does not grow with the models.
    Live models are built one at a time.
    """
    progress = progress or Progress()
    figures = _of_weights(pool, progress)
    asked = [] if tasks is None else [*_adaptive(pool, tasks)]
    if not asked:
        return figures
    asking = Asked(pool, asked, questions.samples, questions.device)
    answers = _answers(asking, questions, progress)
    lines = [*paths(asking, progress)] if questions.connectivity else ()
    return replace(figures, answers=answers, paths=lines)


def _of_weights(pool: ModelPool[Any], progress: Progress) -> Figures:
    operands = Operands(_origin(pool), pool.experts)
    vectors = read_vectors(operands, progress)
    with progress.track("compare signs", total=1) as advance:
        signs = conflicts(operands)
        advance(1)
    ranks = effective_ranks(operands, progress)
    rows = zip(
        vectors.experts, vectors.norms, signs.changed, ranks.ranks, ranks.shares, strict=True
    )
    experts = {
        name: Expert(pool.task_of(name), norm, _quotient(norm, vectors.base_norm), *others)
        for name, norm, *others in rows
    }
    return Figures(
        experts,
        pool.base is not None,
        sum(info.numel for info in merged_infos(operands)),
        vectors.cosines,
        _quotient(vectors.norm_of_sum, fmean(vectors.norms)),
        signs.conflict,
        signs.opposed,
        _parts(vectors),
        ranks.matrices,
        ranks.is_sampled,
    )


def _origin(pool: ModelPool[Any]) -> WeightSource:
    """Return what task vectors start from: the base or, without one, the experts' mean."""
    if pool.base is not None:
        return pool.base
    count = len(pool.experts)
    return MergedSource(Linear((1 / count,) * count, relative=False), Operands(None, pool.experts))


def _parts(vectors: TaskVectors) -> dict[str, Part]:
    base = vectors.base_norm_by_part
    return {
        part: Part(_quotient(_root_mean_square(norms), base[part]), vectors.mean_cosine(part))
        for part, norms in vectors.norms_by_part.items()
    }


def _root_mean_square(values: Sequence[float]) -> float:
    return fmean(value**2 for value in values) ** 0.5


def _quotient(value: float, whole: float) -> float:
    return value / whole if whole else float("nan")


def _adaptive(pool: ModelPool[Any], tasks: TaskPool[Any]) -> Iterator[AdaptiveTask]:
    """Yield the tasks that have unlabeled examples, and an expert in the pool."""
    own = {pool.task_of(name) for name in pool.experts}
    return (each for each in tasks if isinstance(each, AdaptiveTask) and each.name in own)


def _answers(
    asking: Asked, questions: Questions, progress: Progress
) -> dict[str, dict[str, Answers]]:
    merges = dict(_merges(asking.pool, questions))
    with progress.track("ask models", total=2 + len(merges)) as advance, noting(advance):
        found = {"experts": asking.experts()}
        advance(1)
        if asking.pool.base is not None:
            found["base"] = asking.of(asking.pool.base)
        advance(1)
        for name, merged in merges.items():
            found[name] = asking.of(merged)
            advance(1, note=name)
    return found


def _merges(pool: ModelPool[Any], questions: Questions) -> Iterator[tuple[str, WeightSource]]:
    """Yield the mean and, if merges are tried, those whose plugins are here and can merge these."""
    yield AVERAGE, merge(Mean(), pool)
    for name in TRIED if questions.trials else ():
        if name == AVERAGE:
            continue
        try:
            yield name, merge(MERGES[name], pool)
        except (PluginError, RecipeError):  # not installed, or it needs a base
            continue
