"""Events of a command as JSON lines, for programs that drive `fuse` (docs/reference/events.md).

They are recorded by the hooks and the progress that every plugin has. A failure to record ends no
run: an event file that becomes unwritable is a warning.
"""

from __future__ import annotations

import json
import logging
import time
from contextlib import contextmanager, nullcontext
from itertools import count
from threading import RLock
from typing import TYPE_CHECKING, Any

from fusion_core.contracts.measurements import as_json
from fusion_core.errors import DiskError, FusionError, RecipeError
from fusion_core.formatting import redact_secrets
from fusion_core.hookspecs import hookimpl
from fusion_core.machine.ranks import is_helper_process
from fusion_core.plugins.manager import load_plugins
from fusion_core.progress import Advance, Progress

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from contextlib import AbstractContextManager
    from io import FileIO
    from pathlib import Path

    from fusion_core.contracts.run import RunInfo, RunResult

SCHEMA = 1
_SECONDS_BETWEEN = 0.1
_LOG = logging.getLogger(__name__)


@contextmanager
def record_events(path: Path | None, command: str, block: frozenset[str]) -> Iterator[Events]:
    """Append the events of a command to a file. Of several processes, only the first one does."""
    with _open(None if is_helper_process() else path) as file:
        events = Events(file)
        events.write("started", schema=SCHEMA, command=command)
        try:
            plugins = load_plugins(block)
            plugins.register(events, name=f"--events {path}")
            try:
                yield events
            finally:
                plugins.unregister(events)
        except BaseException as error:  # interrupts included
            message, hint = redact_secrets(str(error)), None
            if isinstance(error, FusionError):
                message, hint = error.message, error.hint
            events.write("failed", **{"class": type(error).__name__}, message=message, hint=hint)
            raise
        events.write("finished")


def _open(path: Path | None) -> AbstractContextManager[FileIO | None]:
    """Open the event file to append, without a buffer, so that closing it cannot fail."""
    if path is None:
        return nullcontext()
    if str(path) == "-":
        raise RecipeError(
            "--events -: events cannot go to stdout, which is for results",
            hint="Name a file or a pipe.",
        )
    try:
        return path.open("ab", buffering=0)
    except OSError as error:
        raise DiskError(f"--events {path}: {error.strerror}") from error


class Events:
    """An event file. Each line is written at once; without a file, nothing is written."""

    def __init__(self, file: FileIO | None) -> None:
        self._file = file
        self._lock = RLock()

    def write(self, event: str, **about: Any) -> None:  # noqa: ANN401 - JSON
        """Append a line."""
        line = json.dumps({"event": event, "time": round(time.time(), 3), **about}, default=str)
        data = line.encode() + b"\n"
        with self._lock:
            if self._file is None:
                return
            try:
                self._file.write(data)
            except OSError as error:
                self._file = None
                _LOG.warning("events are no longer written: %s", error)

    def record_progress(self, display: Progress) -> Progress:
        """Return a progress display that also writes events."""
        return display if self._file is None else _RecordedProgress(self, display)

    @hookimpl
    def fusion_run_started(self, run: RunInfo) -> None:
        """Write the plan of the run."""
        self.write("planned", recipe=run.recipe, path=run.path)

    @hookimpl
    def fusion_metrics_logged(self, step: int, metrics: Mapping[str, float]) -> None:
        """Write the metrics of a step."""
        values = {name: as_json(value) for name, value in metrics.items()}
        self.write("metrics", step=step, metrics=values)

    @hookimpl
    def fusion_run_finished(self, result: RunResult) -> None:
        """Write which compiled kernels served tensors, and the report of the evaluation."""
        self.write("kernels", tensors=dict(result.kernels))
        if result.report is not None:
            self.write("report", report=result.report.as_json())


class _RecordedProgress(Progress):
    """A progress display that also writes events, at most ten per second and stage."""

    def __init__(self, events: Events, display: Progress) -> None:
        self._events = events
        self._display = display
        self._numbers = count()

    @contextmanager
    def track(self, label: str, *, total: int, unit: str = "") -> Iterator[Advance]:
        about = {"stage": next(self._numbers), "label": label, "total": total, "unit": unit}
        done, written, lock = 0, 0.0, RLock()
        self._events.write("stage_started", **about)
        with self._display.track(label, total=total, unit=unit) as show:

            def advance(count: int = 1, *, note: str = "") -> None:
                nonlocal done, written
                show(count, note=note)
                with lock:
                    done += count
                    if (now := time.monotonic()) - written >= _SECONDS_BETWEEN:
                        written = now
                        self._events.write("stage_advanced", **about, done=done, note=note)

            yield advance
        self._events.write("stage_finished", **about, done=done)
