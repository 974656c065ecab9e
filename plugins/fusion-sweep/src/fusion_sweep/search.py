"""Where a sweep looks: a grid, points drawn at random, or where Optuna expects the best.

A search yields points and is sent how good each was: a score an objective, higher is better; None
for one that failed. It draws the same points in the same order whenever it is told the same, which
is all that an interrupted sweep needs to go on.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING, Any, Literal

from fusion_core.commands import import_optional
from fusion_core.errors import RecipeError
from fusion_sweep.axes import Axis, Listed, Point, key_of, points_of
from fusion_sweep.grids import check_draws, check_grid, grid
from fusion_sweep.ranges import Range

if TYPE_CHECKING:
    from types import ModuleType

    from optuna import Study, Trial

Scores = Sequence[float] | None
Searching = Generator[list[Point], list[Scores], None]
Kind = Literal["grid", "random", "tpe", "cma-es"]


@dataclass(frozen=True)
class Search:
    """A kind of search, and how many points it looks at; a grid looks at all of its own."""

    kind: Kind = "grid"
    count: int | None = None
    seed: int = 0

    def run(self, axes: Sequence[Axis], objectives: int) -> Searching:
        """Start searching; raises `RecipeError` for axes that it cannot search."""
        if self.kind == "grid":
            return _all_at_once(grid(axes))
        if self.count is None:
            raise RecipeError(f"a search by {self.kind} needs a number of points")
        if self.kind == "random":
            return _all_at_once(drawn(axes, self.count, self.seed))
        return _asked(self._study(axes, objectives), axes, self.count)

    def check_size(self, axes: Sequence[Axis], seeds: int) -> None:
        """Raise `RecipeError` for more runs than a sweep has, before any point is made."""
        if self.count is None:
            check_grid(axes, seeds)
        else:
            check_draws(self.kind, self.count, seeds)
        for axis in axes:
            if isinstance(axis, Range):
                axis.check_step()

    def size(self, axes: Sequence[Axis]) -> int:
        """Return how many points are looked at, at most."""
        return len(grid(axes)) if self.count is None else self.count

    def _study(self, axes: Sequence[Axis], objectives: int) -> Study:
        optuna = _optuna()
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        if self.kind == "cma-es":
            _check_numbers(axes, objectives)
            sampler = optuna.samplers.CmaEsSampler(seed=self.seed)
        else:
            sampler = optuna.samplers.TPESampler(seed=self.seed)
        study: Study = optuna.create_study(directions=["maximize"] * objectives, sampler=sampler)
        return study


def drawn(axes: Sequence[Axis], count: int, seed: int) -> list[Point]:
    """Return points drawn at random, each once: fewer than `count` where there are no more."""
    random = Random(seed)  # noqa: S311 - nothing secret
    found: dict[str, Point] = {}
    for _ in range(20 * count):
        point = points_of(axes, [axis.draw(random) for axis in axes])
        found.setdefault(key_of(point), point)
        if len(found) == count:
            break
    return list(found.values())


def _all_at_once(points: list[Point]) -> Searching:
    yield points


def _asked(study: Study, axes: Sequence[Axis], count: int) -> Searching:
    from optuna.trial import TrialState

    for _ in range(count):
        trial = study.ask()
        (scores,) = yield [points_of(axes, [_suggested(trial, axis) for axis in axes])]
        if scores is None:
            study.tell(trial, state=TrialState.FAIL)
        else:
            study.tell(trial, list(scores))


def _suggested(trial: Trial, axis: Axis) -> Any:  # noqa: ANN401 - a value of an option
    if isinstance(axis, Listed):
        return axis.values[trial.suggest_categorical(axis.name, list(range(len(axis.values))))]
    low, high = axis.low, axis.high
    found = trial.suggest_float(axis.name, low, high, step=axis.step, log=axis.is_log)
    return axis.tidy(found)


def _check_numbers(axes: Sequence[Axis], objectives: int) -> None:
    listed = [axis.name for axis in axes if isinstance(axis, Listed)]
    if listed or objectives > 1:
        problem = f"{listed[0]} is a list" if listed else "there is more than one objective"
        raise RecipeError(
            f"CMA-ES searches ranges of numbers for one objective, and {problem}",
            hint="Search by --tpe, which takes both.",
        )


def _optuna() -> ModuleType:
    return import_optional("optuna", "this search", "fusion-sweep[optuna]")
