"""Plan a run: validate a recipe, make its components, see that they suit each other.

Reads headers, no weights, and writes nothing. How a plan is carried out is not known here
(`fusion_core.running`), nor what can be said about it beforehand (`fusion_core.checking`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fusion_core import hub
from fusion_core.contracts.algorithm import Algorithm
from fusion_core.contracts.model_pool import ModelPool
from fusion_core.contracts.task_pool import TaskPool
from fusion_core.errors import RecipeError
from fusion_core.machine.devices import device_of
from fusion_core.machine.ranks import helps
from fusion_core.planning.downloads import downloads_of
from fusion_core.planning.dtypes import dtype_of, infos_of_merge
from fusion_core.planning.needs import check_data, check_needs, check_tasks, sees_tasks
from fusion_core.planning.nested import RecipeSource, name_errors, read_nested
from fusion_core.planning.numbers import free_paths
from fusion_core.planning.resolving import resolve, resolve_object
from fusion_core.planning.selection import Part, create_algorithms, parts_of
from fusion_core.plugins.manager import load_plugins
from fusion_core.recipe.patterns import Selection
from fusion_core.recipe.text import assign
from fusion_core.weights import held_in_memory
from fusion_core.weights.writing.target import check_output

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping

    import torch

    from fusion_core.contracts.specs import AlgorithmSpec
    from fusion_core.planning.options import RunOptions
    from fusion_core.planning.resolved import Resolved, ResolvedRecipe
    from fusion_core.plugins.manager import PluginManager
    from fusion_core.weights.source import WeightSource

_SECTIONS: dict[str, type[Any]] = {
    "algorithm": Algorithm,
    "model_pool": ModelPool,
    "task_pool": TaskPool,
}


@dataclass(frozen=True)
class Plan:
    """A run that is ready: everything is validated and instantiated, nothing is computed."""

    resolved: ResolvedRecipe
    plugins: PluginManager
    options: RunOptions
    parts: tuple[Part, ...]
    pool: ModelPool[Any]
    tasks: TaskPool[Any] | None
    path: Path | None
    device: torch.device
    #: of the recipes in the places of models, by the models' names
    nested: Mapping[str, Plan]

    @property
    def recipe(self) -> dict[str, Any]:
        """The resolved recipe: every default written out, the output's place left out."""
        return self.recipe_in(None)

    def recipe_in(self, folder: Path | None) -> dict[str, Any]:
        """Return it with paths as a recipe in `folder` names them; None leaves them as they are."""
        sections = {
            "algorithm": _section(self.resolved.algorithm, self.parts[0].algorithm, folder),
            "model_pool": _section(self.resolved.model_pool, self.pool, folder),
        }
        if self.tasks is not None:
            sections["task_pool"] = _section(self.resolved.task_pool, self.tasks, folder)
        rest = self.resolved.recipe.model_dump(
            mode="json", include={"seed", "output", "alignment"}, exclude={"output": {"path"}}
        )
        return {**sections, **rest}

    @property
    def algorithm_name(self) -> str:
        """What to call the result."""
        return self.resolved.algorithm.name if self.resolved.algorithm else "fused"

    @cached_property
    def aligned(self) -> ModelPool[Any]:
        """The pool with models that fit; raises `AlignmentError` if they do not.

        From headers: a run reads it with merges in the places of recipes.
        """
        return self.pool.aligned(self.resolved.recipe.alignment)

    @property
    def warnings(self) -> list[str]:
        """What alignment let pass and a user should know, of nested recipes too."""
        inner = (
            f"{name}/{warning}" for name, plan in self.nested.items() for warning in plan.warnings
        )
        return [*self.aligned.warnings, *inner]

    @property
    def skipped(self) -> frozenset[str]:
        """The tensors that no algorithm sees."""
        names = self.pool.reference.infos
        seen = (names if part.names is None else part.names for part in self.parts)
        return frozenset(names).difference(*seen)

    @property
    def counts(self) -> dict[str, int]:
        """How many tensors are merged, copied and dropped."""
        return count_tensors(self.aligned, self.aligned.reference, skipped=self.skipped)

    @property
    def adapts(self) -> bool:
        """Whether the algorithm sees tasks; one given as an object may."""
        outer = self.resolved.algorithm
        return outer is None or sees_tasks(outer.component.spec)

    def transductive(self, *, saw_tasks: bool = True) -> bool | None:
        """Tell whether an algorithm saw the examples that are measured on; None where none did.

        `saw_tasks` says what only a run shows: whether one given as an object asked for them.
        """
        saw = self.adapts and (saw_tasks or self.resolved.algorithm is not None)
        own = [self.tasks.transductive] if saw and self.tasks is not None else []
        within = [plan.transductive() for plan in self.nested.values()]
        seen = [answer for answer in (*own, *within) if answer is not None]
        return any(seen) if seen else None

    def free_paths(self) -> Iterator[Path]:
        """Yield where the output of a run that names none may go."""
        assert self.resolved.model_pool is not None  # noqa: S101 - a pool of live models needs a name
        stem = f"{self.resolved.model_pool.name}-{self.algorithm_name}"
        return free_paths(stem, self.recipe if self.options.resume else None)

    @property
    def licence(self) -> str | None:
        """The licence that the pool's spec names for its models, not words on where it stands."""
        pool = self.resolved.model_pool
        named = None if pool is None else pool.component.spec.licence
        return None if named is None or " " in named else named

    @property
    def tasks_read(self) -> TaskPool[Any] | None:
        """The tasks, if anything looks at them."""
        return self.tasks if self.adapts or self.options.evaluate else None

    def downloads(self) -> list[hub.Wanted]:
        """Return what a run reads from the hub, sooner or later."""
        return downloads_of(self.pool, self.tasks_read)

    def check_data(self) -> None:
        """Raise a `FusionError` naming plugin and task if data that is read later is not there."""
        if self.tasks_read is not None:
            given = self.resolved.task_pool
            plugin = given.component.plugin.distribution if given else type(self.tasks).__name__
            check_data(self.tasks_read, plugin)
        for plan in self.nested.values():
            plan.check_data()

    @property
    def distributions(self) -> set[str]:
        """The plugins that this run uses."""
        found = (self.resolved.algorithm, self.resolved.model_pool, self.resolved.task_pool)
        ours = {used.component.plugin.distribution for used in found if used is not None}
        return ours.union(*(plan.distributions for plan in self.nested.values()))


