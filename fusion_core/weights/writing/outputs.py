"""The staging directory that is opened for an output, and what keeps other runs away from it."""

from __future__ import annotations

import logging
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from fusion_core.weights.writing.disk import sync_directory, writing
from fusion_core.weights.writing.lock import locked
from fusion_core.weights.writing.target import check_output
from fusion_core.weights.writing.workplace import Workplace, repair
from fusion_core.weights.writing.writer import Staging

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

_log = logging.getLogger(__name__)


@contextmanager
def staged(
    output: Path, *, overwrite: bool = False, plan: bytes | None = None, resume: bool = False
) -> Iterator[Staging]:
    """Claim `output` and open a staging directory for it, which is gone afterwards."""
    with (
        claim(output, overwrite=overwrite),
        staging_in(output, overwrite=overwrite, plan=plan, resume=resume) as staging,
    ):
        yield staging


@contextmanager
def claim(output: Path, *, overwrite: bool = False) -> Iterator[None]:
    """Keep `output` from other runs, with its parents made.

    Raises `OutputError` if it is present and not to be overwritten or another run is writing it,
    `DiskError` where the file system refuses.
    """
    check_output(output, overwrite=overwrite)
    with _parents_made(output), locked(output):
        check_output(output, overwrite=overwrite)  # the run that had the lock may have made it
        yield


@contextmanager
def staging_in(
    output: Path, *, overwrite: bool, plan: bytes | None, resume: bool
) -> Iterator[Staging]:
    """Open a staging directory for an output that is claimed; raises as `claim` does.

    `plan` says in full what the run does: with `resume`, it goes on with work that a run of the
    same plan left. Without a plan nothing is ever kept.
    """
    left = repair(output)
    check_output(output, overwrite=overwrite)
    staging = Staging(_workplace(output, left, plan, resume=resume))
    try:
        if not staging.workplace.path.exists():
            staging.workplace.make(plan)
        yield staging
    except BaseException as error:
        staging.close(error)
        raise
    else:
        staging.close(None)


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
def _parents_made(output: Path) -> Iterator[None]:
    """Make a path's parents; those made are removed again if nothing came into them."""
    parent = output.absolute().parent
    with writing(output):
        made = [each for each in (parent, *parent.parents) if not each.exists()]
    try:
        with writing(output):
            parent.mkdir(parents=True, exist_ok=True)
            for directory in made:
                sync_directory(directory.parent)
        yield
    finally:
        for directory in made:
            with suppress(OSError):  # never made after all, or in use by now
                directory.rmdir()
