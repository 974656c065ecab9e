"""What a command does, as lines of JSON for programs that drive `fuse` (docs/reference/events.md).

Written through the hooks and the progress that everybody has. Who only listens ends no run: a file
that can no longer be written is a warning.
"""

from __future__ import annotations

import json
import logging
import time
from contextlib import contextmanager, nullcontext
from itertools import count
from threading import RLock
from typing import TYPE_CHECKING, Any

from fusion_core.contracts.measures import as_json
from fusion_core.errors import DiskError, FusionError, RecipeError
from fusion_core.hookspecs import hookimpl
from fusion_core.machine.ranks import helps
from fusion_core.plugins.manager import load_plugins
from fusion_core.progress import Advance, Progress
from fusion_core.shown import without_secrets

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
    """Write what happens to a file; of several processes the first one does."""
    with _open(None if helps() else path) as file:
        events = Events(file)
        events.write("started", schema=SCHEMA, command=command)
        try:
            plugins = load_plugins(block)
            plugins.register(events, name=f"--events {path}")
            try:
                yield events
            finally:
                plugins.unregister(events)
        except BaseException as error:  # an interrupt, too
            events.write("failed", **_about(error))
            raise
        events.write("finished")


class Events:
    """Lines of JSON in a file, each there as soon as it happens; none without a file."""

    def __init__(self, file: FileIO | None) -> None:
        self._file = file
        self._lock = RLock()

    def write(self, event: str, **about: Any) -> None:  # noqa: ANN401 - JSON
        """Add a line."""
        line = json.dumps({"event": event, "time": round(time.time(), 3), **about}, default=str)
        data = line.encode() + b"\n"
        with self._lock:
            if self._file is None:
                return
            try:
                self._file.write(data)
            except OSError as error:
                self._file = None
                _LOG.warning("no more events are written: %s", error)

    def following(self, shown: Progress) -> Progress:
        """Return progress that is shown as before, and written."""
        return shown if self._file is None else _Following(self, shown)

    @hookimpl
    def fusion_run_started(self, run: RunInfo) -> None:
        """Write what is to be done."""
        self.write("planned", recipe=run.recipe, path=run.path)

    @hookimpl
    def fusion_metrics_logged(self, step: int, metrics: Mapping[str, float]) -> None:
        """Write what an algorithm measured at a step."""
        self.write("metrics", step=step, metrics={n: as_json(each) for n, each in metrics.items()})

    @hookimpl
    def fusion_run_finished(self, result: RunResult) -> None:
        """Write what tasks measured."""
        if result.report is not None:
            self.write("report", report=result.report.as_json())


class _Following(Progress):
    """Progress that is written beside being shown, a few times a second at most."""

    def __init__(self, events: Events, shown: Progress) -> None:
        self._events = events
        self._shown = shown
        self._numbers = count()

    @contextmanager
    def track(self, label: str, *, total: int, unit: str = "") -> Iterator[Advance]:
        about = {"stage": next(self._numbers), "label": label, "total": total, "unit": unit}
        done, written, lock = 0, 0.0, RLock()
        self._events.write("stage_started", **about)
        with self._shown.track(label, total=total, unit=unit) as show:

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


def _open(path: Path | None) -> AbstractContextManager[FileIO | None]:
    """Open a file to add lines to: without a buffer, so that closing it cannot fail."""
    if path is None:
        return nullcontext()
    if str(path) == "-":
        raise RecipeError("--events -: stdout carries results", hint="Name a file, or a pipe.")
    try:
        return path.open("ab", buffering=0)
    except OSError as error:
        raise DiskError(f"--events {path}: {error.strerror}") from error


def _about(error: BaseException) -> dict[str, Any]:
    """Say what went wrong, as it is said on stderr."""
    message, hint = without_secrets(str(error)), None
    if isinstance(error, FusionError):
        message, hint = error.message, error.hint
    return {"class": type(error).__name__, "message": message, "hint": hint}