def plan(raw: Mapping[str, Any], options: RunOptions) -> Plan:
    """Validate a recipe and instantiate its components; weights are not read, only headers."""
    found = _plan(_with_executor(raw, options), options)
    if found.tasks_read is not None:
        found.pool.check_builds()
    return replace(found, path=_output_path(found))


def _output_path(plan: Plan) -> Path | None:
    """Return where the output goes; of a number, a run makes sure again when it claims it."""
    given = plan.resolved.recipe.output.path
    if given is not None:
        return Path(given)
    live = any(map(held_in_memory, plan.pool.by_name.values()))
    return None if plan.resolved.model_pool is None or live else next(plan.free_paths())


def _with_executor(raw: Mapping[str, Any], options: RunOptions) -> Mapping[str, Any]:
    """Return a recipe with the executor that the options name: the whole run's own."""
    if options.executor is not None:
        raw = {**raw, "executor": options.executor}
    if options.workers is None:
        return raw
    return assign(raw, ("executor", "workers"), options.workers, origin="workers")


def _plan(
    raw: Mapping[str, Any], options: RunOptions, inside: tuple[str, ...] | None = None
) -> Plan:
    """Plan a run; `inside` are the recipe files that led here, None for the run itself."""
    plugins = load_plugins(options.block)
    live = {name: raw[name] for name, kind in _SECTIONS.items() if isinstance(raw.get(name), kind)}
    shaped = {**raw, **{name: {} for name in live}}
    plans: dict[RecipeSource, Plan] = {}
    nesting = partial(_place_of, plans=plans, options=options, inside=inside or ())
    resolved = resolve(shaped, plugins, live=frozenset(live), nesting=nesting)
    if "algorithm" in live:
        resolved = replace(resolved, algorithm=resolve_object(live["algorithm"], plugins))
    device = device_of(options.device)
    place = None if helps() or inside is not None else resolved.recipe.output.path
    if place is not None:  # before anything is downloaded
        check_output(Path(place), overwrite=options.overwrite)
    algorithms = [live["algorithm"]] if "algorithm" in live else _algorithms(resolved.algorithm)
    with hub.session(options.progress):
        pool = live.get("model_pool", _create(resolved.model_pool))
        tasks = live.get("task_pool", _create(resolved.task_pool))
        tasks = None if tasks is None else tasks.bind(pool)
    if tasks is not None:
        tasks = _tasks_for(algorithms[0], tasks, nested=inside is not None)
    check_needs(resolved.algorithm, pool, tasks)
    if tasks is not None:
        check_tasks(tasks)
    selection = Selection() if resolved.algorithm is None else resolved.algorithm.selection
    parts = parts_of(algorithms, selection, pool)
    models = pool.by_name.items()
    nested = {n: inner for place, inner in plans.items() for n, model in models if model is place}
    return Plan(resolved, plugins, options, parts, pool, tasks, None, device, nested)


