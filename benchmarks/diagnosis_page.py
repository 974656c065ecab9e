"""Make the record of rules, and the page about it, from the figures of `diagnosis.py`."""

from __future__ import annotations

import math
from collections import Counter
from statistics import correlation, fmean
from typing import TYPE_CHECKING, Any

from fusion_report.diagnosis.kinds import COUNTED
from fusion_report.diagnosis.merges import AVERAGE, MERGES, TRIED
from fusion_report.diagnosis.record import Count
from fusion_report.diagnosis.rules import BEST, RULES, TRIED_BEST, Rule

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

    Pools = Mapping[str, Mapping[str, Any]]

_HEAD = """# How often a diagnosis came true

This page lists each rule of `fuse diagnose`, its claim, and how often the claim came true.
`nox -s diagnosis` measures the rules on 102 pools of experts. `diagnosis.json` has every pool.

The command prints a rule with its count of held-out pools if the lower end of Wilson's 95 %
interval is above one half. Otherwise it answers *cannot tell*. The confidence in a rule depends on
the [kind of models](#kinds-of-models).

Merges have their default options. One merge is better than another if the mean share of the
experts' figures on their tasks is higher. Thresholds come from theory or were chosen on the pools
*looked at*. Two changed after the pools *held out* were measured:

- `rate` applied to entries of 0.001 and more, because of a wrong bound on the distance that `wudi`
  moves. Its threshold now follows from the right bound.
- Nearly orthogonal task vectors must now also have a mean cosine above -0.2. No pool has a lower
  one.

| pools | looked at | held out |
|---|---|---|
"""
_WHAT = """
- `mini8`: two to eight of its tasks, all from one base. Sets of experts of seeds 0 to 2 were looked
  at, and 3 to 5 held out. *one longer*: one expert moved twice as far from the base. *low rank*:
  task vectors cut to their eight largest components.
- `lm-mini`: two to six of its experts.
- *toys*: networks of three layers, trained on clouds of points, with other seeds in each half.
  *alike* and *apart* say whether tasks share the positions of their classes. *adapters* have rank
  two. *conflicting* tasks give the same inputs different labels. *permuted* experts have their
  units in a different order. *strangers* started from different weights.

## Limits of the counts

- Only the toys were entirely unseen. The authors of the rules knew the
  [averages of every method](results.md) on all eight tasks of `mini8` with the experts that are
  held out here, and published averages on `lm-mini`. The scale 0.6 among the tried scales comes
  from there. Subsets, agreement and all figures of weights were new.
- Pools of `mini8` share a base and, within a seed, experts. Toys of one kind are similar. So the
  intervals, which assume independent pools, are too narrow, and the probabilities too confident.
- All models are tiny. A rule that was right on only one kind of pools (last column) may be wrong on
  the next.
- Adapters were tested as toys of rank two, and as task vectors of `mini8` cut to rank eight.
  `isotropic` does not apply to them. `trial`, `torn` and `spectral-best` compare all merges, and
  were counted with an `iso-c` whose merges of adapters were nearly the base.
"""
_KINDS = """
## Kinds of models

The confidence in a rule depends on the kind of the pool: the architecture in `config.json`, the
numerical rank of task vectors (low if fewer than a quarter of the singular values reach 1 % of the
largest), the number of experts, and their size. A pool is of a counted kind if it has no more
experts than the largest pool of that kind, and at most ten times its entries.

| kind | is | experts | merged entries | held-out pools |
|---|---|---|---|---|
{rows}
- On a counted kind, only the counts of that kind matter.
- On any other kind, each counted kind is one observation: whether the rule came true in most of its
  pools. The confidence is the lower end of Wilson's 95 % interval of these observations: 21 % for a
  rule that was right on one kind, 44 % on three, 57 % on five.

"""
_RULES = """## Rules

| rule | where | claim | looked at | held out | 95 % interval | by kind, held out |
|---|---|---|---|---|---|---|
"""
_TRIALS = """
## A trial, or a guess

`--try` makes seven merges: {tried}. It evaluates each on 64 unlabeled examples per task. The table
shows, for the {count} held-out pools, how often a choice was the best of all ten merges or within
2 % of the experts' figures of it, and in brackets its average loss.

A trial that chooses the usual merge is uninformative. That is so on `mini8`. On `lm-mini` a trial
loses as much as a fixed choice. Only the toys show a gain over a fixed choice.

| choose | all | {families} |
|---|---|{dashes}
"""
_PROXIES = """
## What a figure says of the outcome

Spearman's rank correlation, over held-out pools, of a figure with two outcomes: the share of the
experts' figures that the average keeps, and the share that the best merge keeps.

| figure | with the average | with the best merge | pools |
|---|---|---|---|
"""
_NEXT = """
Next: [compatibility](compatibility.md).
"""


