"""The log of a run's metrics, step by step: `metrics.jsonl`.

A run that keeps state appends each line at once. It can be watched, and it resumes with its log
after a kill.
"""

from __future__ import annotations

import json
import os
from io import BytesIO
from typing import TYPE_CHECKING, Any

from fusion_core.errors import CheckpointError
from fusion_core.weights.reading.untrusted_json import parse_json
from fusion_core.weights.writing.disk import report_disk_errors, write_durably
from fusion_core.weights.writing.ownership import open_own_file, read_own_file

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

METRICS_FILE = "metrics.jsonl"
#: The largest file that a resumed run reads, in bytes.
_LARGEST = 32 * 2**20


class MetricsLog:
    """The latest metrics of every step, in memory and optionally in a file of JSON lines."""

    def __init__(self, path: Path | None = None) -> None:
        """Start an empty log, or continue the one at `path`."""
        self.steps: dict[int, dict[str, float]] = {}
        self._path = path
        if path is None:
            return
        with report_disk_errors(path):
            content = read_own_file(path, _LARGEST)
        if content is not None:
            self._restore(content)
            write_durably(path, self.as_bytes())

    def add(self, step: int, metrics: Mapping[str, float]) -> None:
        """Record the metrics of a step; they replace earlier ones of the same step."""
        self.steps[step] = dict(metrics)
        if self._path is not None:
            with report_disk_errors(self._path):
                descriptor = open_own_file(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
                with os.fdopen(descriptor, "wb") as stream:
                    stream.write(_line(step, metrics))

    def as_bytes(self) -> bytes:
        """Return the content of the file, in the order of the steps."""
        return b"".join(_line(step, self.steps[step]) for step in sorted(self.steps))

    def _restore(self, content: bytes) -> None:
        """Read lines up to the first that is torn or damaged: they are appended without fsync."""
        for line in BytesIO(content):
            metrics = _parse(line)
            step = metrics.pop("step", None)
            if type(step) is not int:
                return
            if not all(isinstance(value, int | float) for value in metrics.values()):
                return
            self.steps[step] = metrics


def _parse(line: bytes) -> dict[str, Any]:
    """Return the content of a line; empty if it is torn or damaged."""
    try:
        return parse_json(line, path=METRICS_FILE, constants=True) if line.endswith(b"\n") else {}
    except CheckpointError:
        return {}


def _line(step: int, metrics: Mapping[str, float]) -> bytes:
    return json.dumps({"step": step, **metrics}).encode() + b"\n"
