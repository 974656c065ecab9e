"""What was found once, kept in the user's cache for every later run.

A file for each model and question to it, a task as a rule, under `XDG_CACHE_HOME` or `~/.cache`,
which may be removed at any time. Nothing here fails a run: what cannot be read is found anew, and
what cannot be written is a warning.
"""

from __future__ import annotations

import json
import logging
import os
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fusion_core.contracts.measures import Measured
from fusion_core.contracts.outcomes import decode, encode
from fusion_core.errors import BrokenPluginError, DiskError
from fusion_core.running._identity import Key, alike, digest_of
from fusion_core.weights.writing.disk import write_durably
from fusion_core.weights.writing.ours import read_ours

if TYPE_CHECKING:
    from fusion_core.contracts.measures import Metrics

#: Counted up when what a file holds changes its meaning.
_SCHEMA = 3
_LARGEST = 2**26  # of a million outcomes
_LOG = logging.getLogger(__name__)


def cache_directory() -> Path:
    """Return where rows are kept."""
    root = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(root).expanduser() / "fusion-core" / "measured"


def recall_metrics(key: Key) -> Metrics | None:
    """Return the metrics that are kept under a key; None for nothing, and for anything else."""
    try:
        found = recall(key)
        metrics: Metrics = found["metrics"]
        is_ours = all(type(metric) in {int, float} for metric in metrics.values())
        metrics = decode(metrics, found) if "outcomes" in found else metrics
    except (ValueError, LookupError, TypeError, AttributeError):
        return None
    return metrics if is_ours else None


def keep_metrics(key: Key, metrics: Metrics) -> None:
    """Keep metrics with their outcomes, where that is possible."""
    outcomes = encode(metrics) if isinstance(metrics, Measured) else {}
    keep(key, {"metrics": dict(metrics), **outcomes})


def recall(key: Key) -> Any:  # noqa: ANN401 - JSON
    """Return what is kept under a key; None for nothing, and for what is torn or foreign."""
    try:
        content = json.loads(read_ours(_place(key), _LARGEST) or b"")
        found, is_ours = content["found"], alike(content["key"], key)
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return None
    return found if is_ours else None


def keep(key: Key, found: Any) -> None:  # noqa: ANN401 - JSON
    """Keep what was found, where that is possible."""
    data = json.dumps({"key": key, "found": found}, indent=1).encode()
    try:
        write_durably(_place(key), data, parents=True)
    except DiskError as error:
        warn(str(cache_directory()), str(error.__cause__))


def _place(key: Key) -> Path:
    try:
        name = digest_of({"schema": _SCHEMA, **key})
    except TypeError as error:
        raise BrokenPluginError(f"an identity is not JSON's data: {error}") from error
    return cache_directory() / f"{name}.json"


@cache
def warn(directory: str, reason: str) -> None:
    """Say once a run what becomes of all rows."""
    _LOG.warning(
        "what was measured of base and experts cannot be kept in %s, so the next run measures it "
        "again: %s",
        directory,
        reason,
    )
