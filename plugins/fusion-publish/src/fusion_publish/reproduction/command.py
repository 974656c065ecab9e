"""`fuse reproduce MODEL`: make an output again, and compare."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Optional

import typer

if TYPE_CHECKING:
    from fusion_publish.reproduction.rerun import Reproduction


def reproduce(
    context: typer.Context,
    model: Annotated[
        str,
        typer.Argument(metavar="DIR|ORG/NAME", help="Reproduce this output, here or on the hub."),
    ],
    assignments: Annotated[
        Optional[list[str]],  # noqa: UP045 - typer reads these annotations at run time
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Name an input that moved, e.g. model_pool.base=PATH; repeatable.",
        ),
    ] = None,
    output: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(
            "-o", "--output", metavar="DIR", help="Keep the model in DIR; default: discard it."
        ),
    ] = None,
    device: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            metavar="DEVICE", help="Put live models on this device; default: the recorded one."
        ),
    ] = None,
    workers: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(metavar="N", min=1, help="Merge with N workers; default: one per core."),
    ] = None,
    trust: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(metavar="NAME", help="Allow something that runs code; repeatable."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="Hide progress.")] = False,
) -> None:
    """Run the recipe of an output again, and compare every tensor and file with its record.

    `fuse verify` compares the files of the output with the record.
    Inputs are found by the paths of recipe.yaml and by the recorded commits. If the results differ,
    the message says why: an input, a version, a kernel or the machine differs, or the output was
    not made by this recipe. The exit code is then 8. Without -o, the model is written to
    TMPDIR and then deleted.

    \b
    Examples:
      fuse reproduce merged
      fuse reproduce org/merged-model --set model_pool.base=models/base
    """  # noqa: D301 - \b is typer's: lines stay as they are
    from fusion_core import RunOptions, hub
    from fusion_core.commands import (
        escape_control,
        print_json,
        progress_for,
        trusted_names,
    )
    from fusion_publish.reproduction import rerun
    from fusion_publish.verification.locating import locate
    from fusion_publish.verification.record import PROVENANCE, RECIPE

    progress = progress_for(quiet=quiet)
    with ExitStack() as stack:
        stack.enter_context(hub.session(progress, again=True, updates=False))
        located = locate(model, [PROVENANCE, RECIPE])
        if output is None:
            output = Path(stack.enter_context(TemporaryDirectory(prefix="fuse-"))) / "model"
        options = RunOptions(
            block=context.obj or frozenset(),
            evaluate=False,
            progress=progress,
            trust=trusted_names(trust),
            workers=workers,
        )
        reproduction = rerun.reproduce(
            located,
            output,
            options,
            device=device,
            assignments=assignments or (),
        )
    if as_json:
        print_json(reproduction.as_json())
    else:
        _print(reproduction)
    reproduction.raise_differences()
    if not as_json:
        count = reproduction.tensors
        subject = escape_control(located.subject)
        typer.echo(f"reproduced: {subject} as recorded, {count} tensors, bit for bit")


def _print(reproduction: Reproduction) -> None:
    from fusion_core.commands import escape_control, print_table

    words = {True: "same", False: "differs", None: "compared by tensors"}
    rows = [(name, words[is_same]) for name, is_same in reproduction.files.items()]
    print_table(["file", "result"], rows)
    for cause in reproduction.causes if reproduction.is_same else ():
        typer.echo(escape_control(f"without effect: {cause}"))
