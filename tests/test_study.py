"""The report on finer coefficients says what its runs say."""

from __future__ import annotations

import importlib
import json
import statistics
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.plugins

ROOT = Path(__file__).parents[1]
REPORT = ROOT / "docs" / "explanation"


@pytest.fixture
def page(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return importlib.import_module("study_page")


@pytest.fixture
def study(page: Any) -> Any:
    lines = (REPORT / "study.jsonl").read_text().splitlines()
    return page.Study([json.loads(line) for line in lines])


def test_the_tables_are_made_of_the_runs(page: Any, study: Any) -> None:
    text = (REPORT / page.PAGE).read_text()
    assert page.filled(text, study) == text
    assert text.count("<!-- end of ") == len(page.TABLES)


@pytest.mark.parametrize(
    ("case", "share"), [("row+column", 95.0), ("orthogonalise, row+column", 96.5)]
)
def test_what_is_recommended_is_near_the_experts_on_held_out_halves_too(
    study: Any, case: str, share: float
) -> None:
    for adapted in (case, f"{case}, holdout"):
        assert statistics.mean(study.over(adapted, study.share)) >= share


def test_from_few_examples_fewer_numbers_are_better(study: Any) -> None:
    for few in (4, 16):
        layer, finer, every = (
            statistics.mean(study.over(f"{few} examples: {what}", study.mean))
            for what in ("layer", "row+column", "all weights")
        )
        assert layer > finer > every
