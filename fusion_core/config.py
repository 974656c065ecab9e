"""Recipes: read from YAML, overridden by flags, validated in two phases, all errors at once.

Phase one validates a recipe's shape without knowing any component. Phase two looks each component
up by name, imports that one's configuration class only, and validates its options. Nothing heavy is
imported: configuration classes live in modules without torch.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import StringIO
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Generic, Literal, TypeVar, Union

from pydantic import (
    BaseModel,
    BeforeValidator,
    ByteSize,
    ConfigDict,
    Field,
    ValidationError,
    create_model,
)
from ruamel.yaml import YAML
from ruamel.yaml.constructor import SafeConstructor
from ruamel.yaml.nodes import CollectionNode

from fusion_core.errors import PluginError, RecipeError
from fusion_core.specs import AlgorithmSpec, ComponentSpec, ModelPoolSpec, TaskPoolSpec

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails
    from ruamel.yaml.nodes import Node

    from fusion_core.plugins import Component, PluginManager

SpecT = TypeVar("SpecT", bound=ComponentSpec)

_LARGEST_YAML = 2**16
_MOST_NODES = 100_000
_STRICT = ConfigDict(
    extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False
)

#: One factor an expert, by name or in pool order; absent ones are 1.
ExpertWeights = Mapping[str, float] | Sequence[float]


class ComponentConfig(BaseModel):
    """The options of a component: frozen, and refusing what it does not know.

    A field's description is the docstring below it; `fuse info`, `--help` and the JSON schema show
    it.
    """

    model_config = _STRICT


class Choice(BaseModel):
    """A component's name and options, the options not yet validated."""

    model_config = ConfigDict(extra="allow", frozen=True, arbitrary_types_allowed=True)

    name: str | None = None

    @property
    def options(self) -> dict[str, Any]:
        """Everything but the name."""
        return dict(self.model_extra or {})


class OutputOptions(BaseModel):
    """Where the merged model goes, and in which form."""

    model_config = _STRICT

    path: str | None = None
    """The directory to write; default: outputs/<pool>-<algorithm>-<n>."""
    dtype: Literal["float64", "float32", "float16", "bfloat16"] | None = None
    """The dtype of floating-point tensors; default: the base's."""
    shard_size: Annotated[ByteSize, Field(gt=0)] = ByteSize(5_000_000_000)
    """The largest size of one file, e.g. 5GB; a larger tensor has a file of its own."""


class AlignmentPolicy(BaseModel):
    """What to do where experts differ from the base; each policy is named, none is guessed."""

    model_config = _STRICT

    missing: Literal["error", "base"] = "error"
    """A tensor that an expert lacks: refuse, or take the base's."""
    extra: Literal["error", "drop"] = "error"
    """A tensor that only an expert has: refuse, or leave it out."""
    dtype: Literal["error", "promote"] = "promote"
    """Different dtypes: refuse, or compute in the wider one."""
    nan: Literal["error", "allow"] = "error"
    """NaN or infinity in the weights: refuse, or let it through."""


def _from_name(value: object) -> object:
    if value is None:  # a section that is there but empty
        return {}
    return {"name": value} if isinstance(value, str) else value


Component_ = Annotated[Choice, BeforeValidator(_from_name)]


class Recipe(BaseModel):
    """One run: what to fuse, how, and where it goes (phase one: shape only)."""

    model_config = ConfigDict(**{**_STRICT, "arbitrary_types_allowed": True})

    algorithm: Component_
    """How to fuse: a name, or a mapping with `name` and options."""
    model_pool: Component_ = Choice()
    """What to fuse; default: the pool that is installed as the default one."""
    task_pool: Component_ = Choice()
    """What to evaluate on, and what adaptive algorithms see; default: the model pool's own."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Everything random derives from it."""
    output: OutputOptions = OutputOptions()
    alignment: AlignmentPolicy = AlignmentPolicy()


@dataclass(frozen=True, slots=True)
class Resolved(Generic[SpecT]):
    """A component with its validated options."""

    component: Component[SpecT]
    config: ComponentConfig
    #: whether another plugin has a component of this name
    ambiguous: bool = False

    @property
    def name(self) -> str:
        """The component's own name, whatever alias the recipe used."""
        return self.component.spec.name

    def as_recipe(self) -> dict[str, Any]:
        """Return the section that says the same in full: name and every option."""
        name = self.component.qualified_name if self.ambiguous else self.name
        return {"name": name, **self.config.model_dump(mode="json")}

    def create(self) -> Any:  # noqa: ANN401 - an algorithm or a pool; the caller knows
        """Import the class and instantiate it."""
        return self.component.load_class()(self.config)


