"""Recipes resolved: validated in two phases, all errors at once.

Phase one validates a recipe's shape without knowing any component (`fusion_core.recipe`). Phase two
looks each component up by name, imports that one's configuration class only, and validates its
options.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from fusion_core.contracts.specs import (
    AlgorithmSpec,
    ComponentSpec,
    ExecutorSpec,
    ModelPoolSpec,
    TaskPoolSpec,
)
from fusion_core.errors import BrokenPluginError, PluginError, RecipeError
from fusion_core.planning.problems import Problems
from fusion_core.planning.resolved import Resolved, ResolvedRecipe, SpecT
from fusion_core.recipe.config import (
    AlignmentPolicy,
    Choice,
    OutputOptions,
    Recipe,
    choice_of,
    choices_of,
    stages_in,
)
from fusion_core.recipe.patterns import Selection
from fusion_core.recipe.text import check_own_kind
from fusion_core.recipe.validation import validated

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fusion_core.contracts.stage import Stage
    from fusion_core.plugins.components import Component
    from fusion_core.plugins.manager import PluginManager

_KINDS: dict[str, type[ComponentSpec]] = {
    "algorithm": AlgorithmSpec,
    "model_pool": ModelPoolSpec,
    "task_pool": TaskPoolSpec,
    "executor": ExecutorSpec,
}
#: The pool that takes any models.
_ANY = "checkpoints"
_NAME_ONE = "Choose one with --algo NAME; see: fuse list algorithms"
#: The component of a section that names none.
_UNNAMED = {"model_pool": _ANY, "executor": "threads"}


def resolve_object(algorithm: Stage[Any], plugins: PluginManager) -> Resolved[AlgorithmSpec] | None:
    """Return what a stage given as an object is, if its very class is a plugin's."""
    kind = type(algorithm)
    known = list(plugins.components(AlgorithmSpec))
    for component in known:
        if component.spec.target == f"{kind.__module__}:{kind.__qualname__}":
            ambiguous = sum(component.spec.name in each.names for each in known) > 1
            config: Any = algorithm.config
            return Resolved(component, config, ambiguous)
    return None


#: Makes a model of a recipe that a model pool names: its file, or the recipe itself.
Nesting = Callable[[str | Mapping[str, Any]], Any]


def resolve(
    raw: Mapping[str, Any],
    plugins: PluginManager,
    *,
    live: frozenset[str] = frozenset(),
    nesting: Nesting | None = None,
) -> ResolvedRecipe:
    """Validate a recipe in two phases.

    `live` names the sections that the caller gave as objects: they are not looked up. `nesting`
    makes models of recipes in the places of models. Raises `RecipeError` with one line a problem,
    all of them at once; `PluginError` if that is all that is wrong.
    """
    problems = Problems()
    check_own_kind(raw)
    recipe = problems.attempt(validated, Recipe, raw, beside=_options_below(raw, plugins))
    if recipe is None:  # go on with what can be looked at, so that all errors come at once
        recipe, unreadable = _components_of(raw)
        live |= unreadable

    def component(
        kind: type[SpecT], section: str, default: str | None = None
    ) -> Resolved[SpecT] | None:
        choice: Choice = getattr(recipe, section).or_named(default)
        if section in live or choice.name is None:
            return None
        place = {"section": section, "nesting": nesting}
        return problems.attempt(resolve_component, kind, choice, plugins, **place)

    known = "algorithm" in raw and "algorithm" not in live
    stages = _resolve_stages(recipe.stages, plugins, problems) if known else ()
    default_pool = problems.attempt(_default_model_pool, recipe, plugins, live)
    if "model_pool" not in live:
        named = recipe.model_pool.or_named(default_pool)
        recipe = recipe.model_copy(update={"model_pool": named})
    model_pool = component(ModelPoolSpec, "model_pool")
    if model_pool and "task_pool" not in live:
        tasks = task_pool_of(recipe.task_pool, model_pool)
        recipe = recipe.model_copy(update={"task_pool": tasks})
    task_pool = component(TaskPoolSpec, "task_pool")
    executor = component(ExecutorSpec, "executor", _UNNAMED["executor"])
    if "algorithm" not in raw and "algorithm" not in live:
        problems.found.append(RecipeError("algorithm: required", hint=_NAME_ONE))
    if task_pool is None and recipe.task_pool.options and not problems.found:
        hint = "Name a task pool with --task-pool; see: fuse list tasks"
        problems.found.append(RecipeError("task_pool.name: required", hint=hint))
    problems.raise_all()
    assert executor is not None  # noqa: S101 - or it would have been a problem
    return ResolvedRecipe(recipe, stages, model_pool, task_pool, executor)


def _resolve_stages(
    choices: Sequence[Choice], plugins: PluginManager, problems: Problems
) -> tuple[Resolved[AlgorithmSpec] | None, ...]:
    """Resolve the stages of a pipeline; what is wrong with one goes to `problems`."""
    found: list[Resolved[AlgorithmSpec] | None] = []
    for number, choice in enumerate(choices):
        own = choice.name or str(number)
        section = "algorithm" if len(choices) == 1 else f"algorithm.{own}"
        if choice.name is None:
            problems.found.append(RecipeError(f"{section}.name: required", hint=_NAME_ONE))
            continue
        resolved = problems.attempt(
            resolve_component, AlgorithmSpec, choice, plugins, section=section
        )
        found.append(resolved)
    return tuple(found)


