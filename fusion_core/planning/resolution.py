"""Resolution of recipes in two phases that report all errors at once.

Phase one validates a recipe's shape without knowing any component (`fusion_core.recipe`). Phase two
looks up each component by name, imports its configuration class and validates its options.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from fusion_core.contracts.specs import (
    AlgorithmSpec,
    ComponentSpec,
    ExecutorSpec,
    ModelPoolSpec,
    OutputSpec,
    TaskPoolSpec,
)
from fusion_core.errors import BrokenPluginError, PluginError, RecipeError
from fusion_core.planning.resolved_recipe import (
    Resolved,
    ResolvedRecipe,
    SpecT,
    hint_at_options,
)
from fusion_core.plugins.ownership import distribution_of
from fusion_core.recipe.config import (
    AlignmentPolicy,
    Choice,
    OutputOptions,
    OutputSection,
    Recipe,
    choice_of,
    choices_of,
    stages_in,
)
from fusion_core.recipe.patterns import Selection
from fusion_core.recipe.text import check_not_foreign
from fusion_core.recipe.validation import validate

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fusion_core.contracts.specs import TaskData
    from fusion_core.contracts.stage import Stage
    from fusion_core.plugins.components import Component
    from fusion_core.plugins.manager import PluginManager

ResultT = TypeVar("ResultT")

_KINDS: dict[str, type[ComponentSpec]] = {
    "algorithm": AlgorithmSpec,
    "model_pool": ModelPoolSpec,
    "task_pool": TaskPoolSpec,
    "executor": ExecutorSpec,
}
#: The model pool that takes models of any kind.
ANY_MODELS = "checkpoints"
_NAME_ONE = "Choose one with --algo NAME; see: fuse list algorithms"
_DEFAULT_EXECUTOR = "threads"

#: Turns a nested recipe, a file or a mapping, into a model.
Nesting = Callable[[str | Mapping[str, Any]], Any]


class _Problems(list[RecipeError | PluginError]):
    """The errors found so far."""

    def attempt(
        self, function: Callable[..., ResultT], *arguments: object, **options: object
    ) -> ResultT | None:
        """Call a function; if it raises, record the error and return None."""
        try:
            return function(*arguments, **options)
        except (RecipeError, PluginError) as error:
            self.append(error)
            return None

    def raise_all(self) -> None:
        """Raise a single error as it is, and several as one `RecipeError`."""
        if len(self) == 1:
            raise self[0]
        if self:
            hints = dict.fromkeys(error.hint for error in self if error.hint)
            raise RecipeError("\n".join(error.message for error in self), hint="\n".join(hints))


def resolve(
    raw: Mapping[str, Any],
    plugins: PluginManager,
    *,
    live: frozenset[str] = frozenset(),
    nesting: Nesting | None = None,
) -> ResolvedRecipe:
    """Validate a recipe and look up its components.

    `live` names the sections that the caller passed as objects, which are not looked up. `nesting`
    turns nested recipes into models. Raises `RecipeError` with one line per problem, or
    `PluginError` if that is the only problem.
    """
    problems = _Problems()
    check_not_foreign(raw)
    recipe = problems.attempt(validate, Recipe, raw, suggestions=_options_of_sections(raw, plugins))
    if recipe is None:  # continue with the readable sections, to report all errors at once
        recipe, unreadable = _read_sections(raw)
        live |= unreadable

    def resolve_section(
        kind: type[SpecT], section: str, default: str | None = None
    ) -> Resolved[SpecT] | None:
        choice: Choice = getattr(recipe, section).with_default_name(default)
        if section in live or choice.name is None:
            return None
        return problems.attempt(
            resolve_component, kind, choice, plugins, section=section, nesting=nesting
        )

    has_algorithm = "algorithm" in raw and "algorithm" not in live
    stages = _resolve_stages(recipe.stages, plugins, problems) if has_algorithm else ()
    default_pool = problems.attempt(_default_model_pool, recipe, plugins, live)
    if "model_pool" not in live:
        named = recipe.model_pool.with_default_name(default_pool)
        recipe = recipe.model_copy(update={"model_pool": named})
    model_pool = resolve_section(ModelPoolSpec, "model_pool")
    if model_pool and "task_pool" not in live:
        tasks = choose_task_pool(recipe.task_pool, model_pool, stages)
        recipe = recipe.model_copy(update={"task_pool": tasks})
    task_pool = resolve_section(TaskPoolSpec, "task_pool")
    executor = resolve_section(ExecutorSpec, "executor", _DEFAULT_EXECUTOR)
    form = problems.attempt(resolve_form, recipe.output.forms, plugins)
    if "algorithm" not in raw and "algorithm" not in live:
        problems.append(RecipeError("algorithm: required", hint=_NAME_ONE))
    if task_pool is None and recipe.task_pool.options and not problems:
        hint = "Name a task pool with --task-pool; see: fuse list tasks"
        problems.append(RecipeError("task_pool.name: required", hint=hint))
    problems.raise_all()
    assert executor is not None  # noqa: S101 - or it would have been a problem
    return ResolvedRecipe(recipe, stages, model_pool, task_pool, executor, form)


def resolve_form(forms: Mapping[str, Any], plugins: PluginManager) -> Resolved[OutputSpec] | None:
    """Return the form of the output that a recipe asks for, None for a full model.

    Raises `RecipeError` for a name that is neither an option nor a form, and for several forms.
    """
    known = {name for component in plugins.components(OutputSpec) for name in component.names}
    for name in forms:
        if name not in known:
            home = distribution_of([OutputSpec.kind], name)
            hint = home and f"Install the plugin that provides it: pip install {home}"
            validate(OutputOptions, {name: None}, prefix="output", hint=hint, suggestions=known)
    if len(forms) > 1:
        raise RecipeError(f"output: conflicting forms: {', '.join(forms)}", hint="Use one of them.")
    if not forms:
        return None
    ((name, given),) = forms.items()
    component = plugins.find(OutputSpec, name)
    options = _options_of_form(given, component.spec.main_option)
    hint = f"See: fuse info {component.spec.name}"
    config = validate(component.load_config(), options, prefix=f"output.{name}", hint=hint)
    return Resolved(component, config, plugins, given=options)


def _options_of_form(given: Any, main_option: str | None) -> Any:  # noqa: ANN401 - not validated yet
    """Return a form's options: none for null or true, and a plain value as the main option."""
    if given is None or given is True:
        return {}
    if isinstance(given, Mapping) or main_option is None:
        return given
    return {main_option: given}


