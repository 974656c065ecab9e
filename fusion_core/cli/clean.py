"""`fuse clean`: list what stopped runs left beside their outputs, and remove it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from fusion_core.cli.listing import AsJson
from fusion_core.cli.output import print_json, print_table
from fusion_core.errors import DiskError, RecipeError
from fusion_core.shown import amount, printable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fusion_core.weights.writing.leftovers import Leftover

_OUTPUTS = Path("outputs")  # where `fuse run` puts what no -o names


def clean(
    directory: Annotated[
        Optional[Path],  # noqa: UP045 - typer reads these annotations at run time
        typer.Argument(
            metavar="DIR", help="Where the outputs lie; default: outputs.", show_default=False
        ),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Remove without asking.")] = False,
    as_json: AsJson = False,
) -> None:
    """List what stopped runs left beside and in their outputs, and remove it.

    A directory .NAME.fuse-... can be gone on from: by the same fuse run with --resume. What belongs
    to runs that are alive is shown and never touched. On a terminal this asks before it removes
    anything; elsewhere it removes with --yes only. To list changes nothing.
    """
    if directory is not None and not directory.is_dir():
        raise RecipeError(f"{directory} is not a directory", hint="Name one that outputs lie in.")
    from fusion_core.weights.writing.leftovers import leftovers

    place = directory or _OUTPUTS
    found = leftovers(place) if place.is_dir() else []
    dead = [each for each in found if not each.in_use]
    if not as_json:
        _show(found, place)
    removed, errors = _remove(dead) if dead and _agreed(yes, as_json) else ([], [])
    if as_json:
        print_json([_as_json(each, removed) for each in found])
    elif removed:
        print(f"removed: {len(removed)}")
    if errors:
        raise DiskError("\n".join(error.message for error in errors), hint=errors[0].hint)


def _remove(dead: Sequence[Leftover]) -> tuple[list[Leftover], list[DiskError]]:
    """Remove what can be removed, whatever is wrong with the rest."""
    removed, errors = [], []
    for leftover in dead:
        try:
            removed += [leftover] if leftover.remove() else []
        except DiskError as error:
            errors.append(error)
    return removed, errors


def _agreed(yes: bool, as_json: bool) -> bool:
    asks = not as_json and _is_a_person()
    return yes or (asks and typer.confirm("Remove those that are not in use?"))


def _is_a_person() -> bool:
    return sys.stdin.isatty() and sys.stdout.isatty()


def _show(found: Sequence[Leftover], place: Path) -> None:
    if not found:
        print(printable(f"nothing to clean in {place}"))
        return
    headings = ("left", "size", "age", "finished", "run")
    print_table(headings, [_row(each) for each in found])


def _row(each: Leftover) -> tuple[str, ...]:
    size, run = amount(each.size), "alive" if each.in_use else "dead"
    finished = "" if each.tensors is None else f"{each.tensors} tensors"
    return (str(each.path), size, _age(each.age), finished, run)


def _age(seconds: float) -> str:
    for unit, length in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} seconds"


def _as_json(each: Leftover, removed: Sequence[Leftover]) -> dict[str, Any]:
    return {
        "path": str(each.path),
        "output": str(each.output),
        "bytes": each.size,
        "age_seconds": round(each.age, 1),
        "tensors": each.tensors,
        "in_use": each.in_use,
        "removed": each in removed,
    }
