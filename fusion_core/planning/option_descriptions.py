"""Descriptions of options: for `fuse info` and help, and as a JSON schema for editors."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
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
from fusion_core.machine.distributions import summarize_error
from fusion_core.planning.resolution import shared_options
from fusion_core.recipe.config import ComponentConfig, Recipe
from fusion_core.recipe.numeric_forms import forms_of
from fusion_core.recipe.patterns import Selection
from fusion_core.recipe.validation import option_models

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from pydantic import BaseModel

    from fusion_core.plugins.components import Component
    from fusion_core.plugins.manager import PluginManager


@dataclass(frozen=True, slots=True)
class Option:
    """The description of one option."""

    name: str
    type: str
    default: Any
    required: bool
    description: str
    #: the first of the field's `examples`
    example: Any
    #: the options nested in its value, for example in the values of a mapping
    options: tuple[Option, ...] = ()
    #: the forms of a number, keys of `FORMS`
    forms: tuple[str, ...] = ()


def describe_component_options(component: Component[Any]) -> list[Option]:
    """Describe a component's own options, then those that all components of its kind take."""
    config, spec = _load_config(component), component.spec
    if not isinstance(spec, AlgorithmSpec):
        return [*describe_options(config)]
    options = describe_options(config, by_depth=spec.takes_overrides)
    refused = set() if spec.takes_overrides else {"overrides", "by_depth"}
    selection = (part for part in describe_options(Selection) if part.name not in refused)
    return [*options, *selection]


def _load_config(component: Component[Any]) -> type[BaseModel]:
    """Load a configuration class; raises `BrokenPluginError` if it has no JSON schema."""
    config: type[BaseModel] = component.load_config()
    try:
        config.model_json_schema()
    except Exception as error:
        raise component.broken(f"cannot be described: {summarize_error(error)}") from error
    return config


def describe_options(config: type[BaseModel], *, by_depth: bool = False) -> Iterator[Option]:
    """Describe the fields of a configuration class, in order.

    `by_depth` says whether they may follow a tensor's depth.
    """
    schema = config.model_json_schema()
    properties, classes = schema.get("properties", {}), schema.get("$defs", {})
    for name, field in config.model_fields.items():
        default = field.get_default(call_default_factory=True, validated_data={})
        nested = chain.from_iterable(map(describe_options, option_models(field.annotation)))
        distinct: list[Option] = []  # of classes with options in common; defaults are not hashable
        for option in nested:
            if option not in distinct:
                distinct.append(option)
        yield Option(
            name=name,
            type=_type_name(properties[name], classes),
            default=None if field.is_required() else default,
            required=field.is_required(),
            description=(field.description or "").replace("\n", " "),
            example=next(iter(field.examples or ()), None),
            options=tuple(distinct),
            forms=forms_of(field, by_depth=by_depth),
        )


def _type_name(schema: Mapping[str, Any], classes: Mapping[str, Any]) -> str:
    """Name a type; `classes` are the schemas that others refer to, at most once on a path."""
    if "$ref" in schema:
        referred = schema["$ref"].rpartition("/")[2]
        others = {name: known for name, known in classes.items() if name != referred}
        return _type_name(classes.get(referred, {}), others)
    if values := schema.get("enum", [schema["const"]] if "const" in schema else []):
        return " | ".join(map(str, values))
    name = partial(_type_name, classes=classes)
    if branches := schema.get("anyOf", schema.get("oneOf")):
        # null is left out: the default shows that an option is optional
        schemas = (branch for branch in branches if branch.get("type") != "null")
        return " | ".join(dict.fromkeys(map(name, schemas)))
    if "prefixItems" in schema:
        return f"[{', '.join(map(name, schema['prefixItems']))}]"
    if schema.get("type") == "array" and "items" in schema:
        return f"list of {name(schema['items'])}"
    kind = str(schema.get("type", "any"))
    return {"object": "mapping", "array": "list"}.get(kind, kind)


def recipe_schema(plugins: PluginManager) -> dict[str, Any]:
    """Return the JSON schema of recipes, with the options of every installed component."""
    pipelines = tuple(map(_pipeline_type, plugins.components(PipelineSpec)))
    algorithm: Any = Union[(_union_of(AlgorithmSpec, plugins), *pipelines)]
    sections: dict[str, Any] = {
        "algorithm": (Union[algorithm, tuple[algorithm, ...]], ...),  # noqa: UP007 - may be Any
        "model_pool": (_union_of(ModelPoolSpec, plugins) | None, None),
        "task_pool": (_union_of(TaskPoolSpec, plugins) | None, None),
        "executor": (_union_of(ExecutorSpec, plugins) | None, None),
    }
    schema = create_model("Recipe", __base__=Recipe, **sections).model_json_schema()
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def _pipeline_type(component: Component[PipelineSpec]) -> Any:  # noqa: ANN401 - a type
    """Return the type of a pipeline's section: its name, or a mapping with options by stage."""
    names: Any = Literal[component.names]
    options: Any = {name: (dict[str, Any], {}) for name, _ in component.spec.stages}
    title = f"PipelineSpec_{component.spec.name}"
    return Union[names, create_model(title, __base__=ComponentConfig, name=(names, ...), **options)]  # noqa: UP007


def _union_of(kind: type[ComponentSpec], plugins: PluginManager) -> Any:  # noqa: ANN401 - a type
    """Return the type of a section: the name of any component of a kind, or name and options."""
    names: list[str] = []
    models: list[Any] = []
    for component in plugins.components(kind):
        names += component.names
        try:
            models.append(_named_config(component))
        except PluginError:  # `fuse info` shows what is wrong
            continue
    return Union[(Literal[tuple(names)], *models)] if models else Any


def _named_config(component: Component[Any]) -> Any:  # noqa: ANN401 - a type
    """Return a component's configuration class with an additional field `name`."""
    spec = component.spec
    names: Any = Literal[component.names]
    # Other sections may leave the name out: they have a default component.
    field: Any = (names, ...) if isinstance(spec, AlgorithmSpec) else (names | None, None)
    shared: Any = (Selection,) if shared_options(component) else ()
    title = f"{type(spec).__name__}_{spec.name}"
    return create_model(title, __base__=(_load_config(component), *shared), name=field)
