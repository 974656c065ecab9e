"""`fuse info NAME`: one component, its needs and its options."""

from __future__ import annotations

import shlex
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from fusion_core.cli import completion
from fusion_core.cli.flags import AsJson
from fusion_core.cli.output import print_json, print_table
from fusion_core.contracts.specs import (
    COSTS,
    STAGES,
    AlgorithmSpec,
    ComponentSpec,
    ModelPoolSpec,
    PipelineSpec,
)
from fusion_core.formatting import format_bytes
from fusion_core.plugins.manager import REGISTER_HOOKS, load_plugins

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from fusion_core.plugins.components import Component
    from fusion_core.plugins.manager import PluginManager

_LABELS = {
    "download_bytes": "download of the models alone",
    "decoded_bytes": "additional space for decoded examples",
}
_NOTATION = "W_k is expert k of K, tau_k = W_k - base, and tau a merge minus the base"


def info(
    context: typer.Context,
    name: Annotated[
        Optional[str],  # noqa: UP045 - typer reads it at run time
        typer.Argument(
            help="Show this component or command.",
            autocompletion=completion.names_of(ComponentSpec),
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show a component and its options, or list them all."""
    plugins = load_plugins(context.obj)
    if name is None:
        _print_names(plugins, as_json=as_json)
        return
    # A model pool and a task pool may share a name.
    kinds = dict.fromkeys(
        type(component.spec)
        for component in plugins.components(ComponentSpec)
        if name in component.names
    )
    components = [plugins.find(kind, name) for kind in kinds or [ComponentSpec]]
    descriptions = [_describe(component, plugins) for component in components]
    if as_json:
        print_json(descriptions)
        return
    for number, description in enumerate(descriptions):
        if number:
            print()
        _print(description)


def _print_names(plugins: PluginManager, *, as_json: bool) -> None:
    names = {
        f"{kind.kind}s": sorted(component.spec.name for component in plugins.components(kind))
        for kind in REGISTER_HOOKS.values()
    }
    if as_json:
        print_json(names)
        return
    print("fuse info NAME shows a component's purpose, needs and options.\n")
    for kind, known in names.items():
        print(f"{kind}: {', '.join(known) or 'none'}")


def option_rows(options: list[dict[str, Any]], prefix: str = "") -> Iterator[list[str]]:
    """Yield table rows of options: name, type, default, description. Nested options follow."""
    for option in options:
        name = f"{prefix}{option['name']}"
        default = "required" if option["required"] else _format_value(option["default"])
        kind = " | ".join(option["forms"]) if len(option["forms"]) > 1 else option["type"]
        yield [name, kind, default, option["description"]]
        nested = f"{name}.NAME." if option["type"] == "mapping" else f"{name}."
        yield from option_rows(option["options"], nested)


def options_as_json(component: Component[Any], plugins: PluginManager) -> list[dict[str, Any]]:
    """Describe a component's options. This imports its configuration and nothing heavier.

    A pipeline has the options of its stages, with the defaults that it sets.
    """
    from pydantic_core import to_jsonable_python

    from fusion_core.planning.option_descriptions import describe_component_options

    if isinstance(component.spec, PipelineSpec):
        stages = component.spec.stages
        return [row for stage, given in stages for row in _stage_options(stage, given, plugins)]
    options: list[dict[str, Any]] = to_jsonable_python(
        [asdict(option) for option in describe_component_options(component)]
    )
    return options


def _stage_options(
    stage: str, given: Mapping[str, Any], plugins: PluginManager
) -> Iterator[dict[str, Any]]:
    component = plugins.find(AlgorithmSpec, stage)
    preset = _presets_as_json(component).get(given.get("preset", ""), {})
    for option in options_as_json(component, plugins):
        default = {**preset, **given}.get(option["name"], option["default"])
        yield {**option, "name": f"{stage}.{option['name']}", "default": default}


def _presets_as_json(component: Component[Any]) -> dict[str, dict[str, Any]]:
    from pydantic_core import to_jsonable_python

    presets: dict[str, dict[str, Any]] = to_jsonable_python(component.load_config().presets)
    return presets


def _describe(component: Component[Any], plugins: PluginManager) -> dict[str, Any]:
    spec, options = component.spec, options_as_json(component, plugins)
    hidden = {"target", "config", "aliases", "name", "summary"}
    description = {
        "kind": spec.kind,
        "name": spec.name,
        "summary": spec.summary,
        "plugin": component.plugin.distribution,
        "version": component.plugin.version,
        **{key: value for key, value in asdict(spec).items() if key not in hidden},
    }
    if isinstance(spec, AlgorithmSpec | PipelineSpec):
        description["example"] = _example_command(spec, options, plugins)
    return {**description, "presets": _presets_as_json(component), "options": options}


def _example_command(
    spec: AlgorithmSpec | PipelineSpec,
    options: Iterable[Mapping[str, Any]],
    plugins: PluginManager,
) -> str:
    """Return a command with as many experts as the algorithm takes, and its required options."""
    pipeline, most = spec.name, None
    if isinstance(spec, AlgorithmSpec):
        if spec.example:
            return shlex.join(("fuse", "run", "--algo", spec.name, *spec.example))
        pipeline, most = STAGES[spec.stage].example.format(spec.name), spec.max_experts
    words = ["fuse", "run", "--algo", pipeline]
    pool = next(
        (known.spec for known in plugins.components(ModelPoolSpec) if known.spec.default), None
    )
    if pool is not None:
        words += ["--pool", pool.name]
        if most is not None and most < len(pool.tasks):  # there is one expert per task
            words += ["--set", f"model_pool.tasks=[{', '.join(pool.tasks[:most])}]"]
    section = "algorithm" if pipeline == spec.name else f"algorithm.{spec.name}"
    for option in options:
        if option["required"]:
            value = "..." if option["example"] is None else option["example"]
            words += ["--set", f"{section}.{option['name']}={value}"]
    return shlex.join(words)


def _print(description: dict[str, Any]) -> None:
    options, presets = description.pop("options"), description.pop("presets")
    print(f"{description.pop('kind')} {description.pop('name')}: {description.pop('summary')}")
    for key, value in description.items():
        if value not in (None, False, "none", [], ()):
            print(f"  {_LABELS.get(key) or key.replace('_', ' ')}: {_format_field(key, value)}")
    if options:
        print()
        print_table(["option", "type", "default", "description"], list(option_rows(options)))
        _print_forms({form for option in options for form in option["forms"]})
    if presets:
        print()
        rows = [[name, _format_options(values)] for name, values in presets.items()]
        print_table(["preset", "sets, unless given"], rows)


def _print_forms(forms: set[str]) -> None:
    """Print the forms of numbers, where some option has more than one."""
    from fusion_core.recipe.numeric_forms import FORMS

    if len(forms) > 1:
        print()
        print_table(["form", "written"], [[form, FORMS[form]] for form in FORMS if form in forms])


def _format_field(key: str, value: Any) -> str:  # noqa: ANN401 - any field's
    if key.endswith("_bytes"):
        return format_bytes(value)
    if key == "formula":
        return f"{value}\n    {_NOTATION}"
    if key == "stages":
        stages = [(name, _format_options(options)) for name, options in value]
        return ", ".join(f"{name} ({options})" if options else name for name, options in stages)
    if key == "cost":
        return f"{value}: {COSTS[value]}"
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value))
    return "yes" if value is True else str(value)


def _format_options(options: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}: {_format_value(value)}" for name, value in options.items())


def _format_value(value: Any) -> str:  # noqa: ANN401 - any option's
    if value is None:
        return "-"
    return str(value).lower() if isinstance(value, bool) else str(value)
