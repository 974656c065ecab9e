"""The report on finer coefficients says what its runs say."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.plugins

REPORT = Path(__file__).parents[1] / "docs" / "explanation"


@pytest.fixture
def page(import_benchmark: Callable[[str], Any]) -> Any:
    return import_benchmark("study_page")


@pytest.fixture
def study(page: Any) -> Any:
    return page.Study(*(page.runs_of(REPORT / name) for name in ("study.jsonl", page.OTHER_POOLS)))


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


def test_strong_is_never_below_its_start_and_one_coefficient_per_layer(study: Any) -> None:
    cases = {case for case, _ in study.runs if case.endswith(" examples: strong")}
    assert {f"{count} examples: strong" for count in (1, 4, 16, 300)} <= cases
    for case in cases:
        layer = case.replace("strong", "layer")
        for seed in study.seeds(case):
            accuracy = study.mean(case, seed)
            assert accuracy > study.mean("orthogonalise", seed), (case, seed)
            if seed in study.seeds(layer):
                assert accuracy > study.mean(layer, seed), (case, seed)


def test_shrinkage_loses_nothing_with_all_examples(study: Any) -> None:
    for seed in study.seeds("300 examples: strong"):
        free = study.mean("orthogonalise, row+column", seed)
        assert study.mean("300 examples: strong", seed) > free - 0.3


def test_strong_is_above_its_start_on_other_pools(study: Any) -> None:
    for (pool, case), run in study.others.items():
        if case.endswith(": strong"):
            start = study.others[pool, "start"]["score"]
            assert statistics.mean(run["score"].values()) > statistics.mean(start.values()), case
