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
from fusion_core.contracts.model_pool import ModelPool
from fusion_core.contracts.stage import Stage
from fusion_core.contracts.task_pool import TaskPool
from fusion_core.errors import RecipeError
from fusion_core.machine.devices import device_of
from fusion_core.machine.ranks import helps
from fusion_core.planning.downloads import downloads_of
from fusion_core.planning.dtypes import dtype_of, infos_of_merge
from fusion_core.planning.needs import check_data, check_needs, check_tasks
from fusion_core.planning.nested import RecipeSource, name_errors, read_nested
from fusion_core.planning.numbers import free_paths
from fusion_core.planning.pipeline import (
    PlannedStage,
    create_stages,
    merge_of,
    section_of,
    stages_given,
    with_parts,
)
from fusion_core.planning.resolving import resolve
from fusion_core.plugins.manager import load_plugins
from fusion_core.recipe.text import assign
from fusion_core.weights import held_in_memory
from fusion_core.weights.writing.target import check_output

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence

    import torch

    from fusion_core.planning.options import RunOptions
    from fusion_core.planning.resolved import Resolved, ResolvedRecipe
    from fusion_core.plugins.manager import PluginManager
    from fusion_core.weights.source import WeightSource

_SECTIONS: dict[str, type[Any]] = {"model_pool": ModelPool, "task_pool": TaskPool}


@dataclass(frozen=True)
class Plan:
    """A run that is ready: everything is validated and instantiated, nothing is computed."""

    resolved: ResolvedRecipe
    plugins: PluginManager
    options: RunOptions
    stages: tuple[PlannedStage, ...]
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
        stages = [each.as_recipe(folder) for each in self.stages]
        sections: dict[str, Any] = {
            "algorithm": stages if len(stages) > 1 else stages[0],
            "model_pool": section_of(self.resolved.model_pool, self.pool, folder),
        }
        if self.tasks is not None:
            sections["task_pool"] = section_of(self.resolved.task_pool, self.tasks, folder)
        rest = self.resolved.recipe.model_dump(
            mode="json", include={"seed", "output", "alignment"}, exclude={"output": {"path"}}
        )
        return {**sections, **rest}

    @property
    def algorithm_name(self) -> str:
        """What to call the result."""
        return "-".join(each.name for each in self.stages)

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
        """The tensors that the merge leaves to the base."""
        names = self.pool.reference.infos
        parts = merge_of(self.stages).parts
        seen = (names if part.names is None else part.names for part in parts)
        return frozenset(names).difference(*seen)

    @property
    def counts(self) -> dict[str, int]:
        """How many tensors are merged, copied and dropped."""
        return count_tensors(self.aligned, self.aligned.reference, skipped=self.skipped)

    @property
    def adapts(self) -> bool:
        """Whether a stage sees tasks."""
        return any(each.adapts for each in self.stages)

    def transductive(self, *, saw_tasks: bool = True) -> bool | None:
        """Tell whether an algorithm saw the examples that are measured on; None where none did.

        `saw_tasks` says what only a run shows: whether one given as an object asked for them.
        """
        known = any(each.adapts and each.resolved is not None for each in self.stages)
        saw = known or (self.adapts and saw_tasks)
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
        stages = (each.resolved for each in self.stages)
        found = (*stages, self.resolved.model_pool, self.resolved.task_pool)
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
    given = stages_given(raw)
    described = [each for each in given if not isinstance(each, Stage)]
    if described != given:  # some are objects
        live |= {} if described else {"algorithm": None}
        raw = {**raw, "algorithm": described}
    plans: dict[RecipeSource, Plan] = {}
    nesting = partial(_place_of, plans=plans, options=options, inside=inside or ())
    shaped = {**raw, **{name: {} for name in live}}
    resolved = resolve(shaped, plugins, live=frozenset(live), nesting=nesting)
    device = device_of(options.device)
    place = None if helps() or inside is not None else resolved.recipe.output.path
    if place is not None:  # before anything is downloaded
        check_output(Path(place), overwrite=options.overwrite)
    stages = create_stages(given, resolved.stages, plugins)
    with hub.session(options.progress):
        pool = live.get("model_pool", _create(resolved.model_pool))
        tasks = live.get("task_pool", _create(resolved.task_pool))
        tasks = None if tasks is None else tasks.bind(pool)
    if tasks is not None:
        tasks = _tasks_for(stages, tasks, nested=inside is not None)
    for each in stages:
        check_needs(each.resolved, pool, tasks)
    if tasks is not None:
        check_tasks(tasks)
    stages = with_parts(stages, pool)
    models = pool.by_name.items()
    nested = {n: inner for place, inner in plans.items() for n, model in models if model is place}
    return Plan(resolved, plugins, options, stages, pool, tasks, None, device, nested)


def _tasks_for(
    stages: Sequence[PlannedStage], tasks: TaskPool[Any], *, nested: bool
) -> TaskPool[Any]:
    """Return the tasks as the stages see them, which has to be what is measured, too."""
    seen = tasks
    for each in stages:
        seen = each.stage.tasks(seen)
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


def _create(resolved: Resolved[Any] | None) -> Any:  # noqa: ANN401 - an algorithm or a pool
    return None if resolved is None else resolved.create()


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
