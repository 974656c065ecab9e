"""`fuse info NAME`: one component, its needs and its options."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from fusion_core.cli import completion
from fusion_core.cli.example import example
from fusion_core.cli.listing import AsJson
from fusion_core.cli.output import print_json, print_table
from fusion_core.contracts.specs import (
    COSTS,
    AlgorithmSpec,
    CommandSpec,
    ComponentSpec,
    ExecutorSpec,
    FormatSpec,
    ModelPoolSpec,
    PipelineSpec,
    TaskPoolSpec,
)
from fusion_core.plugins.manager import load_plugins
from fusion_core.shown import amount

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from fusion_core.plugins.components import Component
    from fusion_core.plugins.manager import PluginManager


_KINDS = (
    AlgorithmSpec,
    PipelineSpec,
    ModelPoolSpec,
    TaskPoolSpec,
    FormatSpec,
    ExecutorSpec,
    CommandSpec,
)
_LABELS = {
    "download_bytes": "download of the models alone",
    "decoded_bytes": "room for decoded examples, beside their download",
}
_NOTATION = "W_k is expert k of K, tau_k = W_k - base, and tau a merge less the base"


def info(
    context: typer.Context,
    name: Annotated[
        Optional[str],  # noqa: UP045 - typer reads it at run time
        typer.Argument(
            help="a component or a command",
            autocompletion=completion.components,
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show a component and its options; without a name, what can be asked for."""
    plugins = load_plugins(context.obj)
    if name is None:
        _show_names(plugins, as_json=as_json)
        return
    described = [_described(each, plugins) for each in _found(plugins, name)]
    if as_json:
        print_json(described)
        return
    for number, each in enumerate(described):
        if number:
            print()
        _print(each)


def _show_names(plugins: PluginManager, *, as_json: bool) -> None:
    names = {
        f"{kind.kind}s": sorted(component.spec.name for component in plugins.components(kind))
        for kind in _KINDS
    }
    if as_json:
        print_json(names)
        return
    print("fuse info NAME shows what a component is, what it needs and which options it has.\n")
    for kind, known in names.items():
        print(f"{kind}: {', '.join(known) or 'none'}")


def option_rows(options: list[dict[str, Any]], above: str = "") -> Iterator[list[str]]:
    """Lay options out as table rows: name, type, default, description; what is inside, below."""
    for option in options:
        name = f"{above}{option['name']}"
        default = "required" if option["required"] else _default(option["default"])
        yield [name, option["type"], default, option["description"]]
        inner = f"{name}.NAME." if option["type"] == "mapping" else f"{name}."
        yield from option_rows(option["options"], inner)


def options_as_json(component: Component[Any], plugins: PluginManager) -> list[dict[str, Any]]:
    """Describe a component's options; imports its configuration, nothing heavier.

    A pipeline's are those of its stages, with the defaults that it sets.
    """
    from pydantic_core import to_jsonable_python

    from fusion_core.planning.described import options_of_component

    if isinstance(component.spec, PipelineSpec):
        stages = component.spec.stages
        return [row for stage, given in stages for row in _stage_options(stage, given, plugins)]
    options: list[dict[str, Any]] = to_jsonable_python(
        [asdict(option) for option in options_of_component(component)]
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
    """Return the options that each preset sets, as the configuration itself applies them."""
    from pydantic_core import to_jsonable_python

    presets: dict[str, dict[str, Any]] = to_jsonable_python(component.load_config().presets)
    return presets


def _found(plugins: PluginManager, name: str) -> list[Component[Any]]:
    """Find a name among all kinds: a pool of models and a pool of tasks may share one."""
    named = [
        type(component.spec)
        for component in plugins.components(ComponentSpec)
        if name in component.names
    ]
    return [plugins.find(kind, name) for kind in dict.fromkeys(named or [ComponentSpec])]


def _described(component: Component[Any], plugins: PluginManager) -> dict[str, Any]:
    spec, options = asdict(component.spec), options_as_json(component, plugins)
    is_algorithm = isinstance(component.spec, AlgorithmSpec | PipelineSpec)
    hidden = {"target", "config", "aliases", "name", "summary"}
    return {
        "kind": component.spec.kind,
        "name": component.spec.name,
        "summary": component.spec.summary,
        "plugin": component.plugin.distribution,
        "version": component.plugin.version,
        **{key: value for key, value in spec.items() if key not in hidden},
        **({"example": example(component.spec, options, plugins)} if is_algorithm else {}),
        "presets": _presets_as_json(component),
        "options": options,
    }


def _print(described: dict[str, Any]) -> None:
    options, presets = described.pop("options"), described.pop("presets")
    print(f"{described.pop('kind')} {described.pop('name')}: {described.pop('summary')}")
    for key, value in described.items():
        if value not in (None, False, "none", [], ()):
            print(f"  {_LABELS.get(key) or key.replace('_', ' ')}: {_shown(key, value)}")
    if options:
        print()
        print_table(["option", "type", "default", "description"], list(option_rows(options)))
    if presets:
        print()
        print_table(["preset", "sets, where they are not given"], list(_preset_rows(presets)))


def _preset_rows(presets: dict[str, dict[str, Any]]) -> Iterator[list[str]]:
    """Lay presets out as table rows: name, options with their values."""
    for name, options in presets.items():
        yield [name, ", ".join(f"{option}: {_default(value)}" for option, value in options.items())]


def _shown(key: str, value: Any) -> str:  # noqa: ANN401 - any field's
    if key.endswith("_bytes"):
        return amount(value)
    if key == "formula":
        return f"{value}\n    {_NOTATION}"
    if key == "stages":
        return ", ".join(map(_stage, value))
    if key == "cost":
        return f"{value}: {COSTS[value]}"
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value))
    return "yes" if value is True else str(value)


def _stage(stage: tuple[str, dict[str, Any]]) -> str:
    name, options = stage
    given = ", ".join(f"{option}: {_default(value)}" for option, value in options.items())
    return f"{name} ({given})" if given else name


def _default(value: Any) -> str:  # noqa: ANN401 - any option's
    if value is None:
        return "-"
    return str(value).lower() if isinstance(value, bool) else str(value)
