"""The data of `outcomes.json`, beside the report: what each test example came to.

Right and wrong are written as a text of 1 and 0, a character an example; other outcomes as numbers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import TypeAdapter

from fusion_core.contracts.measures import Measured, Metrics, as_json

OUTCOMES = "outcomes.json"
SCHEMA = 1

Row = Mapping[str, Metrics]
_Stored = Mapping[str, str | Sequence[float | str]]
_NUMBERS = TypeAdapter(Sequence[float])


def row_as_json(row: Row) -> dict[str, _Stored]:
    """Return the outcomes of the tasks that keep some."""
    return {task: encode(each) for task, each in row.items() if isinstance(each, Measured)}


def encode(measured: Measured) -> _Stored:
    """Return a task's outcomes as JSON's data."""
    if measured.is_binary:
        return {"outcomes": "".join("01"[int(outcome)] for outcome in measured.outcomes)}
    outcomes = {"outcomes": [as_json(outcome) for outcome in measured.outcomes]}
    if measured.weights is None:
        return outcomes
    return {**outcomes, "weights": [as_json(weight) for weight in measured.weights]}


def decode(metrics: Metrics, stored: Any) -> Measured:  # noqa: ANN401 - from a file
    """Return metrics with the outcomes that `encode` gave; `ValueError` for anything else."""
    if not isinstance(stored, dict) or "outcomes" not in stored:
        raise ValueError("it holds no outcomes")
    given, weights = stored["outcomes"], stored.get("weights")
    read = _NUMBERS.validate_python
    return Measured(
        metrics,
        read(list(given) if isinstance(given, str) else given),
        None if weights is None else read(weights),
    )


def row_of(row: Row, stored: Any) -> dict[str, Metrics]:  # noqa: ANN401 - from a file
    """Return a row with the outcomes that are stored; raises `ValueError` if they are not its."""
    known = TypeAdapter(Mapping[str, Any]).validate_python(stored)
    return {
        task: decode(metrics, known[task]) if task in known else metrics
        for task, metrics in row.items()
    }
