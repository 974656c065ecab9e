"""What a run logged, step by step: `metrics.jsonl`.

Lines are added while the run goes on, where it has a place to keep them, so that a run can be
watched, and one that was killed remembers.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from fusion_core.weights.disk import writing

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

FILE = "metrics.jsonl"


class MetricsLog:
    """The latest metrics of every step, in memory and, line by line, in a file."""

    def __init__(self, path: Path | None = None) -> None:
        """Go on with what a file holds, if it is there."""
        self.steps: dict[int, dict[str, float]] = {}
        self._path = path
        if path is not None and path.is_file():
            with writing(path):
                self._recall(path.read_bytes())
                path.write_bytes(self.as_bytes())

    def add(self, step: int, metrics: Mapping[str, float]) -> None:
        """Record a step; one that is logged again replaces what was there."""
        self.steps[step] = dict(metrics)
        if self._path is not None:
            with writing(self._path), self._path.open("a", encoding="utf-8") as stream:
                stream.write(_line(step, metrics))

    def as_bytes(self) -> bytes:
        """Return the content of the file, steps in order."""
        return "".join(_line(step, self.steps[step]) for step in sorted(self.steps)).encode()

    def _recall(self, content: bytes) -> None:
        """Take the lines up to the first that is torn or damaged: nothing has synced them."""
        for line in content.split(b"\n")[:-1]:
            try:
                figures = json.loads(line)
                self.steps[figures.pop("step")] = figures
            except (ValueError, KeyError, TypeError, AttributeError):
                return


def _line(step: int, metrics: Mapping[str, float]) -> str:
    return json.dumps({"step": step, **metrics}) + "\n"
