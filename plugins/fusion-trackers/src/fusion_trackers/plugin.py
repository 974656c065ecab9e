"""Observes runs and logs them to the trackers that `FUSION_TRACKERS` names."""

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
#: The trackers of each running run; a process may have several runs.
_OPEN: dict[int, list[Tracker]] = {}


@hookimpl
def fusion_run_started(run: RunInfo) -> None:
    """Open the trackers in `FUSION_TRACKERS`: `tensorboard:FOLDER,wandb:PROJECT`."""
    parts = (part.strip() for part in os.environ.get("FUSION_TRACKERS", "").split(","))
    for spec in filter(None, parts):
        from fusion_trackers.trackers import open_tracker  # imported only if a tracker is named

        try:
            _OPEN.setdefault(id(run), []).append(open_tracker(spec, run))
        except Exception as error:  # noqa: BLE001 - the run continues without the tracker
            _LOG.warning("FUSION_TRACKERS=%s: this run is not logged there: %s", spec, error)
    failing = finalize(run, _finish, id(run), {}, failed=True)  # no hook reports failures
    failing.atexit = False  # at the end of the program trackers close themselves


@hookimpl
def fusion_metrics_logged(run: RunInfo, step: int, metrics: Mapping[str, float]) -> None:
    """Log the metrics of a step."""
    _call_trackers(id(run), lambda tracker: tracker.log(step, metrics))


@hookimpl
def fusion_run_finished(run: RunInfo, result: RunResult) -> None:
    """Log the tasks' metrics, and their averages if these are defined."""
    report = result.report
    scores: dict[str, float] = {}
    if report is not None:
        for task, metrics in report.tasks.items():
            scores |= {f"tasks/{task}/{name}": value for name, value in metrics.items()}
        averages = {"average": report.average, "normalised": report.normalised_average}
        scores |= {name: value for name, value in averages.items() if value is not None}
    _finish(id(run), scores, failed=False)


def _finish(run: int, scores: Mapping[str, float], *, failed: bool) -> None:
    _call_trackers(run, lambda tracker: tracker.finish(scores, failed=failed))
    _OPEN.pop(run, None)


def _call_trackers(run: int, call: Callable[[Tracker], None]) -> None:
    """Call a run's trackers; drop one that fails, with a warning."""
    for tracker in list(_OPEN.get(run, ())):
        try:
            call(tracker)
        except Exception as error:  # noqa: BLE001 - such as a full disk, or no network
            _OPEN[run].remove(tracker)
            _LOG.warning("%s no longer logs this run: %s", type(tracker).__name__, error)