def page(pools: Pools) -> str:
    """Return the page."""
    held = _half(pools, held_out=True)
    kinds = _KINDS.format(rows=_kinds(held))
    parts = [_HEAD, _pools(pools), _WHAT, kinds, _RULES, _rules(pools), _failures(held)]
    families = sorted({_family(pool) for pool in held.values()})
    about = {"families": " | ".join(families), "dashes": "---|" * len(families)}
    parts += [_TRIALS.format(tried=", ".join(TRIED), count=len(held), **about), _choices(held)]
    return "".join([*parts, _PROXIES, _correlations(held), _forecast(held), _NEXT])


def _pools(pools: Pools) -> str:
    counts = Counter((pool["kind"], pool["held_out"]) for pool in pools.values())
    kinds = sorted({kind for kind, _ in counts})
    rows = [(kind, counts[kind, False], counts[kind, True]) for kind in kinds]
    total = ("all", *(sum(row[column] for row in rows) for column in (1, 2)))
    return "".join(f"| {kind} | {looked} | {held} |\n" for kind, looked, held in [*rows, total])


def _kinds(held: Pools) -> str:
    counts = Counter(_counted_kind(pool) for pool in held.values())
    rows = []
    for name, kind in COUNTED.items():
        tuned = "low-rank experts" if kind.is_low_rank else "full fine-tunes"
        models = kind.architecture or "networks without a `config.json`"
        sizes = f"{kind.experts} | {kind.entries:,} | {counts[name]}"
        rows.append(f"| `{name}` | {tuned} of {models} | {sizes} |\n")
    return "".join(rows)


def _rules(pools: Pools) -> str:
    return "".join(_rule(rule, pools) for rule in RULES)


def _rule(rule: Rule, pools: Pools) -> str:
    halves = [_half(pools, held_out=held_out) for held_out in (False, True)]
    looked, held = (Count(_counts(rule, half, _kind)) for half in halves)
    low, high = held.interval
    mark = "" if held.is_telling else " (cannot tell)"
    cells = [
        f"`{rule.name}`{mark}",
        "; ".join(map(str, rule.bounds)),
        rule.claim,
        f"{looked.held} of {looked.of}",
        f"{held.held} of {held.of}",
        f"{100 * low:.0f}-{100 * high:.0f} %",
        "; ".join(f"{kind} {right}/{of}" for kind, (right, of) in held.by_kind.items()),
    ]
    return f"| {' | '.join(cells)} |\n"


def _kind(pool: Mapping[str, Any]) -> str:
    kind: str = pool["kind"]
    return kind


def _failures(held: Pools) -> str:
    lines = [
        f"- `{rule.name}`: {'; '.join(names)}\n"
        for rule in RULES
        if (names := [*failed(rule, held)])
    ]
    return f"\nHeld-out pools where a rule failed:\n\n{''.join(lines)}"


def _choices(held: Pools) -> str:
    ways: dict[str, Callable[[Mapping[str, Any]], Sequence[str]]] = {
        "the one that agrees most with the experts": lambda pool: [_most(pool["agreement"])],
        "the one with the least entropy": lambda pool: [
            _most({name: -value for name, value in pool["entropy"].items()})
        ],
        "any of the seven": lambda _: TRIED,
        **{f"always `{name}`": lambda _, name=name: [name] for name in TRIED},
    }
    pools = list(held.values())
    families = sorted(set(map(_family, pools)))
    groups = [pools, *([pool for pool in pools if _family(pool) == name] for name in families)]
    return "".join(
        f"| {label} | {' | '.join(_choice(choose, group) for group in groups)} |\n"
        for label, choose in ways.items()
    )