def _resolve_stages(
    choices: Sequence[Choice], plugins: PluginManager, problems: _Problems
) -> tuple[Resolved[AlgorithmSpec] | None, ...]:
    stages: list[Resolved[AlgorithmSpec] | None] = []
    for number, choice in enumerate(choices):
        section = "algorithm" if len(choices) == 1 else f"algorithm.{choice.name or number}"
        if choice.name is None:
            problems.append(RecipeError(f"{section}.name: required", hint=_NAME_ONE))
            continue
        stages.append(
            problems.attempt(resolve_component, AlgorithmSpec, choice, plugins, section=section)
        )
    return tuple(stages)


def resolve_component(
    kind: type[SpecT],
    choice: Choice,
    plugins: PluginManager,
    *,
    section: str,
    nesting: Nesting | None = None,
) -> Resolved[SpecT]:
    """Look up a component and validate its options; `section` prefixes errors.

    The options that all algorithms share (`Selection`) are validated apart from its own.
    """
    component = plugins.find(kind, choice.name or "")
    config_class = component.load_config()
    shared = shared_options(component)
    own_options = {name: value for name, value in choice.options.items() if name not in shared}
    selected = {name: value for name, value in choice.options.items() if name in shared}
    problems = _Problems()
    hint = hint_at_options(component, own_options)
    context: dict[str, Any] = {"prefix": section, "hint": hint}
    config = problems.attempt(
        validate, config_class, own_options, **context, suggestions=shared, context=nesting
    )
    selection = problems.attempt(validate, Selection, selected, **context)
    problems.raise_all()
    assert config is not None  # noqa: S101 - or it would have been a problem
    assert selection is not None  # noqa: S101
    resolved = Resolved(component, config, plugins, selection, own_options)
    for number, override in enumerate(selection.overrides):
        resolved.changed(override.options, prefix=f"{section}.overrides.{number}")
    for number, curve in enumerate(selection.by_depth):
        for depth in curve.corners:
            resolved.changed(curve.at(depth), prefix=f"{section}.by_depth.{number}")
    return resolved


