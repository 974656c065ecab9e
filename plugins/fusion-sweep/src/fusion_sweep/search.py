"""Searches of a sweep: a grid, random points, or points that Optuna suggests.

A search yields points and receives the scores of each: one per objective, higher is better, or None
if the point failed. It yields the same points in the same order whenever it receives the same
scores. So an interrupted sweep can resume without any saved state of the search.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING, Any, Literal

from fusion_core.commands import import_optional
from fusion_core.errors import RecipeError
from fusion_sweep.axes import Axis, Point, ValueList, make_point, point_key
from fusion_sweep.grids import check_draws, check_grid, make_extremes, make_grid
from fusion_sweep.ranges import Range

if TYPE_CHECKING:
    from optuna import Study, Trial

Scores = Sequence[float] | None
PointGenerator = Generator[list[Point], list[Scores], None]
Kind = Literal["grid", "random", "tpe", "cma-es"]


@dataclass(frozen=True)
class Search:
    """A kind of search, and its number of points; a grid has all points."""

    kind: Kind = "grid"
    count: int | None = None
    seed: int = 0

    def run(self, axes: Sequence[Axis], objectives: int) -> PointGenerator:
        """Start searching; raises `RecipeError` for axes that this kind cannot search."""
        if self.kind == "grid":
            return _yield_all(make_grid(axes))
        if self.count is None:
            raise RecipeError(f"a search by {self.kind} needs a number of points")
        if self.kind == "random":
            return _yield_all(_draw_points(axes, self.count, self.seed))
        return _ask_optuna(self._study(axes, objectives), axes, self.count)

    def check_size(self, axes: Sequence[Axis], seeds: int) -> None:
        """Raise `RecipeError` for more runs than a sweep can have, before any point is made."""
        if self.count is None:
            check_grid(axes, seeds)
        else:
            check_draws(self.kind, self.count, seeds)
        for axis in axes:
            if isinstance(axis, Range):
                axis.check_step()

    def extremes(self, axes: Sequence[Axis]) -> list[Point]:
        """Return the points to check before a search that suggests one point after the other."""
        return make_extremes(axes) if self.kind in {"tpe", "cma-es"} else []

    def size(self, axes: Sequence[Axis]) -> int:
        """Return the largest number of points."""
        return len(make_grid(axes)) if self.count is None else self.count

    def _study(self, axes: Sequence[Axis], objectives: int) -> Study:
        optuna = import_optional("optuna", "this search", "fusion-sweep[optuna]")
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        if self.kind == "cma-es":
            lists = [
                axis.name for axis in axes if isinstance(axis, ValueList) and len(axis.values) > 1
            ]
            if lists or objectives > 1:
                problem = f"{lists[0]} is a list" if lists else "there is more than one objective"
                raise RecipeError(
                    f"CMA-ES searches ranges of numbers for one objective, but {problem}",
                    hint="Search by --tpe, which supports both.",
                )
            sampler = optuna.samplers.CmaEsSampler(seed=self.seed)
        else:
            sampler = optuna.samplers.TPESampler(seed=self.seed)
        study: Study = optuna.create_study(directions=["maximize"] * objectives, sampler=sampler)
        return study


def _draw_points(axes: Sequence[Axis], count: int, seed: int) -> list[Point]:
    """Return random points without duplicates: fewer than `count` if there are no more."""
    random = Random(seed)  # noqa: S311 - not for security
    points: dict[str, Point] = {}
    for _ in range(20 * count):
        point = make_point(axes, [axis.draw(random) for axis in axes])
        points.setdefault(point_key(point), point)
        if len(points) == count:
            break
    return list(points.values())


def _yield_all(points: list[Point]) -> PointGenerator:
    yield points


def _ask_optuna(study: Study, axes: Sequence[Axis], count: int) -> PointGenerator:
    from optuna.trial import TrialState

    for _ in range(count):
        trial = study.ask()
        (scores,) = yield [make_point(axes, [_suggest(trial, axis) for axis in axes])]
        if scores is None:
            study.tell(trial, state=TrialState.FAIL)
        else:
            study.tell(trial, list(scores))


def _suggest(trial: Trial, axis: Axis) -> Any:  # noqa: ANN401 - any value of an option
    if isinstance(axis, ValueList):
        return axis.values[trial.suggest_categorical(axis.name, list(range(len(axis.values))))]
    low, high = axis.low, axis.high
    return axis.tidy(trial.suggest_float(axis.name, low, high, step=axis.step, log=axis.is_log))
