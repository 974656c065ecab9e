"""The data of `outcomes.json`: each test example's value of the main metric.

Binary outcomes are stored as text, one character `1` or `0` per example; others as numbers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import TypeAdapter

from fusion_core.contracts.measurements import Measured, MetricValues, as_json

OUTCOMES = "outcomes.json"
SCHEMA = 1

_Stored = Mapping[str, str | Sequence[float | str]]
_NUMBERS = TypeAdapter(Sequence[float])
_MAPPING = TypeAdapter(Mapping[str, Any])


def encode_row(row: Mapping[str, MetricValues]) -> dict[str, _Stored]:
    """Return the outcomes by task, without the tasks that keep none."""
    return {
        task: encode_outcomes(metrics)
        for task, metrics in row.items()
        if isinstance(metrics, Measured)
    }


def decode_row(row: Mapping[str, MetricValues], stored: Any) -> dict[str, MetricValues]:  # noqa: ANN401 - from a file
    """Return a row with its stored outcomes; raises `ValueError` if they do not fit it."""
    outcomes = _MAPPING.validate_python(stored)
    return {
        task: decode_outcomes(metrics, outcomes[task]) if task in outcomes else metrics
        for task, metrics in row.items()
    }


def encode_outcomes(measured: Measured) -> _Stored:
    """Return one task's outcomes as JSON data."""
    if measured.is_binary:
        return {"outcomes": "".join("01"[int(outcome)] for outcome in measured.outcomes)}
    outcomes = {"outcomes": [as_json(outcome) for outcome in measured.outcomes]}
    if measured.weights is None:
        return outcomes
    return {**outcomes, "weights": [as_json(weight) for weight in measured.weights]}


def decode_outcomes(metrics: MetricValues, stored: Any) -> Measured:  # noqa: ANN401 - from a file
    """Return metrics with the outcomes that `encode` returned; raises `ValueError` for others."""
    if not isinstance(stored, dict) or "outcomes" not in stored:
        raise ValueError("missing outcomes")
    outcomes, weights = stored["outcomes"], stored.get("weights")
    return Measured(
        metrics,
        _NUMBERS.validate_python(list(outcomes) if isinstance(outcomes, str) else outcomes),
        None if weights is None else _NUMBERS.validate_python(weights),
    )
