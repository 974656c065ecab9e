"""Rules apply where they should, with the right confidence."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from statistics import NormalDist
from typing import TYPE_CHECKING, Any

import pytest

from fusion_report import Diagnosis
from fusion_report.diagnosis.advice import advise
from fusion_report.diagnosis.figures import Answers, Expert, Figures, Part
from fusion_report.diagnosis.kinds import matching_kinds, read_architecture
from fusion_report.diagnosis.merges import AVERAGE, MERGES, TRIED
from fusion_report.diagnosis.printing import print_diagnosis
from fusion_report.diagnosis.record import Count, read_record
from fusion_report.diagnosis.rules import BEST, RULES, TRIED_BEST, WUDI_REACH, Bound, Rule
from fusion_testing import tiny_pool

if TYPE_CHECKING:
    from collections.abc import Mapping


def figures(
    count: int = 4, *, norm: float = 1.0, cosine: float = 0.0, rank: float = 0.5
) -> Figures:
    """Return measurements of similar experts and a base of norm 10."""
    expert = Expert("", norm, norm / 10, 1.0, 8.0, rank)
    experts = {f"e{number}": replace(expert, task=f"e{number}") for number in range(count)}
    length = math.sqrt(count * (1 + (count - 1) * cosine))
    cosines = [[1.0 if a == b else cosine for a in range(count)] for b in range(count)]
    parts = {"layers.0": Part(norm / 10, cosine)}
    return Figures(experts, True, 10000, cosines, length, 0.5, 0.2, parts)


def with_answers(pool: Figures, **agreement: float) -> Figures:
    answers = {
        name: {task: Answers(0.5, share) for task in pool.experts}
        for name, share in agreement.items()
    }
    return replace(pool, answers=answers)


def claims(pool: Figures) -> set[str]:
    return {prediction.rule.name for prediction in advise(pool)}


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_a_rule_applies_only_if_all_bounds_hold(rule: Rule) -> None:
    inside = {bound.figure: _choose_value(bound) for bound in rule.bounds}
    assert rule.applies(inside)
    for bound in rule.bounds:
        for outside in (bound.below, bound.least - 1e-6, math.nan):
            assert math.isinf(outside) or not rule.applies(inside | {bound.figure: outside})
        assert not rule.applies(
            {name: value for name, value in inside.items() if name != bound.figure}
        )


def _choose_value(bound: Bound) -> float:
    return bound.least if math.isfinite(bound.least) else bound.below - 1e-6


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_bounds_and_claims_name_existing_quantities_and_merges(rule: Rule) -> None:
    assert {bound.figure for bound in rule.bounds} <= figures().numbers.keys()
    for name in (rule.better, rule.worse):
        assert isinstance(name, float) or name in {*MERGES, "base", BEST, TRIED_BEST}


def test_a_claim_compares_measured_shares() -> None:
    shares: Mapping[str, float] = {"tsv-m": 0.8, "ties": 0.7, BEST: 0.81}
    assert Rule("", [], "tsv-m", "ties", "").came_true(shares)
    assert not Rule("", [], "ties", "tsv-m", "").came_true(shares)
    assert Rule("", [], "tsv-m", BEST, "", slack=0.02).came_true(shares)
    assert not Rule("", [], "ties", BEST, "", slack=0.02).came_true(shares)
    assert Rule("", [], "tsv-m", 0.75, "").came_true(shares)
    assert not Rule("", [], 0.75, BEST, "").came_true(shares)


@pytest.mark.parametrize(
    ("pool", "expected"),
    [
        (figures(norm=14.0, cosine=0.5), {"strangers"}),
        (figures(2, norm=0.5), {"spectral-best", "spectral", "spectral-or-signs", "few"}),
        (figures(8, norm=0.5), {"spectral-best", "isotropic", "many", "long-sum"}),
        (figures(8, norm=2.0), {"rate", "long-sum", "signs-long"}),
        (figures(3, norm=3.0, cosine=0.6), {"alike", "few", "signs-long", "long-sum"}),
        (with_answers(figures(norm=9.5), **{AVERAGE: 0.95}), {"strangers", "agreeing"}),
        (with_answers(figures(norm=9.5), **{AVERAGE: 0.3}), {"strangers", "torn"}),
    ],
)
def test_pools_get_different_predictions(pool: Figures, expected: set[str]) -> None:
    assert expected <= claims(pool)
    if "strangers" in expected:
        assert claims(pool) == expected


def test_spectral_needs_a_high_rank_and_similar_norms() -> None:
    assert "spectral" not in claims(figures(rank=0.05))
    long = figures()
    first, *others = long.experts.items()
    uneven = {first[0]: replace(first[1], norm=3.0), **dict(others)}
    assert "spectral" not in claims(replace(long, experts=uneven))


def test_a_trial_names_the_merge_with_the_highest_agreement() -> None:
    pool = with_answers(figures(), **{**dict.fromkeys(TRIED, 0.5), "ties": 0.9})
    (prediction,) = (p for p in advise(pool) if p.rule.name == "trial")
    share = "2 % of the experts' scores"
    assert prediction.claim == f"ties is the best of 10 merges, or less than {share} behind"


def test_a_trial_with_a_tie_makes_no_prediction() -> None:
    tied = with_answers(figures(), **{**dict.fromkeys(TRIED, 0.5), "ties": 0.9, "tsv-m": 0.9})
    assert "trial" not in claims(tied)


def test_a_trial_of_fewer_merges_makes_no_prediction() -> None:
    pool = with_answers(figures(), **dict.fromkeys(TRIED[1:], 0.5))
    assert "trial" not in claims(pool)


def test_rate_applies_only_to_entries_beyond_the_reach_of_wudi() -> None:
    steps, rate, first, second = 300, 1e-5, 0.9, 0.999
    reach = 0.0
    for step in range(1, steps + 1):
        ages = range(step)
        means = [(1 - first) * first**age / (1 - first**step) for age in ages]
        squares = [(1 - second) * second**age / (1 - second**step) for age in ages]
        quotients = (mean**2 / square for mean, square in zip(means, squares, strict=True))
        reach += rate * math.sqrt(sum(quotients))
    assert reach == pytest.approx(WUDI_REACH, rel=0.02)
    assert reach < WUDI_REACH
    assert "rate" not in claims(figures(8, norm=1.5))
    assert "rate" in claims(figures(8, norm=1.6))


def test_opposed_task_vectors_are_not_orthogonal() -> None:
    names = claims(figures(2, norm=0.5, cosine=-0.9))
    assert names.isdisjoint({"spectral-best", "spectral", "spectral-or-signs", "stock"})


FOREIGN = (
    {"architecture": "BertModel"},
    {"numel": 22_000_000},
)


@pytest.mark.parametrize("changes", FOREIGN, ids=str)
def test_without_a_record_the_confidence_is_the_lower_end_over_kinds(
    changes: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    known, foreign = figures(norm=0.5), replace(figures(norm=0.5), **changes)
    (before,), (after,) = (
        [p for p in advise(pool) if p.rule.name == "spectral"] for pool in (known, foreign)
    )
    assert (before.is_counted, after.is_counted) == (True, False)
    kinds = len(after.count.by_kind)
    z = NormalDist().inv_cdf(0.975)
    assert after.probability == pytest.approx(1 / (1 + z * z / kinds))  # Wilson's, if all held
    assert after.probability < 0.5 < before.probability
    print_diagnosis(Diagnosis(foreign, advise(foreign)))
    printed = capsys.readouterr().out
    assert "no record on this kind" in printed
    assert f"{100 * after.probability:.0f} % or more  tsv-m beats simple-average" in printed


def test_adapters_are_a_separate_kind() -> None:
    low = {
        name: replace(expert, rank_share=0.05, numerical_rank_share=0.05)
        for name, expert in figures().experts.items()
    }
    pool = replace(figures(), experts=low)
    predictions = {prediction.rule.name: prediction for prediction in advise(pool)}
    assert predictions["stock"].own_count.by_kind.keys() == {"toys, adapters"}
    assert not predictions["spectral-best"].is_counted


def test_more_experts_than_counted_are_another_kind() -> None:
    assert matching_kinds(figures(8).kind) == ["toys"]
    assert matching_kinds(figures(9).kind) == []


@pytest.mark.parametrize(
    ("config", "architecture"),
    [
        ({"architectures": ["Qwen2ForCausalLM"]}, "causal language models"),
        ({"architectures": ["CLIPVisionModel"]}, "CLIP vision towers"),
        ({"model_type": "clip_vision_model"}, "CLIP vision towers"),
        ({"architectures": ["BertModel"]}, "BertModel"),
        ({"architectures": None}, ""),
        (None, ""),
    ],
)
def test_the_architecture_is_read_from_config_json(
    config: dict[str, Any] | None, architecture: str
) -> None:
    pool = tiny_pool("mlp")
    assets = {} if config is None else {"config.json": json.dumps(config).encode()}
    pool.assets = lambda: assets  # type: ignore[method-assign]
    assert read_architecture(pool) == architecture


def test_degenerate_pools_get_no_predictions() -> None:
    assert advise(figures(1)) == []
    assert advise(replace(figures(), has_base=False)) == []
    same = {name: replace(expert, norm=0.0) for name, expert in figures().experts.items()}
    assert advise(replace(figures(), experts=same)) == []


def test_inconclusive_rules_come_last() -> None:
    pool = replace(figures(norm=0.5), architecture="causal language models")
    shown = [prediction.is_shown for prediction in advise(pool)]
    assert shown == sorted(shown, reverse=True)
    assert {*shown} == {True, False}


def test_every_rule_has_a_record() -> None:
    assert read_record().keys() == {rule.name for rule in RULES}
    assert len({rule.name for rule in RULES}) == len(RULES)


def test_a_count_has_a_probability_and_an_interval() -> None:
    count = Count({"mini8": (12, 12), "toys": (3, 8)})
    assert (count.held, count.of) == (15, 20)
    assert count.probability == pytest.approx(16 / 22)
    # Wilson's interval by its formula
    z, share, n = 1.959964, 0.75, 20
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    assert count.interval == pytest.approx((middle - half, middle + half), rel=1e-5)
    assert count.is_telling
    assert not Count({"toys": (2, 2)}).is_telling
    assert not Count({}).is_telling
    assert Count({}).probability == 0.5