@dataclass(frozen=True, slots=True)
class ResolvedRecipe:
    """A recipe after both phases; a section is None where it was left out or given as an object."""

    recipe: Recipe
    algorithm: Resolved[AlgorithmSpec] | None
    model_pool: Resolved[ModelPoolSpec] | None
    task_pool: Resolved[TaskPoolSpec] | None


# --- reading and overriding ---------------------------------------------------------------------


def load_yaml(text: str, *, origin: str) -> Any:  # noqa: ANN401 - YAML holds anything
    """Parse YAML 1.2; `origin` names the text in errors."""
    if len(text) > _LARGEST_YAML:
        raise RecipeError(f"{origin}: larger than 64 KiB, which no recipe is")
    parser = YAML(typ="safe", pure=True)
    parser.Constructor = _BoundedConstructor
    try:
        return parser.load(text)
    except Exception as error:  # whatever the parser makes of a text that nobody vouches for
        problem = str(error).strip() or type(error).__name__
        raise RecipeError(f"{origin}: not valid YAML: {problem}") from error


class _BoundedConstructor(SafeConstructor):
    """Refuses aliases that would unfold into more than any recipe holds."""

    def construct_document(self, node: Node) -> Any:  # noqa: ANN401 - YAML holds anything
        if _unfolded(node, {}) > _MOST_NODES:
            raise ValueError("its aliases unfold into too much")
        return super().construct_document(node)


def _unfolded(node: Node, sizes: dict[int, int]) -> int:
    """Count a node and what is below it, as often as aliases repeat it."""
    if id(node) not in sizes:
        sizes[id(node)] = _MOST_NODES  # found again below itself: an alias that holds itself
        inner = node.value if isinstance(node, CollectionNode) else ()
        below = chain.from_iterable(each if isinstance(each, tuple) else (each,) for each in inner)
        sizes[id(node)] = 1 + sum(_unfolded(each, sizes) for each in below)
    return sizes[id(node)]


def dump_yaml(value: Mapping[str, Any]) -> str:
    """Return a mapping as YAML, keys in their order."""
    writer = YAML()
    writer.default_flow_style = False
    writer.width = 2**16  # a wrapped string is harder to read and to compare
    stream = StringIO()
    writer.dump(dict(value), stream)
    return stream.getvalue()


