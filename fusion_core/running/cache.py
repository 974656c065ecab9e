"""The user's cache of measurements, which every later run shares.

It holds one JSON file per model and question, usually a task, under `XDG_CACHE_HOME` or `~/.cache`.
The files may be removed at any time. The cache never fails a run: an unreadable entry is measured
again, and a cache that cannot be written is a warning.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter

from fusion_core.contracts.measurements import Measured, Metric
from fusion_core.contracts.outcomes import decode_outcomes, encode_outcomes
from fusion_core.errors import BrokenPluginError, DiskError
from fusion_core.running import _identity as identity
from fusion_core.weights.writing.disk import write_durably
from fusion_core.weights.writing.ownership import read_own_file

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import torch

    from fusion_core.contracts.measurements import MetricValues
    from fusion_core.contracts.model_pool import ModelPool
    from fusion_core.weights import WeightSource

#: Incremented when the meaning of the files changes.
_SCHEMA = 4
_LARGEST = 2**26  # enough for a million outcomes
_LOG = logging.getLogger(__name__)
#: What `json.loads` and a look into its result raise for a torn or foreign file.
_INVALID = (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError)
_METRICS = TypeAdapter(Sequence[Metric])


@dataclass(frozen=True)
class Score:
    """A task's measurement of a model, and how the task describes it.

    Some tasks know their metrics and conditions only once they have measured a model.
    """

    values: MetricValues
    #: the task's declarations of its metrics
    metrics: Sequence[Metric]
    #: the task's conditions
    conditions: Mapping[str, Any]


def cache_directory() -> Path:
    """Return the directory of the cache."""
    root = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(root).expanduser() / "fusion-core" / "measured"


def cached_answer(  # noqa: PLR0913 - the model, the question, and where it is answered
    pool: ModelPool[Any],
    source: WeightSource,
    question: Mapping[str, Any],
    answer: Callable[[], Any],
    *,
    device: torch.device,
    fresh: bool = False,
) -> Any:  # noqa: ANN401 - JSON
    """Return what `answer()` says about the model that a pool builds from weights, cached.

    `question` is everything that the answer depends on besides the model, the pool's code and the
    device. Question and answer are JSON data, and the answer is not null. Nothing is cached for
    weights in memory. `fresh` ignores a cached answer.
    """
    model, code = identity.identify_model(pool, source), identity.identify_code(type(pool))
    machine = identity.identify_machine(device)
    key = {"model": model, "question": dict(question), "code": code, "machine": machine}
    is_known = model is not None and code is not None
    result = load(key) if is_known and not fresh else None
    if result is None:
        result = answer()
        if is_known:
            store(key, result)
    return result


def load_score(key: identity.Key) -> Score | None:
    """Return the cached score of a key, or None without a valid one."""
    try:
        answer = load(key)
        values: MetricValues = answer["values"]
        is_valid = all(type(value) in {int, float} for value in values.values())
        values = decode_outcomes(values, answer) if "outcomes" in answer else values
        metrics = _METRICS.validate_python(answer["metrics"])
        score = Score(values, metrics, dict(answer["conditions"]))
    except _INVALID:
        return None
    return score if values and is_valid else None


def store_score(key: identity.Key, score: Score) -> None:
    """Cache a score and its outcomes."""
    outcomes = encode_outcomes(score.values) if isinstance(score.values, Measured) else {}
    answer = {
        "values": dict(score.values),
        "metrics": [asdict(metric) for metric in score.metrics],
        "conditions": dict(score.conditions),
    }
    store(key, {**answer, **outcomes})


def load(key: identity.Key) -> Any:  # noqa: ANN401 - JSON
    """Return the cached answer of a key, or None without a valid one."""
    path = _path_of(key)
    try:
        content = json.loads(read_own_file(path, _LARGEST) or b"")
        answer = content["found"]
        is_same_key = identity.key_digest(content["key"]) == identity.key_digest(key)
    except _INVALID:
        return None
    return answer if is_same_key else None


def store(key: identity.Key, answer: Any) -> None:  # noqa: ANN401 - JSON
    """Cache an answer. A cache that cannot be written is a warning."""
    data = json.dumps({"key": key, "found": answer}, indent=1).encode()
    try:
        write_durably(_path_of(key), data, parents=True)
    except DiskError as error:
        warn_unwritable(str(cache_directory()), str(error.__cause__))


def _path_of(key: identity.Key) -> Path:
    try:
        name = identity.key_digest({"schema": _SCHEMA, **key})
    except TypeError as error:
        raise BrokenPluginError(f"expected an identity of JSON data: {error}") from error
    return cache_directory() / f"{name}.json"


@cache
def warn_unwritable(directory: str, reason: str) -> None:
    """Warn once per process that nothing can be cached."""
    _LOG.warning(
        "cannot cache measurements in %s, so the next command measures the same models again: %s",
        directory,
        reason,
    )
