"""A sweep: points are searched, trials are run that nobody has run before, the best are kept."""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fusion_core import Progress, RunOptions, plan, run_fusion
from fusion_core.commands import load_recipe
from fusion_core.errors import RecipeError, WorkerError
from fusion_sweep.axes import (
    ALGORITHM,
    Axis,
    Point,
    alternatives,
    axis_of,
    key_of,
    points_of,
    recipe_at,
)
from fusion_sweep.bench import Bench, On
from fusion_sweep.crew import crew_for
from fusion_sweep.found import Found
from fusion_sweep.objectives import Objective, objectives_of
from fusion_sweep.results import Group
from fusion_sweep.rows import Swept
from fusion_sweep.search import Search
from fusion_sweep.store import Store
from fusion_sweep.trial import Trial, digest

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from fusion_core.commands import Plan
    from fusion_sweep.crew import Crew
    from fusion_sweep.search import Scores

_LOG = logging.getLogger(__name__)
_ON_TEST = "options are chosen on the test examples themselves, so the best figure flatters: %s"
_OF_UNKNOWN_CODE = (
    "%d runs of this sweep in %s are run again: an earlier version kept them, without what tells "
    "their code and data"
)
_UNIDENTIFIED = (
    "the next sweep runs these trials again: models, tasks or code that exist in memory only, or "
    "tasks without an identity, cannot be told from others"
)
#: What the best is measured on once more, by what it was chosen on.
_MEASURED_ON: Mapping[On, On] = {"half": "other half", "unlabeled": "test"}
#: What a report of the best says.
_SAID: Mapping[On, str] = {
    "half": "by the labels of a half of the test examples",
    "test": "by the labels of the test examples",
    "unlabeled": "without labels",
}


def sweep(  # noqa: PLR0913 - what is tried, how, and by what it is judged
    recipe: Mapping[str, Any] | str | Path,
    *,
    over: Mapping[str, Any],
    algorithms: Sequence[str] = (),
    seeds: int = 1,
    search: Search | None = None,
    objectives: Sequence[str] = ("average",),
    on: On | None = None,
    samples: int = 256,
    keep: int = 0,
    output: str | Path | None = None,
    store: str | Path | None = None,
    scratch: str | Path | None = None,
    options: RunOptions | None = None,
) -> Found:
    """Run a recipe at many points, each once and for ever, and return what was found.

    `over` maps options (`algorithm.scale`) to values: a list, or text as `--over` takes it.
    `algorithms` are tried in turns, a pipeline as `trim+average`. Options are chosen by
    `objectives` (`average`, `normalised`, `worst`, a task; without labels `entropy`, `agreement`)
    on a half of the test examples where tasks have halves, and else `on` the `test` examples. The
    best is then measured on what chose nothing. The `keep` best are written to `output` by
    ordinary runs. Trials are kept in `store`, and what is there is not run again.

    Raises a `FusionError` for what is wrong with any trial before one is run; a trial that fails
    does not stop the others.
    """
    raw = dict(load_recipe(recipe) if isinstance(recipe, str | Path) else recipe)
    axes: list[Axis] = [alternatives(",".join(algorithms))] if algorithms else []
    axes += [axis_of(name, given) for name, given in over.items()]
    if not axes and seeds == 1:
        raise RecipeError(
            "nothing is swept over", hint="Name an option: --over algorithm.scale=0:1:0.1"
        )
    search = search or Search()
    search.check_size(axes, seeds)
    options = options or RunOptions()
    bench = Bench(
        options=replace(options, progress=Progress()),
        samples=samples,
        scratch=None if scratch is None else Path(scratch),
    )
    with Store(None if store is None else Path(store)) as opened:
        made = Sweep(raw, axes, seeds, search, bench, opened, options)
        made.prepare(objectives, on)
        if keep:
            made.check(keep, output)
        found = made.run()
        return replace(found, written=made.write(found, keep, output)) if keep else found