def load_recipe(path: str | Path) -> dict[str, Any]:
    """Read a recipe file; validation comes with the run, when flags have had their say.

    Raises `RecipeError` if the file is missing, is not YAML, or is no mapping.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"recipe {str(path)!r} cannot be read: {error}") from error
    recipe = load_yaml(text, origin=str(path))
    if not isinstance(recipe, dict):
        raise RecipeError(f"recipe {str(path)!r} is no mapping of sections to options")
    return recipe


def override(recipe: dict[str, Any], assignments: Sequence[str]) -> dict[str, Any]:
    """Return the recipe with `section.option=value` assignments applied; values are YAML."""
    for assignment in assignments:
        dotted, separator, value = assignment.partition("=")
        if not separator or not all(dotted.split(".")):
            raise RecipeError(
                f"--set {assignment!r} is no assignment", hint="Write --set algorithm.density=0.2."
            )
        value = load_yaml(value, origin=f"--set {dotted}")
        try:
            recipe = _assign(recipe, dotted.split("."), value)
        except TypeError as error:
            raise RecipeError(f"--set {assignment!r}: {error}") from error
    return recipe


def _assign(node: object, path: Sequence[str], value: object) -> dict[str, Any]:
    head, *rest = path
    branch = _from_name(node)  # `algorithm: ties` may be given options too
    if not isinstance(branch, Mapping):
        raise TypeError(f"{_shown(node)} has no options, so none is {head!r}")
    branch = dict(branch)
    branch[head] = _assign(branch.get(head), rest, value) if rest else value
    return branch


# --- validating ---------------------------------------------------------------------------------


def resolve(
    raw: Mapping[str, Any], plugins: PluginManager, *, live: frozenset[str] = frozenset()
) -> ResolvedRecipe:
    """Validate a recipe in two phases.

    `live` names the sections that the caller gave as objects: they are not looked up. Raises
    `RecipeError` with one line a problem, all of them at once; `PluginError` if that is all that is
    wrong.
    """
    problems: list[RecipeError | PluginError] = []
    try:
        recipe = validated(Recipe, raw)
    except RecipeError as error:
        problems.append(error)
        recipe, unreadable = _components_of(raw)
        live |= unreadable

    def phase_two(kind: type[SpecT], section: str) -> Resolved[SpecT] | None:
        choice: Choice = getattr(recipe, section)
        if section in live or choice.name is None:
            return None
        try:
            return resolve_component(kind, choice, plugins, section=section)
        except (RecipeError, PluginError) as error:
            problems.append(error)
            return None

    algorithm = phase_two(AlgorithmSpec, "algorithm")
    try:
        default_pool = _default_model_pool(recipe, plugins, live)
    except RecipeError as error:
        problems.append(error)
        default_pool = None
    recipe = _with_default(recipe, "model_pool", default_pool, live)
    model_pool = phase_two(ModelPoolSpec, "model_pool")
    default_tasks = model_pool.component.spec.default_task_pool if model_pool else None
    recipe = _with_default(recipe, "task_pool", default_tasks, live)
    task_pool = phase_two(TaskPoolSpec, "task_pool")
    if recipe.algorithm.name is None and "algorithm" not in live:
        problems.append(RecipeError("algorithm.name: required", hint="See: fuse list algorithms"))
    if task_pool is None and recipe.task_pool.options and not problems:
        problems.append(RecipeError("task_pool.name: required: the model pool has no tasks"))
    _raise_all(problems)
    return ResolvedRecipe(recipe, algorithm, model_pool, task_pool)


def resolve_component(
    kind: type[SpecT], choice: Choice, plugins: PluginManager, *, section: str
) -> Resolved[SpecT]:
    """Look one component up and validate its options; `section` prefixes errors."""
    component = plugins.find(kind, choice.name or "")
    config_class = component.load_config()
    hint = f"See: fuse info {component.spec.name}"
    config = validated(config_class, choice.options, prefix=section, hint=hint)
    bare = component.spec.name
    ambiguous = sum(bare in each.names for each in plugins.components(kind)) > 1
    return Resolved(component, config, ambiguous)


def choice_of(value: Any) -> Choice:  # noqa: ANN401 - YAML holds anything
    """Read a component's section: a name, or a mapping with `name` and options."""
    return validated(Choice, _from_name(value))


def _components_of(raw: Mapping[str, Any]) -> tuple[Recipe, frozenset[str]]:
    """Return what phase two can look at of a malformed recipe, and the sections that it cannot."""
    choices: dict[str, Any] = {}
    for section in ("algorithm", "model_pool", "task_pool"):
        try:
            choices[section] = choice_of(raw.get(section))
        except RecipeError:
            continue
    unreadable = {"algorithm", "model_pool", "task_pool"} - choices.keys()
    if "algorithm" not in raw:
        unreadable.add("algorithm")
    return Recipe(**{"algorithm": Choice(), **choices}), frozenset(unreadable)


def _with_default(recipe: Recipe, section: str, name: str | None, live: frozenset[str]) -> Recipe:
    choice: Choice = getattr(recipe, section)
    if section in live or choice.name is not None or name is None:
        return recipe
    return recipe.model_copy(update={section: Choice(name=name, **choice.options)})


def _default_model_pool(recipe: Recipe, plugins: PluginManager, live: frozenset[str]) -> str | None:
    if "model_pool" in live or recipe.model_pool.name is not None:
        return None
    if recipe.model_pool.options:
        return "checkpoints"
    defaults = [each for each in plugins.components(ModelPoolSpec) if each.spec.default]
    if len(defaults) == 1:
        return defaults[0].qualified_name
    known = (
        ", ".join(each.qualified_name for each in defaults) or "no installed pool is the default"
    )
    raise RecipeError(f"model_pool: required ({known})", hint="See: fuse list pools")


ModelT = TypeVar("ModelT", bound=BaseModel)


