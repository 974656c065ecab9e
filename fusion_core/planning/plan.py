"""Plan a run: validate a recipe, create its components, and check that they suit each other.

Planning reads headers but no weights, and writes nothing. `fusion_core.checking` describes a plan,
and `fusion_core.running` carries it out.
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
from fusion_core.machine.devices import resolve_device
from fusion_core.machine.ranks import is_helper_process
from fusion_core.planning.expansion import expand_pipelines
from fusion_core.planning.needs import check_needs, check_tasks
from fusion_core.planning.nested import RecipeSource, name_errors, read_nested
from fusion_core.planning.outlines import check_outline, has_own_outline
from fusion_core.planning.pipeline import create_stages, with_parts
from fusion_core.planning.resolution import resolve, resolve_component
from fusion_core.planning.run_plan import Plan
from fusion_core.planning.trust import check_trust_names, check_trusted, collect_needs
from fusion_core.plugins.manager import load_plugins
from fusion_core.recipe.assignments import assign
from fusion_core.recipe.config import stages_in
from fusion_core.weights import find_in_memory_source
from fusion_core.weights.writing.output_path import check_output

if TYPE_CHECKING:
    from collections.abc import Mapping

    from fusion_core.planning.resolved_recipe import Resolved, ResolvedRecipe
    from fusion_core.planning.run_options import RunOptions
    from fusion_core.plugins.manager import PluginManager
    from fusion_core.recipe.config import Choice

_POOLS: dict[str, type[Any]] = {"model_pool": ModelPool, "task_pool": TaskPool}


def plan(raw: Mapping[str, Any], options: RunOptions, *, like: Plan | None = None) -> Plan:
    """Validate a recipe and create its components; read headers, but no weights.

    Sections of the recipe may be objects instead of names and options. If the models or tasks are
    the same as in the plan `like`, its pools are reused with all that they have read.
    """
    if options.executor is not None:
        raw = {**raw, "executor": options.executor}
    if options.workers is not None:
        raw = assign(raw, ("executor", "workers"), options.workers, origin="workers")
    with hub.session(options.progress):
        planned = _plan(raw, options, like=like)
        if planned.used_tasks is not None or planned.modules_file is not None:
            planned.check_builds()
        commits, since = hub.resolved_commits(), hub.oldest_lookup()
        planned = replace(planned, commits=commits, revisions_as_of=since)
    output = planned.resolved.recipe.output
    if planned.resolved.form is not None and planned.modules_file is not None:
        raise RecipeError(
            f"output.{planned.resolved.form.name}: {planned.algorithm_name} adds modules to live "
            "models, which this form leaves out",
            hint="Leave it out.",
        )
    if output.path is not None:
        return replace(planned, path=Path(output.path))
    in_memory = any(map(find_in_memory_source, planned.pool.by_name.values()))
    if output.is_none or in_memory or planned.resolved.model_pool is None:
        form = planned.resolved.form
        if form is not None:
            raise RecipeError(
                f"output.{form.name} needs a directory to write, and the run writes nothing",
                hint="Name one: output.path.",
            )
        return planned
    # The run looks for a free path again when it claims one.
    return replace(planned, path=next(planned.free_paths()))


def _plan(
    raw: Mapping[str, Any],
    options: RunOptions,
    parents: tuple[str, ...] | None = None,
    like: Plan | None = None,
) -> Plan:
    """Plan a run, or a nested recipe if `parents` are given: the recipe files that contain it."""
    plugins = load_plugins(options.block)
    check_trust_names(options.trust, plugins)
    live = {name: raw[name] for name, kind in _POOLS.items() if isinstance(raw.get(name), kind)}
    expanded = expand_pipelines(raw.get("algorithm"), plugins)
    described = [stage for stage, _ in expanded if not isinstance(stage, Stage)]
    if described != stages_in(raw.get("algorithm")):  # some are objects, or belong to pipelines
        raw = {**raw, "algorithm": described}
        live |= {} if described else {"algorithm": None}
    plans: dict[RecipeSource, Plan] = {}
    nesting = partial(_plan_nested, plans=plans, options=options, parents=parents or ())
    without_objects = {**raw, **{name: {} for name in live}}
    resolved = resolve(without_objects, plugins, live=frozenset(live), nesting=nesting)
    device = resolve_device(options.device)
    output = None if is_helper_process() or parents is not None else resolved.recipe.output.path
    if output is not None:  # before anything is downloaded
        check_output(Path(output), overwrite=options.overwrite)
    stages = create_stages(expanded, resolved.stages, plugins)
    with hub.session(options.progress):
        hub.pin(resolved.recipe.lock.commits)
        pool = live["model_pool"] if "model_pool" in live else _create_models(resolved, like)
        original_tasks = _create_tasks(live.get("task_pool"), resolved, pool, like)
    tasks = original_tasks
    if tasks is not None:
        for planned in stages:
            tasks = planned.stage.tasks(tasks)
        if parents is not None and tasks is not original_tasks:
            raise RecipeError(
                "its algorithm adapts on a part of the test examples, and the whole is measured",
                hint="Adapt on one half in a run of its own, and name its output here.",
            )
    for planned in stages:
        check_needs(planned.resolved, pool, tasks, plugins, pipeline=planned.pipeline)
    if tasks is not None:
        check_tasks(tasks)
    stages = with_parts(stages, pool)
    nested = name_plans(plans, pool)
    result = Plan(
        resolved, plugins, options, stages, pool, tasks, None, device, nested, original_tasks
    )
    if has_own_outline(stages):
        check_outline(stages, result.outline, result.aligned)
    if parents is None and result.encoder is not None:
        result.encoder.check(result.stored_infos, result.aligned)
    return result


def resolve_models(
    choice: Choice, plugins: PluginManager, options: RunOptions
) -> tuple[Resolved[ModelPoolSpec], Mapping[RecipeSource, Plan]]:
    """Look up a recipe's model pool, and plan the nested recipes among its models.

    Raises `RecipeError` for missing trust.
    """
    check_trust_names(options.trust, plugins)
    plans: dict[RecipeSource, Plan] = {}
    nesting = partial(_plan_nested, plans=plans, options=options, parents=())
    resolved = resolve_component(
        ModelPoolSpec, choice, plugins, section="model_pool", nesting=nesting
    )
    nested = (component for inner in plans.values() for component in inner.components_used())
    check_trusted(collect_needs([resolved, *nested]), options.trust)
    return resolved, plans


def _plan_nested(
    given: str | Path | Mapping[str, Any],
    *,
    plans: dict[RecipeSource, Plan],
    options: RunOptions,
    parents: tuple[str, ...],
) -> RecipeSource:
    """Plan a nested recipe, add it to `plans`, and return the placeholder for its merge."""
    label, recipe, parents = read_nested(given, parents)
    with name_errors(label):
        plan = _plan(recipe, options, parents)
        if plan.modules_file is not None:
            raise RecipeError(
                f"{plan.algorithm_name} adds modules to live models, which weights leave out: its "
                "result cannot be merged again",
                hint="Choose another method here.",
            )
        infos = plan.infos_of_merge(plan.aligned)
    name = f"merge by {plan.algorithm_name}"
    placeholder = RecipeSource(name, infos, plan.pool, plan.assets, plan.recipe_in)
    plans[placeholder] = plan
    return placeholder


def name_plans(plans: Mapping[RecipeSource, Plan], pool: ModelPool[Any]) -> dict[str, Plan]:
    """Return nested plans by the names of the models that they replace."""
    return {
        name: inner
        for placeholder, inner in plans.items()
        for name, model in pool.by_name.items()
        if model is placeholder
    }


def _create_models(resolved: ResolvedRecipe, like: Plan | None) -> ModelPool[Any]:
    assert resolved.model_pool is not None  # noqa: S101 - or it was given as an object
    if like is not None and _is_same(resolved.model_pool, like.resolved.model_pool):
        return like.pool
    pool: ModelPool[Any] = resolved.model_pool.create()
    return pool


def _create_tasks(
    given: TaskPool[Any] | None,
    resolved: ResolvedRecipe,
    pool: ModelPool[Any],
    like: Plan | None,
) -> TaskPool[Any] | None:
    """Return the recipe's tasks, bound to its models; None if it has none."""
    if given is not None:
        return given.bind(pool)
    if resolved.task_pool is None:
        return None
    is_same = like is not None and _is_same(resolved.task_pool, like.resolved.task_pool)
    if like is not None and like.pool is pool and is_same:  # tasks depend on the models
        return like.original_tasks
    tasks: TaskPool[Any] = resolved.task_pool.create()
    return tasks.bind(pool)


def _is_same(component: Resolved[Any], other: Resolved[Any] | None) -> bool:
    return other is not None and (component.component, component.config) == (
        other.component,
        other.config,
    )
