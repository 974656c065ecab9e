"""Outcomes are read back unchanged, or refused."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from fusion_core.contracts.measurements import Measured, Reference
from fusion_core.contracts.report import Report

INFINITE = Measured({"bits": math.inf}, [math.inf, 1.0], [1, 2])
REPORT = Report(
    {
        "latin": Measured({"accuracy": 0.75, "loss": 2.0}, [True, True, False, True]),
        "wiki": Measured({"bits": 0.9}, [0.8, 1.2], [300, 100]),
        "odd": INFINITE,
        "ranks": {"spearman": 0.5},
    },
    Reference(
        base={"latin": Measured({"accuracy": 0.0}, [0, 0, 0, 0])},
        experts={"latin": {"accuracy": 1.0}},
    ),
)
CONTENT = {
    "schema": 1,
    "tasks": {
        "latin": {"outcomes": "1101"},
        "wiki": {"outcomes": [0.8, 1.2], "weights": [300.0, 100.0]},
        "odd": {"outcomes": ["Infinity", 1.0], "weights": [1.0, 2.0]},
    },
    "base": {"latin": {"outcomes": "0000"}},
}


def test_outcomes_are_read_back() -> None:
    assert REPORT.outcomes_as_json() == CONTENT
    stored = json.loads(json.dumps(CONTENT, allow_nan=False))
    plain = Report.from_json(json.loads(json.dumps(REPORT.as_json())))
    assert plain.outcomes_as_json() == {}
    assert plain.with_outcomes(stored).outcomes_as_json() == CONTENT
    assert plain.with_outcomes(stored) == REPORT


@pytest.mark.parametrize(
    "damage",
    [
        [],
        {**CONTENT, "schema": 2},
        {**CONTENT, "tasks": {"latin": {"outcomes": "1100"}}},  # of another model
        {**CONTENT, "tasks": {"latin": {"outcomes": "11x1"}}},
        {**CONTENT, "tasks": {"latin": {"outcomes": ""}}},
        {**CONTENT, "tasks": {"latin": {}}},
        {**CONTENT, "tasks": {"latin": "1101"}},
        {**CONTENT, "tasks": {"wiki": {"outcomes": [0.8, 1.2], "weights": [1]}}},
        {**CONTENT, "tasks": []},
    ],
    ids=str,
)
def test_other_outcomes_are_refused(damage: Any) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - what reads the file names it
        REPORT.with_outcomes(damage)
