"""The record of rules, and the page about it, from the figures of `diagnosis.py`."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from fusion_report.diagnosis.merges import MERGES, TRIED
from fusion_report.diagnosis.rules import BEST, RULES, TRIED_BEST, Rule

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    Pools = Mapping[str, Mapping[str, Any]]


def record(pools: Pools) -> dict[str, Any]:
    """Return how often each rule came true: on pools it was made on, and on the others."""
    return {
        "rules": {
            rule.name: {
                "looked_at": _count(rule, _half(pools, held_out=False)),
                "held_out": _count(rule, _half(pools, held_out=True)),
            }
            for rule in RULES
        }
    }


def _half(pools: Pools, *, held_out: bool) -> Pools:
    return {name: each for name, each in pools.items() if each["held_out"] is held_out}


def _count(rule: Rule, pools: Pools) -> list[int]:
    spoken = [each for each in pools.values() if rule.applies(numbers(each))]
    return [sum(rule.came_true(shares(each)) for each in spoken), len(spoken)]


def failed(rule: Rule, pools: Pools) -> Iterator[str]:
    """Yield the pools of which a rule said something that did not come true."""
    for name, each in pools.items():
        if rule.applies(numbers(each)) and not rule.came_true(shares(each)):
            yield name


def numbers(pool: Mapping[str, Any]) -> dict[str, float]:
    """Return the figures that rules speak of; NaN for what is not known."""
    return {name: math.nan if value is None else value for name, value in pool["figures"].items()}


def shares(pool: Mapping[str, Any]) -> dict[str, float]:
    """Return what a claim is about: shares of the experts' figures."""
    found: dict[str, float] = dict(pool["normalised"])
    chosen = max(TRIED, key=lambda name: pool["agreement"][name])
    return {**found, BEST: max(found[name] for name in MERGES), TRIED_BEST: found[chosen]}