def resolve_object(algorithm: Stage[Any], plugins: PluginManager) -> Resolved[AlgorithmSpec] | None:
    """Return the component of a stage object; None if no plugin registers its exact class."""
    kind = type(algorithm)
    for component in plugins.components(AlgorithmSpec):
        if component.spec.target == f"{kind.__module__}:{kind.__qualname__}":
            config: Any = algorithm.config
            return Resolved(component, config, plugins)
    return None


def choose_task_pool(
    choice: Choice,
    models: Resolved[ModelPoolSpec],
    stages: Iterable[Resolved[AlgorithmSpec] | None] = (),
) -> Choice:
    """Return the chosen task pool, or else the default task pool of a model pool.

    The default task pool takes over the options that it shares with the model pool, such as the
    tasks, unless they are set. A model pool may have another task pool for stages that need
    unlabeled data.
    """
    spec = models.component.spec
    if any(stage is not None and data_needs_of(stage) == "unlabeled" for stage in stages):
        choice = choice.with_default_name(spec.unlabeled_task_pool)
    choice = choice.with_default_name(spec.default_task_pool)
    if choice.name is None or choice.name.rpartition("/")[2] != spec.default_task_pool:
        return choice
    options = models.config.model_dump(mode="json", include=set(spec.shared_options))
    return Choice(name=choice.name, **{**options, **choice.options})


def data_needs_of(algorithm: Resolved[AlgorithmSpec]) -> TaskData:
    """Return the task data that an algorithm with these options cannot do without."""
    spec = algorithm.component.spec
    option = spec.needs_tasks_unless
    is_replaced = option is not None and getattr(algorithm.config, option) is not None
    return "none" if is_replaced else spec.needs_tasks


def shared_options(component: Component[Any]) -> Mapping[str, Any]:
    """Return the fields that a component takes besides its own: `Selection` for algorithms.

    Raises `BrokenPluginError` if the component has an option of the same name.
    """
    if not isinstance(component.spec, AlgorithmSpec):
        return {}
    taken = component.load_config().model_fields.keys() & Selection.model_fields.keys()
    if taken:
        raise BrokenPluginError(
            f"algorithm {component.qualified_name!r} has an option {min(taken)!r}, a name that is "
            "reserved for an option of all algorithms",
            hint="Its authors must rename it.",
        )
    return Selection.model_fields


def _options_of_sections(raw: Mapping[str, Any], plugins: PluginManager) -> Iterator[str]:
    """Yield the options of a recipe's sections, to suggest them for options one level too high."""
    defaults = {"model_pool": ANY_MODELS, "executor": _DEFAULT_EXECUTOR}
    for section, kind in _KINDS.items():
        for stage in stages_in(raw.get(section)):
            try:
                choice = choice_of(stage).with_default_name(defaults.get(section))
                component = plugins.find(kind, choice.name or "")
                names = [*component.load_config().model_fields, *shared_options(component)]
            except (RecipeError, PluginError):  # phase two reports it
                continue
            is_list = isinstance(raw.get(section), list)
            path = f"{section}.{choice.name}" if is_list else section
            yield from (f"{path}.{name}" for name in names)
    for section, options in (("output", OutputOptions), ("alignment", AlignmentPolicy)):
        yield from (f"{section}.{name}" for name in options.model_fields)


def _read_sections(raw: Mapping[str, Any]) -> tuple[Recipe, frozenset[str]]:
    """Return the readable sections of a malformed recipe, and the names of the unreadable ones."""
    choices: dict[str, Any] = {}
    for section in _KINDS:
        try:
            read = choices_of if section == "algorithm" else choice_of
            choices[section] = read(raw.get(section))
        except RecipeError:
            continue
    output = raw.get("output")
    if isinstance(output, Mapping):
        known = OutputSection.model_fields
        forms = {name: value for name, value in output.items() if name not in known}
        choices["output"] = OutputSection.model_validate(forms)
    return Recipe(**choices), frozenset(_KINDS.keys() - choices.keys())


def _default_model_pool(recipe: Recipe, plugins: PluginManager, live: frozenset[str]) -> str | None:
    if "model_pool" in live or recipe.model_pool.name is not None:
        return None
    if recipe.model_pool.options.keys() & {"base", "models"}:
        return ANY_MODELS
    names = [
        component.qualified_name
        for component in plugins.components(ModelPoolSpec)
        if component.spec.default
    ]
    if len(names) == 1:
        return names[0]
    known = ", ".join(names) or "no installed pool is the default"
    raise RecipeError(f"model_pool: required ({known})", hint="See: fuse list pools")