def _tasks_for(algorithm: Algorithm[Any], tasks: TaskPool[Any], *, nested: bool) -> TaskPool[Any]:
    """Return the tasks as an algorithm sees them, which has to be what is measured, too."""
    seen = algorithm.tasks(tasks)
    if nested and seen is not tasks:
        raise RecipeError(
            "its algorithm adapts on a part of the test examples, and the whole is measured",
            hint="Adapt on one half in a run of its own, and name its output here.",
        )
    return seen


def _place_of(
    given: str | Path | Mapping[str, Any],
    *,
    plans: dict[RecipeSource, Plan],
    options: RunOptions,
    inside: tuple[str, ...],
) -> RecipeSource:
    """Return the place of what a recipe merges, and add its plan to `plans`."""
    label, recipe, inside = read_nested(given, inside)
    with name_errors(label):
        plan = _plan(recipe, options, inside)
        infos = infos_of_merge(plan.aligned, dtype_of(plan.resolved.recipe.output.dtype))
    name = f"merge by {plan.algorithm_name}"
    place = RecipeSource(name, infos, plan.pool, plan.aligned, plan.recipe_in)
    plans[place] = plan
    return place


def _algorithms(resolved: Resolved[AlgorithmSpec] | None) -> list[Algorithm[Any]]:
    assert resolved is not None  # noqa: S101 - a recipe without one was refused
    return create_algorithms(resolved)


def _create(resolved: Resolved[Any] | None) -> Any:  # noqa: ANN401 - an algorithm or a pool
    return None if resolved is None else resolved.create()


def _section(
    resolved: Resolved[Any] | None,
    instance: Any,  # noqa: ANN401 - an algorithm or a pool
    folder: Path | None,
) -> dict[str, Any]:
    if resolved is not None:
        return resolved.as_recipe(folder)
    kind = type(instance)
    return {
        "name": f"{kind.__module__}:{kind.__qualname__}",
        **instance.config.model_dump(mode="json", context=folder),
    }


def count_tensors(
    pool: ModelPool[Any], merged: WeightSource, *, skipped: Collection[str] = ()
) -> dict[str, int]:
    """Account for every tensor of an aligned pool.

    Merged, copied (integers and `skipped`), or dropped by a policy.
    """
    floating = sum(
        info.dtype.is_floating_point and name not in skipped for name, info in merged.infos.items()
    )
    copied = len(merged.infos) - floating
    return {"merged": floating, "copied": copied, "dropped": len(pool.dropped)}
