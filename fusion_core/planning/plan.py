"""Plan a run: validate a recipe, make its components, see that they suit each other.

Reads headers, no weights, and writes nothing. How a plan is carried out is not known here
(`fusion_core.running`), nor what can be said about it beforehand (`fusion_core.checking`).
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fusion_core import hub
from fusion_core.contracts.model_pool import ModelPool
from fusion_core.contracts.specs import ModelPoolSpec
from fusion_core.contracts.stage import Stage
from fusion_core.contracts.task_pool import TaskPool
from fusion_core.errors import RecipeError
from fusion_core.machine.devices import device_of
from fusion_core.machine.ranks import helps
from fusion_core.planning.expansion import expand_pipelines
from fusion_core.planning.needs import check_needs, check_tasks
from fusion_core.planning.nested import RecipeSource, name_errors, read_nested
from fusion_core.planning.outlines import check_outline, has_own_outline
from fusion_core.planning.pipeline import PlannedStage, create_stages, with_parts
from fusion_core.planning.planned import Plan
from fusion_core.planning.resolving import resolve, resolve_component
from fusion_core.planning.trust import check_known, check_trusted, needs_of
from fusion_core.plugins.manager import load_plugins
from fusion_core.recipe.assignments import assign
from fusion_core.recipe.config import stages_in
from fusion_core.weights import held_in_memory
from fusion_core.weights.writing.target import check_output

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from fusion_core.planning.options import RunOptions
    from fusion_core.planning.resolved import Resolved, ResolvedRecipe
    from fusion_core.plugins.manager import PluginManager
    from fusion_core.recipe.config import Choice

_SECTIONS: dict[str, type[Any]] = {"model_pool": ModelPool, "task_pool": TaskPool}


def plan(raw: Mapping[str, Any], options: RunOptions, *, like: Plan | None = None) -> Plan:
    """Validate a recipe and instantiate its components; weights are not read, only headers.

    Where a recipe says the same of its models or tasks as the one of `like`, the pools of that plan
    are used again, with whatever they have read.
    """
    found = _plan(_with_executor(raw, options), options, like=like)
    if found.tasks_read is not None:
        found.check_builds()
    return replace(found, path=_output_path(found))


def _output_path(plan: Plan) -> Path | None:
    """Return where the output goes; of a number, a run makes sure again when it claims it."""
    given = plan.resolved.recipe.output
    if given.path is not None:
        return Path(given.path)
    live = any(map(held_in_memory, plan.pool.by_name.values()))
    nowhere = given.is_none or live or plan.resolved.model_pool is None
    return None if nowhere else next(plan.free_paths())


def _with_executor(raw: Mapping[str, Any], options: RunOptions) -> Mapping[str, Any]:
    """Return a recipe with the executor that the options name: the whole run's own."""
    if options.executor is not None:
        raw = {**raw, "executor": options.executor}
    if options.workers is None:
        return raw
    return assign(raw, ("executor", "workers"), options.workers, origin="workers")


def _plan(
    raw: Mapping[str, Any],
    options: RunOptions,
    inside: tuple[str, ...] | None = None,
    like: Plan | None = None,
) -> Plan:
    """Plan a run; `inside` are the recipe files that led here, None for the run itself."""
    plugins = load_plugins(options.block)
    check_known(options.trust, plugins)
    live = {name: raw[name] for name, kind in _SECTIONS.items() if isinstance(raw.get(name), kind)}
    expanded = expand_pipelines(raw.get("algorithm"), plugins)
    given = [stage for stage, _ in expanded]
    described = [stage for stage in given if not isinstance(stage, Stage)]
    if described != stages_in(raw.get("algorithm")):  # some are objects, or belong to pipelines
        raw = {**raw, "algorithm": described}
        live |= {} if described else {"algorithm": None}
    plans: dict[RecipeSource, Plan] = {}
    nesting = partial(_place_of, plans=plans, options=options, inside=inside or ())
    shaped = {**raw, **{name: {} for name in live}}
    resolved = resolve(shaped, plugins, live=frozenset(live), nesting=nesting)
    device = device_of(options.device)
    place = None if helps() or inside is not None else resolved.recipe.output.path
    if place is not None:  # before anything is downloaded
        check_output(Path(place), overwrite=options.overwrite)
    stages = create_stages(expanded, resolved.stages, plugins)
    with hub.session(options.progress):
        pool = live["model_pool"] if "model_pool" in live else _model_pool(resolved, like)
        every_task = _task_pool(live.get("task_pool"), resolved, pool, like)
    tasks = every_task
    if tasks is not None:
        tasks = _tasks_for(stages, tasks, nested=inside is not None)
    for each in stages:
        check_needs(each.resolved, pool, tasks)
    if tasks is not None:
        check_tasks(tasks)
    stages = with_parts(stages, pool)
    nested = _by_model(plans, pool)
    found = Plan(resolved, plugins, options, stages, pool, tasks, None, device, nested, every_task)
    if has_own_outline(stages):
        check_outline(stages, found.outline, found.aligned)
    return found


def plan_models(
    choice: Choice, plugins: PluginManager, options: RunOptions
) -> tuple[ModelPool[Any], Mapping[str, Plan]]:
    """Make a recipe's model pool alone, with the plans of the recipes in the places of models.

    Raises `RecipeError` for what needs trust and has none: these plans are to be carried out.
    """
    check_known(options.trust, plugins)
    plans: dict[RecipeSource, Plan] = {}
    nesting = partial(_place_of, plans=plans, options=options, inside=())
    place: dict[str, Any] = {"section": "model_pool", "nesting": nesting}
    resolved = resolve_component(ModelPoolSpec, choice, plugins, **place)
    nested = (component for inner in plans.values() for component in inner.components_used())
    check_trusted(needs_of([resolved, *nested]), options.trust)
    pool = resolved.create()
    return pool, _by_model(plans, pool)


def _by_model(plans: Mapping[RecipeSource, Plan], pool: ModelPool[Any]) -> dict[str, Plan]:
    """Return the plans by the names of the models whose places they have."""
    models = pool.by_name.items()
    return {n: inner for place, inner in plans.items() for n, model in models if model is place}


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
        infos = plan.infos_of_merge(plan.aligned)
    name = f"merge by {plan.algorithm_name}"
    place = RecipeSource(name, infos, plan.pool, plan.assets, plan.recipe_in)
    plans[place] = plan
    return place


def _model_pool(resolved: ResolvedRecipe, like: Plan | None) -> ModelPool[Any]:
    assert resolved.model_pool is not None  # noqa: S101 - or it was given as an object
    if like is not None and _says_the_same(resolved.model_pool, like.resolved.model_pool):
        return like.pool
    pool: ModelPool[Any] = resolved.model_pool.create()
    return pool


def _task_pool(
    given: TaskPool[Any] | None,
    resolved: ResolvedRecipe,
    pool: ModelPool[Any],
    like: Plan | None,
) -> TaskPool[Any] | None:
    """Return the tasks of a recipe, bound to its models; None without any."""
    if given is not None:
        return given.bind(pool)
    if resolved.task_pool is None:
        return None
    alike = like is not None and _says_the_same(resolved.task_pool, like.resolved.task_pool)
    if like is not None and like.pool is pool and alike:  # those of other models may differ
        return like.every_task
    tasks: TaskPool[Any] = resolved.task_pool.create()
    return tasks.bind(pool)


def _says_the_same(one: Resolved[Any], other: Resolved[Any] | None) -> bool:
    return other is not None and (one.component, one.config) == (other.component, other.config)
