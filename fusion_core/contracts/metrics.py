"""What a run logged, step by step: `metrics.jsonl`.

Lines are added while the run goes on, where it has a place to keep them, so that a run can be
watched, and one that was killed remembers.
"""

from __future__ import annotations

import json
import os
from io import BytesIO
from typing import TYPE_CHECKING, Any

from fusion_core.errors import CheckpointError
from fusion_core.weights.reading.untrusted import parse_json
from fusion_core.weights.writing.disk import write_durably, writing
from fusion_core.weights.writing.ours import open_ours, read_ours

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

FILE = "metrics.jsonl"
#: Bytes of one that are recalled.
_LARGEST = 32 * 2**20


class MetricsLog:
    """The latest metrics of every step, in memory and, line by line, in a file."""

    def __init__(self, path: Path | None = None) -> None:
        """Go on with what a file holds, if it is there."""
        self.steps: dict[int, dict[str, float]] = {}
        self._path = path
        if path is None:
            return
        with writing(path):
            content = read_ours(path, _LARGEST)
        if content is not None:
            self._recall(content)
            write_durably(path, self.as_bytes())

    def add(self, step: int, metrics: Mapping[str, float]) -> None:
        """Record a step; one that is logged again replaces what was there."""
        self.steps[step] = dict(metrics)
        if self._path is not None:
            with writing(self._path):
                descriptor = open_ours(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
                with os.fdopen(descriptor, "wb") as stream:
                    stream.write(_line(step, metrics).encode())

    def as_bytes(self) -> bytes:
        """Return the content of the file, steps in order."""
        return "".join(_line(step, self.steps[step]) for step in sorted(self.steps)).encode()

    def _recall(self, content: bytes) -> None:
        """Take the lines up to the first that is torn or damaged: nothing has synced them."""
        for line in BytesIO(content):
            figures = _figures(line)
            step = figures.pop("step", None)
            if type(step) is not int or not all(map(_is_number, figures.values())):
                return
            self.steps[step] = figures


def _figures(line: bytes) -> dict[str, Any]:
    """Return what a line says; nothing if it is torn or damaged."""
    try:
        return parse_json(line, path=FILE, constants=True) if line.endswith(b"\n") else {}
    except CheckpointError:
        return {}


def _is_number(value: object) -> bool:
    return isinstance(value, int | float)


def _line(step: int, metrics: Mapping[str, float]) -> str:
    return json.dumps({"step": step, **metrics}) + "\n"
