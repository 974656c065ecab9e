"""The report on language models says what its runs say."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.plugins

REPORT = Path(__file__).parents[1] / "docs" / "explanation"


@pytest.fixture
def page(import_benchmark: Callable[[str], Any]) -> Any:
    return import_benchmark("language_page")


@pytest.fixture
def runs(page: Any) -> Any:
    return page.Runs.read(REPORT)


def test_the_tables_are_made_of_the_runs(page: Any, runs: Any) -> None:
    text = (REPORT / page.PAGE).read_text()
    assert page.filled(text, runs) == text
    assert text.count("<!-- end of ") == len(page.TABLES)


def test_a_standard_error_is_that_of_a_binomial(page: Any) -> None:
    tasks, marks = page.POOLS["four"], "1" * 75 + "0" * 25
    run = {"pool": "four", "seed": 0, "right": dict.fromkeys(tasks, marks)}
    runs = page.Runs([{**run, "cell": "a"}, {**run, "cell": "experts"}])
    (value, error), (gain, none) = runs.share("four", 0, "a"), runs.gain("four", 0, "a", "experts")
    assert (value, gain) == (100, 0)
    assert error == none == 0  # both sides have the same answers
    flipped = dict.fromkeys(tasks, marks[::-1])
    other = page.Runs([{**run, "cell": "a"}, {**run, "cell": "b", "right": flipped}])
    # per question the difference is 1, -1 or 0: variance 0.5, of four times 100 questions
    assert other.gain("four", 0, "a", "b")[1] == pytest.approx(100 * (0.5 / 400) ** 0.5, rel=0.06)


def test_the_base_differs_from_itself_nowhere(page: Any, runs: Any) -> None:
    for pool, seed in runs.sets():
        compared = runs.general(pool, seed, page.BASE)
        assert page.same_tokens(compared) == (100, 0)
        assert page.divergence(compared) == (0, 0)
