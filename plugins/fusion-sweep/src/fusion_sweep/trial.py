"""A trial: one run of a sweep, with its identity and its result."""

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
    """A resolved recipe and its report; `point` and `seed` are its position in a sweep."""

    #: digest of everything that the report depends on
    id: str
    #: the resolved recipe, with all defaults and absolute paths
    recipe: Mapping[str, Any]
    #: how it is measured, and on what: `half`, `other half`, `test` or `unlabeled`
    measured: Mapping[str, Any]
    #: the result; None for a trial that failed or has not finished
    report: Report | None = None
    #: why the trial failed
    error: str | None = None
    #: elapsed seconds, and seconds of CPU time
    seconds: float = 0.0
    cpu: float = 0.0
    #: when it finished, in ISO 8601
    finished: str = ""
    point: Point = field(default_factory=dict)
    seed: int = 0

    @property
    def algorithm(self) -> str:
        """The names of the algorithm's stages, joined by +."""
        section = self.recipe["algorithm"]
        stages = section if isinstance(section, list) else [section]
        return "+".join(str(stage["name"]) for stage in stages)


def digest(parts: Mapping[str, Any]) -> str:
    """Return a digest of JSON data, the same in any process."""
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
