"""Recipes resolved: validated in two phases, all errors at once.

Phase one validates a recipe's shape without knowing any component (`fusion_core.recipe`). Phase two
looks each component up by name, imports that one's configuration class only, and validates its
options.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from fusion_core.contracts.specs import (
    AlgorithmSpec,
    ComponentSpec,
    ExecutorSpec,
    ModelPoolSpec,
    TaskPoolSpec,
)
from fusion_core.errors import BrokenPluginError, PluginError, RecipeError
from fusion_core.planning.resolved import Resolved, ResolvedRecipe, SpecT
from fusion_core.recipe.config import (
    AlignmentPolicy,
    Choice,
    OutputOptions,
    Recipe,
    choice_of,
)
from fusion_core.recipe.patterns import Selection
from fusion_core.recipe.text import check_own_kind
from fusion_core.recipe.validation import validated

if TYPE_CHECKING:
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
#: The component of a section that names none.
_UNNAMED = {"model_pool": _ANY, "executor": "threads"}

ResultT = TypeVar("ResultT")


def resolve_object(algorithm: Any, plugins: PluginManager) -> Resolved[AlgorithmSpec] | None:  # noqa: ANN401
    """Return what an algorithm given as an object is, if its very class is a plugin's."""
    kind = type(algorithm)
    known = list(plugins.components(AlgorithmSpec))
    for component in known:
        if component.spec.target == f"{kind.__module__}:{kind.__qualname__}":
            ambiguous = sum(component.spec.name in each.names for each in known) > 1
            return Resolved(component, algorithm.config, ambiguous)
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

    `live` names the sections that the caller gave as objects: they are not looked up; `nesting`
    makes models of recipes in the places of models. Raises `RecipeError` with one line a problem,
    all of them at once; `PluginError` if that is all that is wrong.
    """
    problems = _Problems()
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

    algorithm = component(AlgorithmSpec, "algorithm")
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
    if recipe.algorithm.name is None and "algorithm" not in live:
        missing = "algorithm.name" if "algorithm" in raw else "algorithm"
        hint = "Name one with --algo; see: fuse list algorithms"
        problems.found.append(RecipeError(f"{missing}: required", hint=hint))
    if task_pool is None and recipe.task_pool.options and not problems.found:
        hint = "Name a task pool with --task-pool; see: fuse list tasks"
        problems.found.append(RecipeError("task_pool.name: required", hint=hint))
    problems.raise_all()
    assert executor is not None  # noqa: S101 - or it would have been a problem
    return ResolvedRecipe(recipe, algorithm, model_pool, task_pool, executor)


@dataclass(slots=True)
class _Problems:
    """What is wrong with a recipe, gathered so that all of it is said at once."""

    found: list[RecipeError | PluginError] = field(default_factory=list)

    def attempt(
        self, function: Callable[..., ResultT], *arguments: object, **options: object
    ) -> ResultT | None:
        """Call a function; None if it finds a problem, which is kept."""
        try:
            return function(*arguments, **options)
        except (RecipeError, PluginError) as error:
            self.found.append(error)
            return None

    def raise_all(self) -> None:
        """Raise what was found: one error as it is, several as one `RecipeError`."""
        if len(self.found) == 1:
            raise self.found[0]
        if self.found:
            hints = dict.fromkeys(each.hint for each in self.found if each.hint)
            raise RecipeError("\n".join(each.message for each in self.found), hint="\n".join(hints))


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
    problems = _Problems()
    place: dict[str, Any] = {"prefix": section, "hint": hint}
    config = problems.attempt(validated, config_class, own, **place, beside=shared, context=nesting)
    selection = problems.attempt(validated, Selection, given, **place)
    problems.raise_all()
    assert config is not None  # noqa: S101 - or it would have been a problem
    assert selection is not None  # noqa: S101
    overridden = tuple(
        validated(
            config_class,
            {**own, **each.options},
            prefix=f"{section}.overrides.{number}",
            hint=hint,
        )
        for number, each in enumerate(selection.overrides)
    )
    bare = component.spec.name
    ambiguous = sum(bare in each.names for each in plugins.components(kind)) > 1
    return Resolved(component, config, ambiguous, selection, overridden)


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
        try:
            choice = choice_of(raw.get(section)).or_named(_UNNAMED.get(section))
            component = plugins.find(kind, choice.name or "")
            names = [*component.load_config().model_fields, *shared_options(component)]
        except (RecipeError, PluginError):  # which is said for itself
            continue
        yield from (f"{section}.{name}" for name in names)
    for section, options in (("output", OutputOptions), ("alignment", AlignmentPolicy)):
        yield from (f"{section}.{name}" for name in options.model_fields)


def _components_of(raw: Mapping[str, Any]) -> tuple[Recipe, frozenset[str]]:
    """Return what phase two can look at of a malformed recipe, and the sections that it cannot."""
    choices: dict[str, Any] = {}
    for section in _KINDS:
        try:
            choices[section] = choice_of(raw.get(section))
        except RecipeError:
            continue
    unreadable = _KINDS.keys() - choices.keys()
    return Recipe(**choices), frozenset(unreadable)


def _default_model_pool(recipe: Recipe, plugins: PluginManager, live: frozenset[str]) -> str | None:
    if "model_pool" in live or recipe.model_pool.name is not None:
        return None
    if recipe.model_pool.options.keys() & {"base", "models"}:  # what only that pool is told
        return _ANY
    defaults = [each for each in plugins.components(ModelPoolSpec) if each.spec.default]
    if len(defaults) == 1:
        return defaults[0].qualified_name
    known = (
        ", ".join(each.qualified_name for each in defaults) or "no installed pool is the default"
    )
    raise RecipeError(f"model_pool: required ({known})", hint="See: fuse list pools")
