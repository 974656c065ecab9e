"""`fuse new-plugin NAME`: the package of a plugin that passes its tests as it is."""

from __future__ import annotations

from itertools import chain
from pathlib import Path
from typing import Annotated, Optional

import typer

from fusion_core.cli.output import print_warnings
from fusion_core.contracts.specs import (
    AlgorithmSpec,
    CommandSpec,
    ComponentSpec,
    FormatSpec,
    ModelPoolSpec,
    TaskPoolSpec,
)
from fusion_core.formatting import escape_control
from fusion_core.plugins.manager import load_plugins
from fusion_testing.skeleton import Kind, Names, write_plugin

_SPECS: dict[Kind, tuple[type[ComponentSpec], ...]] = {
    Kind.ALGORITHM: (AlgorithmSpec,),
    Kind.MODEL_POOL: (ModelPoolSpec,),
    Kind.TASK_POOL: (TaskPoolSpec,),
    Kind.TEXT_TASK_POOL: (TaskPoolSpec,),
    Kind.POOLS: (ModelPoolSpec, TaskPoolSpec),
    Kind.FORMAT: (FormatSpec,),
    Kind.COMMAND: (CommandSpec,),
}


def new_plugin(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="Its distribution's name, e.g. fusion-median.")],
    kind: Annotated[Kind, typer.Option(help="What it provides.")] = Kind.ALGORITHM,
    output: Annotated[
        Optional[Path],  # noqa: UP045 - typer reads it at run time
        typer.Option("-o", "--output", metavar="DIR", help="Default: NAME, in this directory."),
    ] = None,
) -> None:
    """Write the package of a new plugin.

    As written it installs, is listed, runs, and passes its own tests, ruff and mypy.
    """
    names = Names.of(name)
    directory = write_plugin(name, kind, output)
    plugins = load_plugins(context.obj)
    components = chain.from_iterable(map(plugins.components, _SPECS[kind]))
    for component in components:
        if names.component in component.names:
            taken = f"{component.qualified_name} has the name {names.component!r}, too; with both "
            print_warnings([f"{taken}installed, only full names work. Change `name` in plugin.py."])
    place = escape_control(str(directory))
    print(f"written: {place}\n\nnext:")
    print(f"  cd {place}")
    print("  pip install -e . fusion-testing")
    print("  pytest")
    print(f"  fuse info {names.component}")
