"""Options described: for people (`fuse info`, help) and for editors (a JSON schema of recipes)."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any, Literal, Union

from pydantic import create_model

from fusion_core.contracts.specs import (
    AlgorithmSpec,
    ComponentSpec,
    ExecutorSpec,
    ModelPoolSpec,
    PipelineSpec,
    TaskPoolSpec,
)
from fusion_core.errors import PluginError
from fusion_core.machine.installed import cause_of
from fusion_core.planning.resolving import shared_options
from fusion_core.recipe.config import ComponentConfig, Recipe
from fusion_core.recipe.patterns import Selection
from fusion_core.recipe.validation import models_in

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from pydantic import BaseModel

    from fusion_core.plugins.components import Component
    from fusion_core.plugins.manager import PluginManager


@dataclass(frozen=True, slots=True)
class Option:
    """One option of a component, for people."""

    name: str
    type: str
    default: Any
    required: bool
    description: str
    #: the first of the field's `examples`
    example: Any
    #: what is inside it: the options of each of a mapping's values, say
    options: tuple[Option, ...] = ()


def options_of_component(component: Component[Any]) -> list[Option]:
    """Describe a component's options: its own, then those that every one of its kind takes."""
    shared = options_of(Selection) if shared_options(component) else ()
    return [*options_of(_config_of(component)), *shared]


def _config_of(component: Component[Any]) -> type[BaseModel]:
    """Load a configuration class; raises `BrokenPluginError` if it cannot be described."""
    config: type[BaseModel] = component.load_config()
    try:
        config.model_json_schema()
    except Exception as error:
        raise component.broken(f"cannot be described: {cause_of(error)}") from error
    return config


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
            example=next(iter(field.examples or ()), None),
            options=tuple(_inside(field.annotation)),
        )


def _inside(annotation: Any) -> Iterator[Option]:  # noqa: ANN401 - any type
    """Describe the options inside a type; what several classes have alike, once."""
    seen: list[Option] = []
    for option in chain.from_iterable(map(options_of, models_in(annotation))):
        if option not in seen:
            seen.append(option)
            yield option


def _type_name(schema: Mapping[str, Any]) -> str:
    if "enum" in schema:
        return " | ".join(map(str, schema["enum"]))
    if "const" in schema:
        return str(schema["const"])
    if "anyOf" in schema:  # an option that may be left out says so by its default
        present = (each for each in schema["anyOf"] if each.get("type") != "null")
        return " | ".join(dict.fromkeys(map(_type_name, present)))
    if schema.get("type") == "array" and "items" in schema:
        return f"list of {_type_name(schema['items'])}"
    kind = str(schema.get("type", "any"))
    return "mapping" if kind == "object" else kind


def recipe_schema(plugins: PluginManager) -> dict[str, Any]:
    """Return a JSON schema of recipes that knows every installed component's options."""
    sections: dict[str, Any] = {
        "algorithm": (_one_or_list(_any_algorithm(plugins)), ...),
        "model_pool": (_any_of(ModelPoolSpec, plugins) | None, None),
        "task_pool": (_any_of(TaskPoolSpec, plugins) | None, None),
        "executor": (_any_of(ExecutorSpec, plugins) | None, None),
    }
    schema = create_model("Recipe", __base__=Recipe, **sections).model_json_schema()
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def _any_algorithm(plugins: PluginManager) -> Any:  # noqa: ANN401 - a type
    pipelines = tuple(map(_pipeline_type, plugins.components(PipelineSpec)))
    return Union[(_any_of(AlgorithmSpec, plugins), *pipelines)]


def _pipeline_type(component: Component[PipelineSpec]) -> Any:  # noqa: ANN401 - a type
    """Return the type of a pipeline's section: its name alone, or with options by stage."""
    names: Any = Literal[component.names]
    options: Any = {name: (dict[str, Any], {}) for name, _ in component.spec.stages}
    title = f"PipelineSpec_{component.spec.name}"
    return Union[names, create_model(title, __base__=ComponentConfig, name=(names, ...), **options)]  # noqa: UP007


def _one_or_list(one: Any) -> Any:  # noqa: ANN401 - types
    return Union[one, tuple[one, ...]]  # noqa: UP007 - `|` is not for whatever a type may be


def _any_of(kind: type[ComponentSpec], plugins: PluginManager) -> Any:  # noqa: ANN401 - a type
    """Return the union of all components of a kind, each by its name alone or with options."""
    components = list(plugins.components(kind))
    names = tuple(name for component in components for name in component.names)
    models = tuple(_with_name(component) for component in components if _is_usable(component))
    return Union[(Literal[names], *models)] if models else Any


def _is_usable(component: Component[Any]) -> bool:
    """Tell whether a plugin's configuration can be described; `fuse info` says why not."""
    try:
        _config_of(component)
    except PluginError:
        return False
    return True


def _with_name(component: Component[Any]) -> Any:  # noqa: ANN401 - a type
    """Return a component's configuration class with one more field, its name."""
    spec = component.spec
    names: Any = Literal[component.names]
    title = f"{type(spec).__name__}_{spec.name}"
    # Others may go without their name: the default one is meant, or the model pool's own.
    field: Any = (names, ...) if isinstance(spec, AlgorithmSpec) else (names | None, None)
    shared: Any = (Selection,) if shared_options(component) else ()
    return create_model(title, __base__=(component.load_config(), *shared), name=field)