def _choice(
    choose: Callable[[Mapping[str, Any]], Sequence[str]], pools: Collection[Mapping[str, Any]]
) -> str:
    """Return the result of a choice; for several names, the expectation of a random one."""
    lost = [[shares(pool)[BEST] - shares(pool)[name] for name in choose(pool)] for pool in pools]
    right = sum(fmean(gap < 0.02 for gap in gaps) for gaps in lost)
    return f"{right:.0f} of {len(lost)} ({100 * fmean(map(fmean, lost)):.1f} %)"


def _most(values: Mapping[str, float]) -> str:
    return max(TRIED, key=lambda name: values[name])


def _correlations(held: Pools) -> str:
    rows = []
    for figure in numbers(next(iter(held.values()))):
        known = [pool for pool in held.values() if not math.isnan(numbers(pool)[figure])]
        values = [numbers(pool)[figure] for pool in known]
        if len(set(values)) > 1:
            ends = [[shares(pool)[name] for pool in known] for name in (AVERAGE, BEST)]
            cells = [f"{correlation(_ranks(values), _ranks(end)):+.2f}" for end in ends]
            rows.append(f"| {figure} | {' | '.join(cells)} | {len(known)} |\n")
    return "".join(rows)


def _ranks(values: Sequence[float]) -> list[float]:
    """Return the rank of each value; equal values share the mean of their ranks."""
    ordered = sorted(values)
    return [ordered.index(value) + (ordered.count(value) - 1) / 2 for value in values]


def _forecast(held: Pools) -> str:
    gaps = [shares(pool)[AVERAGE] - pool["agreement"][AVERAGE] for pool in held.values()]
    most = sorted(map(abs, gaps))[int(0.9 * len(gaps))]
    return (
        "\nThe average's share of the experts' figures is its agreement with the experts "
        f"{fmean(gaps):+.2f} on average, and within {most:.2f} of it in nine of ten pools.\n"
    )


def record(pools: Pools) -> dict[str, Any]:
    """Return how often each rule came true, on the pools looked at and on those held out."""
    halves = {"looked_at": _half(pools, held_out=False), "held_out": _half(pools, held_out=True)}
    return {
        "rules": {
            rule.name: {name: _counts(rule, half, _counted_kind) for name, half in halves.items()}
            for rule in RULES
        }
    }


def _family(pool: Mapping[str, Any]) -> str:
    family: str = pool["kind"].partition(",")[0]
    return family


def _counted_kind(pool: Mapping[str, Any]) -> str:
    """Return the kind that a pool is counted under."""
    return pool["kind"] if pool["kind"] in COUNTED else _family(pool)


def _half(pools: Pools, *, held_out: bool) -> Pools:
    return {name: pool for name, pool in pools.items() if pool["held_out"] is held_out}


def _counts(
    rule: Rule, pools: Pools, group_of: Callable[[Mapping[str, Any]], str]
) -> dict[str, tuple[int, int]]:
    """Count, by group, the pools where a rule came true, and those to which it applies."""
    counts: dict[str, tuple[int, int]] = {}
    for pool in pools.values():
        if rule.applies(numbers(pool)):
            right, of = counts.get(group_of(pool), (0, 0))
            counts[group_of(pool)] = (right + rule.came_true(shares(pool)), of + 1)
    return dict(sorted(counts.items()))


def failed(rule: Rule, pools: Pools) -> Iterator[str]:
    """Yield the names of pools where a rule applied and failed."""
    for name, pool in pools.items():
        if rule.applies(numbers(pool)) and not rule.came_true(shares(pool)):
            yield name


def numbers(pool: Mapping[str, Any]) -> dict[str, float]:
    """Return the figures that rules use; NaN for unknown ones."""
    return {name: math.nan if value is None else value for name, value in pool["figures"].items()}


def shares(pool: Mapping[str, Any]) -> dict[str, float]:
    """Return the shares of the experts' figures, which claims compare."""
    by_merge: dict[str, float] = dict(pool["normalised"])
    chosen = _most(pool["agreement"])
    best = max(by_merge[name] for name in MERGES)
    return {**by_merge, BEST: best, TRIED_BEST: by_merge[chosen]}
