"""`fuse clean`: list and remove what stopped runs left next to their outputs."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from fusion_core.cli.flags import AsJson
from fusion_core.cli.output import print_json, print_table
from fusion_core.errors import DiskError, RecipeError
from fusion_core.formatting import escape_control, format_bytes

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fusion_core.weights.writing.leftovers import Leftover

_OUTPUTS = Path("outputs")  # where `fuse run` writes without -o


def clean(
    directory: Annotated[
        Optional[Path],  # noqa: UP045 - typer reads these annotations at run time
        typer.Argument(
            metavar="DIR", help="Search DIR for outputs; default: outputs.", show_default=False
        ),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Remove without asking.")] = False,
    as_json: AsJson = False,
) -> None:
    """List and remove what stopped runs left behind.

    A stopped run leaves a directory .NAME.fuse-... next to its output. The same fuse run with
    --resume continues from it. Directories of running processes are listed, but never removed. On a
    terminal, the command asks before it removes anything. Elsewhere it removes only with --yes.
    """
    if directory is not None and not directory.is_dir():
        raise RecipeError(
            f"{directory} is not a directory", hint="Name the directory that holds the outputs."
        )
    from fusion_core.weights.writing.leftovers import find_leftovers

    outputs = directory or _OUTPUTS
    found = find_leftovers(outputs) if outputs.is_dir() else []
    dead = [leftover for leftover in found if not leftover.in_use]
    if not as_json and found:
        print_table(("left", "size", "age", "finished", "run"), [*map(_row, found)])
    elif not as_json:
        print(escape_control(f"nothing to clean in {outputs}"))
    asks = not yes and not as_json and _is_interactive()
    agreed = bool(dead) and (yes or (asks and typer.confirm("Remove those that are not in use?")))
    removed, errors = _remove(dead) if agreed else ([], [])
    if as_json:
        print_json(
            [
                {
                    "path": str(leftover.path),
                    "output": str(leftover.output),
                    "bytes": leftover.size,
                    "age_seconds": round(leftover.age, 1),
                    "tensors": leftover.tensors,
                    "in_use": leftover.in_use,
                    "removed": leftover in removed,
                }
                for leftover in found
            ]
        )
    elif removed:
        print(f"removed: {len(removed)}")
    if errors:
        raise DiskError("\n".join(error.message for error in errors), hint=errors[0].hint)


def _remove(find_leftovers: Sequence[Leftover]) -> tuple[list[Leftover], list[DiskError]]:
    """Remove as many as possible. Returns the removed ones, and the errors of the others."""
    removed, errors = [], []
    for leftover in find_leftovers:
        try:
            removed += [leftover] if leftover.remove() else []
        except DiskError as error:
            errors.append(error)
    return removed, errors


def _is_interactive() -> bool:
    return sys.stdin.isatty() and sys.stdout.isatty()


def _row(leftover: Leftover) -> tuple[str, ...]:
    run = "alive" if leftover.in_use else "dead"
    finished = "" if leftover.tensors is None else f"{leftover.tensors} tensors"
    return str(leftover.path), format_bytes(leftover.size), _format_age(leftover.age), finished, run


def _format_age(seconds: float) -> str:
    for unit, length in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} seconds"
