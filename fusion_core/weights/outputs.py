"""Where a model may be written, and the staging directory that is opened for it."""

from __future__ import annotations

import logging
import os
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from fusion_core.errors import OutputError
from fusion_core.weights.disk import writing
from fusion_core.weights.lock import locked
from fusion_core.weights.workplace import Workplace, repair
from fusion_core.weights.writer import Staging, present

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_log = logging.getLogger(__name__)


@contextmanager
def staged(
    output: Path, *, overwrite: bool = False, plan: bytes | None = None, resume: bool = False
) -> Iterator[Staging]:
    """Lock `output` and open a staging directory for it, which is gone afterwards.

    `plan` says in full what the run does: with `resume`, it goes on with work that a run of the
    same plan left. Without a plan nothing is ever kept. Raises `OutputError` if the output is
    present and not to be overwritten or another run is writing it, `DiskError` where the file
    system refuses.
    """
    check_output(output, overwrite=overwrite)
    with _parents_made(output) as made, locked(output):
        left = repair(output)
        check_output(output, overwrite=overwrite)
        staging = Staging(_workplace(output, left, plan, resume=resume), made)
        try:
            if not staging.workplace.path.exists():
                staging.workplace.make(plan)
            yield staging
        except BaseException as error:
            staging.close(error)
            raise
        else:
            staging.close(None)


def check_output(output: Path, *, overwrite: bool) -> None:
    """Raise `OutputError` if a run must not write there, `DiskError` if that cannot be told."""
    with writing(output):
        _check_kind(output)
        if output.exists() and any(output.iterdir()) and not overwrite:
            raise present(output)


def _check_kind(output: Path) -> None:
    """Raise `OutputError` for what cannot give its name to another directory."""
    if output.is_symlink():
        raise OutputError(f"output {output} is a symbolic link", hint="Name a directory itself.")
    if output.exists() and not output.is_dir():
        raise OutputError(f"output {output} is a file", hint="Name another directory with -o.")
    if os.path.ismount(output):  # nothing can be renamed to it
        raise OutputError(f"output {output} is a mount point", hint="Name a directory in it.")
    if Path.cwd().is_relative_to(output.resolve()):  # who works there would be left in no place
        raise OutputError(
            f"output {output} is the working directory, or holds it", hint="Name a directory in it."
        )


def _workplace(
    output: Path, left: Sequence[Workplace], plan: bytes | None, *, resume: bool
) -> Workplace:
    """Choose what to go on in: what a dead run of the same plan left, or a new one."""
    with writing(output):
        fitting = [each for each in left if plan is not None and each.continues(plan)]
        newest = max(fitting, key=lambda each: each.touched, default=None)
    if resume and newest is not None:
        _log.info("going on in %s", newest.path)
        return newest
    if resume:
        _log.warning("nothing to resume for %s: starting afresh", output)
    elif newest is not None:
        _log.warning("%s holds work of a run like this: --resume would go on with it", newest.path)
    return Workplace.beside(output)


@contextmanager
def _parents_made(output: Path) -> Iterator[list[Path]]:
    """Make a path's parents; those made are removed again if nothing came into them."""
    parent = output.absolute().parent
    with writing(output):
        made = [each for each in (parent, *parent.parents) if not each.exists()]
    try:
        with writing(output):
            parent.mkdir(parents=True, exist_ok=True)
        yield made
    finally:
        for each in made:
            with suppress(OSError):  # never made after all, or in use by now
                each.rmdir()
