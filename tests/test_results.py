"""The page of results is what its figures say, and has a row for every method."""

from __future__ import annotations

import json
import runpy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fusion_core.plugins.ownership import COMPONENTS

ROOT = Path(__file__).parents[1]
REFERENCE = ROOT / "docs" / "reference"
RUNS: dict[str, Any] = json.loads((REFERENCE / "results.json").read_text())


@pytest.fixture(scope="module")
def results_page() -> Any:
    return SimpleNamespace(**runpy.run_path(str(ROOT / "benchmarks" / "results_page.py")))


def test_the_page_is_made_of_the_figures(results_page: Any) -> None:
    assert (REFERENCE / "results.md").read_text() == results_page.page(RUNS)


def test_every_method_has_figures_of_every_set_of_experts() -> None:
    others = {"fusion-average", "fusion-moe"}  # of training runs, of language models
    measured = {name: kinds for name, kinds in COMPONENTS.items() if name not in others}
    ours = {name for kinds in measured.values() for name in kinds.get("algorithm", ())}
    assert ours <= set(RUNS)
    assert {tuple(run["seeds"]) for run in RUNS.values()} == {("3", "4", "5")}


def test_what_the_literature_finds_holds_here_but_for_what_is_known(results_page: Any) -> None:
    failing = {
        (better, worse)
        for better, worse, wanted in results_page.ORDERINGS
        if min(results_page.margins(RUNS, better, worse)) < wanted
    }
    assert failing == set()
