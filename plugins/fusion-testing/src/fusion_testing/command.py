"""`fuse new-plugin NAME`: write the package of a new plugin."""

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
    name: Annotated[str, typer.Argument(help="Name of the distribution, e.g. fusion-median.")],
    kind: Annotated[Kind, typer.Option(help="Provide a component of this kind.")] = Kind.ALGORITHM,
    output: Annotated[
        Optional[Path],  # noqa: UP045 - typer reads it at run time
        typer.Option(
            "-o", "--output", metavar="DIR", help="Write the package to DIR; default: NAME."
        ),
    ] = None,
) -> None:
    """Write the package of a new plugin.

    The package installs, runs, and passes its own tests, ruff and mypy.
    """
    names = Names.of(name)
    directory = write_plugin(name, kind, output)
    plugins = load_plugins(context.obj)
    components = chain.from_iterable(map(plugins.components, _SPECS[kind]))
    for component in components:
        if names.component in component.names:
            warning = (
                f"{component.qualified_name} also has the name {names.component!r}. With both "
                "installed, users must type full names. Change `name` in plugin.py."
            )
            print_warnings([warning])
    path = escape_control(str(directory))
    print(f"written: {path}\n\nnext:")
    print(f"  cd {path}")
    print("  pip install -e . fusion-testing")
    print("  pytest")
    print(f"  fuse info {names.component}")
