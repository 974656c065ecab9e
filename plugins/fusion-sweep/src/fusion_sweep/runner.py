"""The sweep itself: search points, run new trials, measure and write the best."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
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
    algorithm_axis,
    fixed_values,
    make_point,
    parse_axis,
    point_key,
    recipe_for_point,
)
from fusion_sweep.evaluator import Examples, TrialEvaluator
from fusion_sweep.objectives import Objective, parse_objectives
from fusion_sweep.results import Group, SweepResult
from fusion_sweep.rows import SweepRecord
from fusion_sweep.scheduler import open_scheduler
from fusion_sweep.search import Search
from fusion_sweep.store import Store
from fusion_sweep.trial import Trial, digest

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from fusion_core.commands import Plan
    from fusion_sweep.scheduler import TrialScheduler
    from fusion_sweep.search import PointGenerator, Scores

_LOG = logging.getLogger(__name__)
_CHOOSING_ON_TEST = "options are chosen on the test set itself, which inflates the best score: %s"
_OLD_IDENTITY = (
    "%d runs of this sweep in %s are run again: an earlier version saved them without the identity "
    "of their code and data"
)
_NO_IDENTITY = (
    "the next sweep runs these trials again: their models, tasks or code exist in memory only, or "
    "their tasks have no identity"
)
_NOT_WRITTEN = (
    "models of --keep that are not written: %d of %d, because their objective is NaN or infinitely "
    "bad, or a seed failed"
)
#: The examples to measure the best on, by the examples it was chosen on.
_TEST_ON: Mapping[Examples, Examples] = {"half": "other half", "unlabeled": "test"}
#: How options were chosen, for the report of a written model.
_CHOSEN_BY: Mapping[Examples, str] = {
    "half": "by the labels of a half of the test examples",
    "test": "by the labels of the test examples",
    "unlabeled": "without labels",
}


def sweep(  # noqa: PLR0913 - what to try, how, and what to choose by
    recipe: Mapping[str, Any] | str | Path,
    *,
    over: Mapping[str, Any],
    algorithms: Sequence[str] = (),
    seeds: int = 1,
    search: Search | None = None,
    objectives: Sequence[str] = ("average",),
    on: Examples | None = None,
    samples: int = 256,
    keep: int = 0,
    output: str | Path | None = None,
    store: str | Path | None = None,
    scratch: str | Path | None = None,
    options: RunOptions | None = None,
) -> SweepResult:
    """Run a recipe at many points, skipping runs that the store has, and return the result.

    `over` maps options (`algorithm.scale`) to values: a list, or text as `--over` takes it.
    `algorithms` are tried in turn; a pipeline is written `trim+average`. Options are chosen by
    `objectives`: `average`, `normalised`, `worst`, a task, or without labels `entropy` and
    `agreement`. They are chosen on one half of the test examples if tasks have halves, and
    otherwise `on` the `test` examples. The best point is then measured on examples that were not
    used to choose. The `keep` best are written to `output` by ordinary runs.

    Raises `FusionError` for any invalid trial before the first one runs. A trial that fails does
    not stop the others.
    """
    raw = dict(load_recipe(recipe) if isinstance(recipe, str | Path) else recipe)
    axes: list[Axis] = []
    if algorithms:
        axes.append(algorithm_axis(algorithms))
        if isinstance(shared := raw.get(ALGORITHM), Mapping) and shared and "name" not in shared:
            over = {**fixed_values(raw.pop(ALGORITHM)), **over}
    axes += [parse_axis(name, given) for name, given in over.items()]
    if not axes and seeds == 1:
        raise RecipeError(
            "nothing to sweep over", hint="Name an option: --over algorithm.scale=0:1:0.1"
        )
    search = search or Search()
    search.check_size(axes, seeds)
    options = options or RunOptions()
    bench = TrialEvaluator(
        options=replace(options, progress=Progress()),
        samples=samples,
        scratch=None if scratch is None else Path(scratch),
    )
    with Store(None if store is None else Path(store)) as opened:
        running = Sweep(raw, axes, seeds, search, bench, opened, options)
        running.prepare(objectives, on)
        if keep:
            running.check_outputs(keep, output)
        result = running.run()
        return replace(result, written=running.write(result, keep, output)) if keep else result


@dataclass
class Sweep:
    """A running sweep: call `prepare`, then `run` and, to write the best models, `write`."""

    raw: Mapping[str, Any]
    axes: Sequence[Axis]
    seeds: int
    search: Search
    bench: TrialEvaluator
    store: Store
    options: RunOptions
    objectives: Sequence[Objective] = ()
    on: Examples = "test"
    id: str = ""
    #: the trials by point and seed
    _trials: dict[tuple[str, int], Trial] = field(default_factory=dict)
    # set by `prepare`
    _first_plan: Plan = field(init=False)
    _points: PointGenerator = field(init=False)
    _record: SweepRecord = field(init=False)
    #: the finished trials of each point
    _groups: dict[str, Group] = field(default_factory=dict)
    _best: Group | None = None

    def prepare(self, objectives: Sequence[str], on: Examples | None) -> None:
        """Resolve objectives and examples, and start the search.

        Raises `FusionError` for an invalid first trial, objective or choice of examples, for axes
        that the search does not support, and for an invalid end of a range that it draws from.
        """
        for point in self.search.extremes(self.axes):
            self._plan(point, self._first_seed)
        first = make_point(self.axes, [axis.first for axis in self.axes])
        self._first_plan = planned = self._plan(first, self._first_seed)
        tasks = self.bench.tasks(planned, "test")
        self.objectives = parse_objectives(objectives, tasks.names)
        self.bench.unlabeled_metrics = [objective.name for objective in self.objectives]
        self._points = self.search.run(self.axes, len(self.objectives))
        self.on = self._choose_examples(on, planned)
        paths = planned.recipe_in(Path("/"))
        # Identifies the sweep: it is the same for the same command.
        about = {
            "recipe": {name: value for name, value in self.raw.items() if name != "executor"},
            # with absolute paths: other projects may have a recipe of the same text
            "pools": {name: paths[name] for name in ("model_pool", "task_pool") if name in paths},
            "over": {axis.name: axis.spec for axis in self.axes},
            "seeds": self.seeds,
            "search": asdict(self.search),
            "objectives": [objective.name for objective in self.objectives],
            "on": self.on,
            "samples": self.bench.samples,
        }
        self.id = digest(about)
        if count := self.store.count_unidentified(self.id):
            _LOG.warning(_OLD_IDENTITY, count, self.store.path)
        if self.bench.identify(planned, self.on) is None:
            _LOG.warning(_NO_IDENTITY)
        started = datetime.now(UTC).isoformat(timespec="seconds")
        self._record = SweepRecord(self.id, started, about)

    def _choose_examples(self, on: Examples | None, planned: Plan) -> Examples:
        """Return the examples to choose options on; by default one half, if tasks have halves."""
        if not self.objectives[0].needs_labels:
            if on is not None:
                raise RecipeError(
                    f"conflicting options: {self.objectives[0].name} needs no labels, so --on {on} "
                    "does not apply",
                    hint="Leave out --on.",
                )
            return "unlabeled"
        if on == "test":
            _LOG.warning(_CHOOSING_ON_TEST, "--on half chooses on one half of it")
            return "test"
        try:
            self.bench.tasks(planned, "half")
        except RecipeError as error:
            if on == "half":
                raise
            _LOG.warning(_CHOOSING_ON_TEST, error.message)
            return "test"
        return "half"

    def run(self) -> SweepResult:
        """Run the trials that the store lacks, and return the result of all."""
        total = self.search.size(self.axes) * self.seeds
        with open_scheduler(self._first_plan, self.bench, self.store, self._run_trial) as scheduler:
            try:
                return self._test_best(self._search_points(scheduler, total), scheduler)
            except (KeyboardInterrupt, WorkerError) as error:
                error.add_note(
                    f"{scheduler.count} of {total} runs are saved; the same command continues with "
                    "the others."
                )
                raise

    def _search_points(self, scheduler: TrialScheduler, total: int) -> SweepResult:
        with self.options.progress.track("sweep", total=total, unit="runs") as advance:
            try:
                points = next(self._points)
                while True:
                    points = self._points.send(self._score(points, scheduler, advance))
            except StopIteration:
                pass
        return SweepResult(self.id, self.objectives, self.on, [*self._trials.values()])

    def _score(
        self, points: Sequence[Point], scheduler: TrialScheduler, advance: Callable[..., None]
    ) -> list[Scores]:
        """Run points with every seed; return the scores of each point.

        All are planned before the sweep is added to the store, so an invalid one leaves no sweep.
        """
        trials = [
            replace(self.bench.name(self._plan(point, seed), self.on), point=point, seed=seed)
            for point in points
            for seed in self._seeds
        ]
        self.store.add_trials(self._record, trials)
        for trial in scheduler.finish(trials):
            try:
                self._add_result(trial)
                note = self._describe_best()
            except RecipeError:  # the tasks do not define an objective, so nothing can be ranked
                self.store.forget_sweep(self.id)
                raise
            advance(1, note=note)
        groups = [self._groups.get(point_key(point)) for point in points]
        return [None if group is None else group.scores for group in groups]

    def _add_result(self, trial: Trial) -> None:
        self.store.check_measured(trial, self.objectives)
        key = point_key(trial.point)
        if (key, trial.seed) in self._trials:  # Optuna may suggest a point again
            return
        self._trials[key, trial.seed] = trial
        trials = [self._trials[key, seed] for seed in self._seeds if (key, seed) in self._trials]
        finished = [one for one in trials if one.report is not None]
        if not finished:
            return
        group = Group(finished, self.objectives, is_complete=len(finished) == len(trials))
        self._groups[key] = group
        if self._best is None or group.scores > self._best.scores:
            self._best = group
        elif self._best.point == group.point:  # this seed lowered the mean of the best
            self._best = max(self._groups.values(), key=lambda group: group.scores)

    def _describe_best(self) -> str:
        if (best := self._best) is None:
            return ""
        first = self.objectives[0]
        return f"best {first.name} {best.metric(first).shown(best.mean(first))}"

    def _test_best(self, result: SweepResult, scheduler: TrialScheduler) -> SweepResult:
        """Measure the best point on examples that were not used to choose, if there are any."""
        on = _TEST_ON.get(self.on)
        if on is None or not result.groups:
            return result
        best = result.best()
        planned = self.bench.plan(self._recipe(best))
        if self.on == "unlabeled" and planned.tasks is not None and planned.tasks.transductive:
            return result  # the unlabeled examples are the test examples
        trial = self.bench.name(planned, on)
        trial = replace(trial, point=best.point, seed=best.seed)
        with self.options.progress.track("measure the best", total=1) as advance:
            (tested,) = scheduler.finish([trial])
            advance(1)
        self.store.set_tested(self.id, tested.id)
        return replace(result, tested=tested)

    def check_outputs(self, count: int, output: str | Path | None) -> None:
        """Raise `OutputError` before any run if the best models cannot be written."""
        point = make_point(self.axes, [axis.first for axis in self.axes])
        first = Trial("", {}, {}, point=point, seed=self._first_seed)
        for path in self._paths(count, output):
            plan(self._recipe(first, path), self.options)

    def write(self, result: SweepResult, count: int, output: str | Path | None) -> list[Path]:
        """Write the first trial of the best points, to `output` or numbered directories in it.

        Points whose score is NaN or infinitely bad are not written.
        """
        chosen = f"by a sweep of {len(result.trials)} runs, {_CHOSEN_BY[self.on]}"
        options = replace(self.options, chosen=chosen)
        best = result.groups[:count]
        groups = [group for group in best if group.scores[0] > -math.inf]
        if len(groups) < len(best):
            _LOG.warning(_NOT_WRITTEN, len(best) - len(groups), len(best))
        paths = self._paths(count, output)[: len(groups)]
        try:
            for group, path in zip(groups, paths, strict=True):
                run_fusion(self._recipe(group.trials[0], path), options=options)
        except KeyboardInterrupt as interrupt:
            interrupt.add_note("All runs of the sweep are saved.")
            raise
        return paths

    def _paths(self, count: int, output: str | Path | None) -> list[Path]:
        path = Path(output) if output is not None else Path("outputs") / f"sweep-{self.id[:8]}"
        return [path] if count == 1 else [path / str(n) for n in range(1, count + 1)]

    @property
    def _first_seed(self) -> int:
        seed = self.raw.get("seed", 0)
        if type(seed) is not int:
            raise RecipeError(f"seed = {seed!r}: a sweep needs an integer")
        return seed

    @property
    def _seeds(self) -> range:
        return range(self._first_seed, self._first_seed + self.seeds)

    def _plan(self, point: Point, seed: int) -> Plan:
        """Plan a trial; raises `RecipeError` that names the point."""
        try:
            return self.bench.plan(recipe_for_point(self.raw, point, seed))
        except RecipeError as error:
            values = ", ".join(f"{name}={value}" for name, value in point.items())
            hints = [error.hint] if error.hint else []
            if any(axis.name == ALGORITHM and len(axis.grid()) > 1 for axis in self.axes):
                hints.append("For an option of one algorithm: --over algorithm.NAME.OPTION=VALUES")
            raise RecipeError(
                f"at {values}: {error.message}", hint="\n".join(hints) or None
            ) from error

    def _run_trial(self, trial: Trial) -> Trial:
        return self.bench.run(self.bench.plan(self._recipe(trial)), trial)

    def _recipe(self, trial: Trial, output: Path | None = None) -> dict[str, Any]:
        """Return a trial's recipe; with `output`, one that writes the model there."""
        recipe = recipe_for_point(self.raw, trial.point, trial.seed)
        if output is None:
            return recipe
        return {**recipe, "output": {**recipe.get("output", {}), "path": str(output)}}
