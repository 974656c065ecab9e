"""Hears what runs measure, and tells the trackers that `FUSION_TRACKERS` asks for."""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING
from weakref import finalize

from fusion_core import hookimpl

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from fusion_core import RunInfo, RunResult
    from fusion_trackers.trackers import Tracker

_LOG = logging.getLogger(__name__)
#: The trackers of each run that goes on; several may, in one process.
_OPEN: dict[int, list[Tracker]] = {}


@hookimpl
def fusion_run_started(run: RunInfo) -> None:
    """Open what is asked for: `tensorboard:FOLDER,wandb:PROJECT`."""
    every = (part.strip() for part in os.environ.get("FUSION_TRACKERS", "").split(","))
    for asked in filter(None, every):
        from fusion_trackers.trackers import open_tracker  # nothing is imported unasked

        try:
            _OPEN.setdefault(id(run), []).append(open_tracker(asked, run))
        except Exception as error:  # noqa: BLE001 - whatever a tracker raises, the run goes on
            _LOG.warning("FUSION_TRACKERS=%s: nothing is tracked there: %s", asked, error)
    failing = finalize(run, _finish, id(run), {}, failed=True)  # no hook tells of failures
    failing.atexit = False  # at the end of the program trackers close themselves


@hookimpl
def fusion_metrics_logged(run: RunInfo, step: int, metrics: Mapping[str, float]) -> None:
    """Add what was measured at a step."""
    _tell(id(run), lambda tracker: tracker.log(step, metrics))


@hookimpl
def fusion_run_finished(run: RunInfo, result: RunResult) -> None:
    """Add what the tasks measured, and averages where they mean something."""
    report, found = result.report, {}
    if report is not None:
        rows = report.tasks.items()
        found = {f"tasks/{task}/{name}": row[name] for task, row in rows for name in row}
        means = {"average": report.average, "normalised": report.normalised_average}
        found |= {name: mean for name, mean in means.items() if mean is not None}
    _finish(id(run), found, failed=False)


def _finish(run: int, figures: Mapping[str, float], *, failed: bool) -> None:
    _tell(run, lambda tracker: tracker.finish(figures, failed=failed))
    _OPEN.pop(run, None)


def _tell(run: int, say: Callable[[Tracker], None]) -> None:
    """Say something to a run's trackers; one that fails is named once, and hears no more."""
    for tracker in list(_OPEN.get(run, ())):
        try:
            say(tracker)
        except Exception as error:  # noqa: BLE001 - a full disk, no network
            _OPEN[run].remove(tracker)
            _LOG.warning("%s tracks this run no longer: %s", type(tracker).__name__, error)
