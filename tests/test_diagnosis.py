"""What is shipped and said of rules is what was measured: the record, and the page about it."""

from __future__ import annotations

import json
import runpy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fusion_report.diagnosis.figures import Expert, Figures
from fusion_report.diagnosis.merges import MERGES

pytestmark = pytest.mark.plugins

ROOT = Path(__file__).parents[1]
REFERENCE = ROOT / "docs" / "reference"
RECORD = ROOT / "plugins/fusion-report/src/fusion_report/diagnosis/record.json"
POOLS: dict[str, Any] = json.loads((REFERENCE / "diagnosis.json").read_text())


@pytest.fixture(scope="module")
def diagnosis_page() -> Any:
    return SimpleNamespace(**runpy.run_path(str(ROOT / "benchmarks" / "diagnosis_page.py")))


def test_record_and_page_are_made_of_what_was_measured(diagnosis_page: Any) -> None:
    again = "make them anew: python benchmarks/diagnosis.py --experts DIR"
    record = json.loads(json.dumps(diagnosis_page.record(POOLS)))
    assert json.loads(RECORD.read_text()) == record, again
    assert (REFERENCE / "diagnosis.md").read_text() == diagnosis_page.page(POOLS), again


def test_every_merge_and_figure_was_measured_of_every_pool() -> None:
    expert = Expert("a", 1, 1, 1, 1, 1)
    some = Figures({"a": expert}, True, 1, [[1]], 1, 0, 0, {})
    for name, pool in POOLS.items():
        assert pool["normalised"].keys() == {"base", *MERGES}, name
        assert pool["figures"].keys() == some.numbers.keys(), name
    assert {pool["held_out"] for pool in POOLS.values()} == {True, False}


def test_what_is_held_out_is_of_other_experts_than_what_was_looked_at() -> None:
    halves: dict[bool, set[str]] = {True: set(), False: set()}
    for name, pool in POOLS.items():
        if "seed" in name:
            seed = name.split("seed ")[1].split(":")[0].split(",")[0]
            halves[pool["held_out"]].add(f"{pool['kind'].partition(',')[0]} {seed}")
    assert halves[True].isdisjoint(halves[False])


def test_a_count_is_of_the_pools_that_a_rule_speaks_of(diagnosis_page: Any) -> None:
    figures = {"relative norm": 1.4, "mean cosine": None}
    shares = dict.fromkeys(MERGES, 0.1)
    pool = {"kind": "toys, strangers", "held_out": True, "figures": figures}
    pool["agreement"] = dict.fromkeys(MERGES, 0.2)
    right = {**pool, "normalised": {**shares, "base": 0.5}}
    wrong = {**pool, "normalised": {**shares, "base": 0.05}}
    silent = {**right, "figures": {"relative norm": 0.1, "mean cosine": None}}
    other = {**right, "held_out": False}
    rules = diagnosis_page.record({"a": right, "b": wrong, "c": silent, "d": other})["rules"]
    assert rules["strangers"] == {"looked_at": {"toys": (1, 1)}, "held_out": {"toys": (1, 2)}}
    assert rules["many"]["held_out"] == {}
