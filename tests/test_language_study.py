"""The report on language models says what its runs say."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

from fusion_core import AlignmentPolicy, RunContext
from fusion_testing import TinyTasks, tiny_pool
from pools_checkpoints import CheckpointsConfig, CheckpointsPool

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.plugins

REPORT = Path(__file__).parents[1] / "docs" / "explanation"


@pytest.fixture
def page(import_benchmark: Callable[[str], Any]) -> Any:
    return import_benchmark("language_page")


@pytest.fixture
def module(import_benchmark: Callable[[str], Any]) -> Any:
    return import_benchmark("language_runs")


@pytest.fixture
def runs(module: Any) -> Any:
    return module.Runs.read(REPORT)


@pytest.mark.thorough
def test_the_tables_are_made_of_the_runs(page: Any, runs: Any) -> None:
    texts = [(REPORT / name).read_text() for name in page.PAGES]
    assert [page.filled(text, runs) for text in texts] == texts
    assert "".join(texts).count("<!-- end of ") == len(page.TABLES)


def test_a_standard_error_is_that_of_a_binomial(module: Any) -> None:
    tasks, marks = module.POOLS["four"], "1" * 75 + "0" * 25
    run = {"pool": "four", "seed": 0, "right": dict.fromkeys(tasks, marks)}
    flipped = {**run, "right": dict.fromkeys(tasks, marks[::-1])}
    runs = module.Runs(
        [{**run, "cell": "tsv-m"}, {**run, "cell": "experts"}, {**flipped, "cell": "ties"}]
    )
    # both have the same answers
    assert runs.share("four", [0], "tsv-m") == (100, 0)
    assert runs.gain("four", [0], "tsv-m", "experts") == (0, 0)
    # per question the difference is 1, -1 or 0: variance 0.5, of four times 100 questions
    _, error = runs.gain("four", [0], "tsv-m", "ties")
    assert error == pytest.approx(100 * (0.5 / 400) ** 0.5, rel=0.06)


def test_pools_of_other_bases_do_not_share_experts(module: Any) -> None:
    """The two encoders have the same tasks."""
    names, marks = module.POOLS["encoder"], {"encoder": "10", "published encoder": "11"}
    experts = [
        {"pool": pool, "seed": 0, "cell": "experts", "right": dict.fromkeys(names, row)}
        for pool, row in marks.items()
    ]
    runs = module.Runs(experts)
    assert runs.accuracy("encoder", [0], "experts")[0] == 50
    assert runs.accuracy("published encoder", [0], "experts")[0] == 100


def test_a_standard_error_over_seeds_is_that_of_their_mean(module: Any) -> None:
    seeds = [0.2, 0.5, 0.8]  # whose answers to all questions are alike
    pairs = [[(torch.full((10,), value), torch.ones(10))] for value in seeds]
    value, error = module.estimate(pairs, lambda ours, _: ours)
    assert value == pytest.approx(50)
    assert error == pytest.approx(100 * statistics.stdev(seeds) / 3**0.5, rel=0.06)


def test_experts_and_the_base_are_measured_once(module: Any) -> None:
    four = {"pool": "four", "seed": 1}
    runs = module.Runs(
        [
            {**four, "cell": "base", "right": {"records": "00", "dates": "00"}},
            {**four, "cell": "experts", "right": {"records": "11", "dates": "10"}},
            {**four, "cell": "experts", "right": {"records": "11", "dates": "01"}, "seed": 2},
        ]
    )
    assert runs.right("records, dates", 2, "experts", "dates").tolist() == [0, 1]
    assert runs.right("records, dates", 2, "base", "dates").tolist() == [0, 0]


@pytest.mark.parametrize("rival", ["study_parts.Distilled", "language_rivals.DistilledAdapter"])
def test_rivals_learn_the_matrices_that_adapters_changed(
    rival: str, import_benchmark: Callable[[str], Any]
) -> None:
    module, _, name = rival.partition(".")
    distilled = getattr(import_benchmark(module), name)
    live = tiny_pool("mlp").config.base
    base = live.state_dict()
    models = {}
    for number, expert in enumerate("abc"):
        factors = torch.randn(2, 48, generator=torch.Generator().manual_seed(number)) / 4
        models[expert] = {**base, "1.weight": base["1.weight"] + factors[:, :16].T @ factors}
    pool = CheckpointsPool(CheckpointsConfig(base=live, models=models))
    context = RunContext(tasks=TinyTasks(), seed=0)
    options = {"preset": "strong", "steps": 2, "batch_size": 4, "init": 0.0}
    learned = distilled(**options).run(pool.aligned(AlignmentPolicy()), context).state_dict()
    assert not torch.equal(learned["1.weight"], base["1.weight"])
    assert torch.equal(learned["3.weight"], base["3.weight"])


def test_the_base_differs_from_itself_nowhere(module: Any, runs: Any) -> None:
    compared = runs.general("four", runs.seeds("four", "base"), "base")
    assert module.same_tokens(compared) == (100, 0)
    assert module.divergence(compared) == (0, 0)