def validated(
    model: type[ModelT], values: object, *, prefix: str = "", hint: str | None = None
) -> ModelT:
    """Validate values against a model; raises `RecipeError` with one line a problem."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        lines = [_line(details, model, prefix) for details in error.errors()]
        raise RecipeError("\n".join(dict.fromkeys(lines)), hint=hint) from error


def _line(details: ErrorDetails, model: type[BaseModel], prefix: str) -> str:
    # Tags of a union's branches ("function-before[...]", "str") are pydantic's business.
    place = [str(part) for part in details["loc"] if "[" not in str(part)]
    where = ".".join([prefix, *place] if prefix else place) or "recipe"
    match details["type"]:
        case "extra_forbidden":
            return f"{where}: unknown option{_suggestion(details['loc'], model)}"
        case "missing":
            return f"{where}: required"
        case _:
            return f"{where} = {_shown(details['input'])}: {details['msg']}"


def _suggestion(location: tuple[int | str, ...], model: type[BaseModel]) -> str:
    fields = list(model.model_fields)
    if len(location) > 1 and location[0] in model.model_fields:
        inner = model.model_fields[str(location[0])].annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            fields = list(inner.model_fields)
    close = difflib.get_close_matches(str(location[-1]), fields, n=1)
    return f"; did you mean {close[0]}?" if close else f"; known: {', '.join(fields) or 'none'}"


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."  # noqa: PLR2004 - one line of a terminal


def _raise_all(problems: Sequence[RecipeError | PluginError]) -> None:
    if len(problems) == 1:
        raise problems[0]
    if problems:
        raise RecipeError(
            "\n".join(problem.message for problem in problems),
            hint="\n".join(dict.fromkeys(problem.hint for problem in problems if problem.hint)),
        )


# --- describing ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Option:
    """One option of a component, for people."""

    name: str
    type: str
    default: Any
    required: bool
    description: str


def options_of(config: type[BaseModel]) -> Iterator[Option]:
    """Describe the fields of a configuration class, in their order."""
    properties = config.model_json_schema().get("properties", {})
    for name, field in config.model_fields.items():
        default = field.get_default(call_default_factory=True, validated_data={})
        yield Option(
            name=name,
            type=_type_name(properties[name]),
            default=None if field.is_required() else default,
            required=field.is_required(),
            description=(field.description or "").replace("\n", " "),
        )


def _type_name(schema: Mapping[str, Any]) -> str:
    if "enum" in schema:
        return " | ".join(map(str, schema["enum"]))
    if "const" in schema:
        return str(schema["const"])
    if "anyOf" in schema:
        return " | ".join(dict.fromkeys(map(_type_name, schema["anyOf"])))
    return str(schema.get("type", "any"))


def recipe_schema(plugins: PluginManager) -> dict[str, Any]:
    """Return a JSON schema of recipes that knows every installed component's options."""
    sections: dict[str, Any] = {
        "algorithm": (_any_of(AlgorithmSpec, plugins), ...),
        "model_pool": (_any_of(ModelPoolSpec, plugins) | None, None),
        "task_pool": (_any_of(TaskPoolSpec, plugins) | None, None),
    }
    schema = create_model("Recipe", __base__=Recipe, **sections).model_json_schema()
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def _any_of(kind: type[ComponentSpec], plugins: PluginManager) -> Any:  # noqa: ANN401 - a type
    """Return the union of all components of a kind, each by its name alone or with options."""
    components = list(plugins.components(kind))
    names = tuple(name for each in components for name in each.names)
    models = tuple(_with_name(each) for each in components if _is_importable(each))
    return Union[(Literal[names], *models)] if models else Any


def _is_importable(component: Component[Any]) -> bool:
    """Tell whether a plugin's configuration can be imported; a run that needs it says why not."""
    try:
        component.load_config()
    except PluginError:
        return False
    return True


def _with_name(component: Component[Any]) -> Any:  # noqa: ANN401 - a type
    """Return a component's configuration class with one more field, its name."""
    spec = component.spec
    names: Any = Literal[component.names]
    title = f"{type(spec).__name__}_{spec.name}"
    # A pool may go without its name: it is the default one, or the model pool's own.
    field: Any = (names, ...) if isinstance(spec, AlgorithmSpec) else (names | None, None)
    return create_model(title, __base__=component.load_config(), name=field)