@dataclass
class Sweep:
    """A sweep under way: `prepare`, then `run` and, for the best, `write`."""

    raw: Mapping[str, Any]
    axes: Sequence[Axis]
    seeds: int
    search: Search
    bench: Bench
    store: Store
    options: RunOptions
    objectives: Sequence[Objective] = ()
    on: On = "test"
    id: str = ""
    _trials: list[Trial] = field(default_factory=list)
    _first: Plan | None = None
    #: the finished trials of each point
    _groups: dict[str, Group] = field(default_factory=dict)
    _best: Group | None = None

    def prepare(self, objectives: Sequence[str], on: On | None) -> None:
        """Settle what is searched for and on what; raises a `FusionError` for what cannot be."""
        first = points_of(self.axes, [axis.first for axis in self.axes])
        self._first = planned = self._planned(first, self._first_seed)
        tasks = self.bench.tasks(planned, "test")
        self.objectives = objectives_of(objectives, tasks.names)
        self.bench.asked = [objective.name for objective in self.objectives]
        self.on = self._settled(on, planned)
        about = self._about()
        self.id = digest(about)
        started = datetime.now(UTC).isoformat(timespec="seconds")
        self._warn_of_unknown(planned)
        self.store.begin(Swept(self.id, started, about))

    def _warn_of_unknown(self, planned: Plan) -> None:
        """Say which trials are run again although a store has them, or will have them."""
        if count := self.store.count_unidentified(self.id):
            _LOG.warning(_OF_UNKNOWN_CODE, count, self.store.path)
        if self.bench.identify(planned, self.on) is None:
            _LOG.warning(_UNIDENTIFIED)

    def run(self) -> Found:
        """Run what nobody has run yet, and return all of it."""
        assert self._first is not None, "prepare comes first"  # noqa: S101
        with crew_for(self._first, self.bench, self.store, self._measured) as crew:
            return self._tested(self._searched(crew), crew)

    def _searched(self, crew: Crew) -> Found:
        searching = self.search.run(self.axes, len(self.objectives))
        total = self.search.size(self.axes) * self.seeds
        with self.options.progress.track("sweep", total=total, unit="runs") as advance:
            try:
                points = next(searching)
                while True:
                    points = searching.send(self._scores(points, crew, advance))
            except StopIteration:
                pass
            except (KeyboardInterrupt, WorkerError) as stopped:
                said = f"{crew.count} of {total} runs are kept"
                stopped.add_note(f"{said}; the same command goes on with the others.")
                raise
        return Found(self.id, self.objectives, self.on, self._trials)

    def write(self, found: Found, count: int, output: str | Path | None) -> list[Path]:
        """Write the best points' first runs by ordinary ones: to `output`, or folders in it."""
        said = f"by a sweep of {len(found.trials)} runs, {_SAID[self.on]}"
        options = replace(self.options, chosen=said)
        paths = self._paths(count, output)[: len(found.groups)]
        for group, path in zip(found.groups, paths, strict=False):
            run_fusion(self._written(group.trials[0], path), options=options)
        return paths

    def check(self, count: int, output: str | Path | None) -> None:
        """Raise `OutputError` for a place where nothing can be written, before anything is run."""
        point = points_of(self.axes, [axis.first for axis in self.axes])
        first = Trial("", {}, {}, point=point, seed=self._first_seed)
        for path in self._paths(count, output):
            plan(self._written(first, path), self.options)

    def _written(self, trial: Trial, path: Path) -> dict[str, Any]:
        """Return the recipe that writes a trial's model."""
        recipe = self._recipe(trial)
        return {**recipe, "output": {**recipe.get("output", {}), "path": str(path)}}

    def _paths(self, count: int, output: str | Path | None) -> list[Path]:
        place = Path(output) if output is not None else Path("outputs") / f"sweep-{self.id[:8]}"
        return [place] if count == 1 else [place / str(n) for n in range(1, count + 1)]

    @property
    def _first_seed(self) -> int:
        return int(self.raw.get("seed", 0))

    def _settled(self, on: On | None, planned: Plan) -> On:
        """Return what options are chosen on: halves where tasks have some, if nothing is said."""
        if not self.objectives[0].needs_labels:
            if on is not None:
                raise RecipeError(f"{self.objectives[0].name} needs no labels, so none of {on}")
            return "unlabeled"
        if on == "test":
            _LOG.warning(_ON_TEST, "--on half chooses on a half of them")
            return "test"
        try:
            self.bench.tasks(planned, "half")
        except RecipeError as error:
            if on == "half":
                raise
            _LOG.warning(_ON_TEST, error.message)
            return "test"
        return "half"

    def _about(self) -> dict[str, Any]:
        """Say what this sweep is: the same for the same command."""
        return {
            "recipe": {name: each for name, each in self.raw.items() if name != "executor"},
            "over": {axis.name: axis.said for axis in self.axes},
            "seeds": self.seeds,
            "search": asdict(self.search),
            "objectives": [objective.name for objective in self.objectives],
            "on": self.on,
            "samples": self.bench.samples,
        }

    def _scores(
        self, points: Sequence[Point], crew: Crew, advance: Callable[..., None]
    ) -> list[Scores]:
        """Run points at every seed; returns the score of each."""
        seeds = range(self._first_seed, self._first_seed + self.seeds)
        named = [self._named(point, seed) for point in points for seed in seeds]
        self.store.add(self.id, named)
        for trial in crew.finish(named):
            self._count(trial)
            advance(1, note=self._best_so_far())
        groups = [self._groups.get(key_of(point)) for point in points]
        return [None if group is None else group.scores for group in groups]

    def _count(self, trial: Trial) -> None:
        self.store.check_measured(trial, self.objectives)
        self._trials.append(trial)
        if trial.report is not None:
            key = key_of(trial.point)
            others = self._groups[key].trials if key in self._groups else []
            group = self._groups[key] = Group([*others, trial], self.objectives)
            if self._best is None or group.scores > self._best.scores:
                self._best = group
            elif self._best.point == group.point:  # another seed was worse
                self._best = max(self._groups.values(), key=lambda each: each.scores)

    def _best_so_far(self) -> str:
        if (best := self._best) is None:
            return ""
        first = self.objectives[0]
        return f"best {first.name} {best.metric(first).shown(best.mean(first))}"

    def _named(self, point: Point, seed: int) -> Trial:
        planned = self._planned(point, seed)
        return replace(self.bench.name(planned, self.on), point=point, seed=seed)

    def _planned(self, point: Point, seed: int) -> Plan:
        """Plan a run, before any is run; raises a `RecipeError` that says of which point it is."""
        try:
            return self.bench.plan(recipe_at(self.raw, point, seed))
        except RecipeError as error:
            said = ", ".join(f"{name}={value}" for name, value in point.items())
            one = "Of one algorithm alone: --over algorithm.NAME.OPTION=VALUES"
            several = any(axis.name == ALGORITHM and len(axis.grid()) > 1 for axis in self.axes)
            hints = [error.hint, one if several else None]
            raise RecipeError(
                f"at {said}: {error.message}", hint="\n".join(filter(None, hints)) or None
            ) from error

    def _measured(self, trial: Trial) -> Trial:
        return self.bench.run(self.bench.plan(self._recipe(trial)), trial)

    def _recipe(self, trial: Trial) -> dict[str, Any]:
        return recipe_at(self.raw, trial.point, trial.seed)

    def _tested(self, found: Found, crew: Crew) -> Found:
        """Measure the best on examples that chose nothing, where there are such."""
        on = _MEASURED_ON.get(self.on)
        if on is None or not found.groups:
            return found
        best = found.best()
        named = self.bench.name(self.bench.plan(self._recipe(best)), on)
        named = replace(named, point=best.point, seed=best.seed)
        with self.options.progress.track("measure the best", total=1) as advance:
            (tested,) = crew.finish([named])
            advance(1)
        self.store.set_tested(self.id, tested.id)
        return replace(found, tested=tested)