def resolve_component(
    kind: type[SpecT],
    choice: Choice,
    plugins: PluginManager,
    *,
    section: str,
    nesting: Nesting | None = None,
) -> Resolved[SpecT]:
    """Look one component up and validate its options; `section` prefixes errors.

    Those that every algorithm takes (`Selection`) are told apart here, before its own are seen.
    """
    component = plugins.find(kind, choice.name or "")
    config_class = component.load_config()
    shared = shared_options(component)
    own = {name: value for name, value in choice.options.items() if name not in shared}
    given = {name: value for name, value in choice.options.items() if name in shared}
    hint = f"See: fuse info {component.spec.name}"
    problems = Problems()
    place: dict[str, Any] = {"prefix": section, "hint": hint}
    config = problems.attempt(validated, config_class, own, **place, beside=shared, context=nesting)
    selection = problems.attempt(validated, Selection, given, **place)
    problems.raise_all()
    assert config is not None  # noqa: S101 - or it would have been a problem
    assert selection is not None  # noqa: S101
    bare = component.spec.name
    ambiguous = sum(bare in each.names for each in plugins.components(kind)) > 1
    resolved = Resolved(component, config, ambiguous, selection, own, plugins)
    for number, override in enumerate(selection.overrides):
        resolved.changed(override.options, prefix=f"{section}.overrides.{number}")
    for number, curve in enumerate(selection.by_depth):
        for depth in curve.corners:
            resolved.changed(curve.at(depth), prefix=f"{section}.by_depth.{number}")
    return resolved


def task_pool_of(choice: Choice, models: Resolved[ModelPoolSpec]) -> Choice:
    """Return the task pool that goes with a model pool, unless another one is chosen.

    What it shares with the model pool, the tasks for one, it takes over where nothing else is said.
    """
    spec = models.component.spec
    choice = choice.or_named(spec.default_task_pool)
    if choice.name is None or choice.name.rpartition("/")[2] != spec.default_task_pool:
        return choice
    options = models.config.model_dump(mode="json", include=set(spec.shared_options))
    return Choice(name=choice.name, **{**options, **choice.options})


def shared_options(component: Component[Any]) -> Mapping[str, Any]:
    """Return the fields that a component takes beside its own: those of `Selection`, or none.

    Raises `BrokenPluginError` if the component has an option of such a name.
    """
    if not isinstance(component.spec, AlgorithmSpec):
        return {}
    taken = component.load_config().model_fields.keys() & Selection.model_fields.keys()
    if taken:
        raise BrokenPluginError(
            f"algorithm {component.qualified_name!r} has an option {min(taken)!r}, a name that "
            "means the same for every algorithm",
            hint="Its authors have to rename it.",
        )
    return Selection.model_fields


def _options_below(raw: Mapping[str, Any], plugins: PluginManager) -> Iterator[str]:
    """Name the options of a recipe's sections, for what stands one level too high."""
    for section, kind in _KINDS.items():
        for given in stages_in(raw.get(section)):
            try:
                choice = choice_of(given).or_named(_UNNAMED.get(section))
                component = plugins.find(kind, choice.name or "")
                names = [*component.load_config().model_fields, *shared_options(component)]
            except (RecipeError, PluginError):  # which is said for itself
                continue
            stage = f"{section}.{choice.name}" if isinstance(raw.get(section), list) else section
            yield from (f"{stage}.{name}" for name in names)
    for section, options in (("output", OutputOptions), ("alignment", AlignmentPolicy)):
        yield from (f"{section}.{name}" for name in options.model_fields)


def _components_of(raw: Mapping[str, Any]) -> tuple[Recipe, frozenset[str]]:
    """Return what phase two can look at of a malformed recipe, and the sections that it cannot."""
    choices: dict[str, Any] = {}
    for section in _KINDS:
        try:
            read = choices_of if section == "algorithm" else choice_of
            choices[section] = read(raw.get(section))
        except RecipeError:
            continue
    unreadable = _KINDS.keys() - choices.keys()
    return Recipe(**choices), frozenset(unreadable)


def _default_model_pool(recipe: Recipe, plugins: PluginManager, live: frozenset[str]) -> str | None:
    if "model_pool" in live or recipe.model_pool.name is not None:
        return None
    if recipe.model_pool.options.keys() & {"base", "models"}:  # what only that pool is told
        return _ANY
    defaults = [
        component for component in plugins.components(ModelPoolSpec) if component.spec.default
    ]
    if len(defaults) == 1:
        return defaults[0].qualified_name
    known = (
        ", ".join(each.qualified_name for each in defaults) or "no installed pool is the default"
    )
    raise RecipeError(f"model_pool: required ({known})", hint="See: fuse list pools")
