"""A trial: one run of a sweep, what identifies it, and what was measured of it."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    from fusion_core import Report
    from fusion_sweep.axes import Point


@dataclass(frozen=True)
class Trial:
    """A resolved recipe, and the report of it; `point` and `seed` are its place in a sweep."""

    #: the digest of all that the figures depend on
    id: str
    #: the resolved recipe: every default written out, paths in full
    recipe: Mapping[str, Any]
    #: what was measured on: `half`, `other half`, `test` or `unlabeled`, and how
    measured: Mapping[str, Any]
    #: what was measured; None for a trial that failed, or that no process has finished
    report: Report | None = None
    #: why it failed
    error: str | None = None
    #: seconds that it took, and seconds of the processor
    seconds: float = 0.0
    cpu: float = 0.0
    #: when it was finished, in ISO 8601
    finished: str = ""
    point: Point = field(default_factory=dict)
    seed: int = 0

    @property
    def algorithm(self) -> str:
        """The names of its stages."""
        given = self.recipe["algorithm"]
        stages = given if isinstance(given, list) else [given]
        return "+".join(str(stage["name"]) for stage in stages)


def digest(parts: Mapping[str, Any]) -> str:
    """Return a name for JSON's data: the same for the same data, in any process."""
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
