"""Claim an output for one run, and open its staging directory."""

from __future__ import annotations

import logging
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from fusion_core.weights.writing.disk import report_disk_errors, sync_directory
from fusion_core.weights.writing.lock import lock_output
from fusion_core.weights.writing.output_path import check_output
from fusion_core.weights.writing.workspace import Workspace, repair
from fusion_core.weights.writing.writer import Staging

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

_log = logging.getLogger(__name__)


@contextmanager
def stage_output(
    output: Path, *, overwrite: bool = False, plan: bytes | None = None, resume: bool = False
) -> Iterator[Staging]:
    """Claim `output` and open a staging directory for it, as `claim` and `open_staging` do."""
    with (
        claim(output, overwrite=overwrite),
        open_staging(output, overwrite=overwrite, plan=plan, resume=resume) as staging,
    ):
        yield staging


@contextmanager
def claim(output: Path, *, overwrite: bool = False) -> Iterator[None]:
    """Create the parents of `output`, and keep other runs from writing it.

    Raises `OutputError` if the output exists and may not be replaced, or if another run is writing
    it, and `DiskError` if the file system refuses.
    """
    check_output(output, overwrite=overwrite)
    parent = output.absolute().parent
    with report_disk_errors(output):
        created = [path for path in (parent, *parent.parents) if not path.exists()]
    try:
        with report_disk_errors(output):
            parent.mkdir(parents=True, exist_ok=True)
            for directory in created:
                sync_directory(directory.parent)
        with lock_output(output):
            check_output(output, overwrite=overwrite)  # the last holder may have written it
            yield
    finally:
        for directory in created:
            with suppress(OSError):  # in use by now, or never created
                directory.rmdir()


@contextmanager
def open_staging(
    output: Path, *, overwrite: bool, plan: bytes | None, resume: bool
) -> Iterator[Staging]:
    """Open a staging directory for a claimed output. It is closed, and removed, at the end.

    `plan` describes in full what the run does. With `resume`, the run continues the work of a
    stopped run of the same plan. Without a plan, the work of a stopped run is never kept. Raises as
    `claim` does.
    """
    resumable = repair(output)
    check_output(output, overwrite=overwrite)
    staging = Staging(_choose_workspace(output, resumable, plan, resume=resume))
    try:
        if not staging.workspace.path.exists():
            staging.workspace.create(plan)
        yield staging
    except BaseException as error:
        staging.close(error)
        raise
    else:
        staging.close(None)


def _choose_workspace(
    output: Path, resumable: Sequence[Workspace], plan: bytes | None, *, resume: bool
) -> Workspace:
    """Return the latest work of the same plan, or a new staging directory."""
    with report_disk_errors(output):
        same = [] if plan is None else [work for work in resumable if work.has_plan(plan)]
        latest = max(same, key=lambda work: work.last_change, default=None)
    if resume and latest is not None:
        _log.info("resuming in %s", latest.path)
        return latest
    if resume:
        _log.warning("nothing to resume for %s: starting from the beginning", output)
    elif latest is not None:
        _log.warning("%s holds work of an identical run: --resume would continue it", latest.path)
    return Workspace.unused(output)
