"""The record of rules, and the page about it, from the figures of `diagnosis.py`."""

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

`fuse diagnose` speaks by rules. Here is what each claims, and how often that was so, as `nox -s
diagnosis` measures it; `diagnosis.json` has every pool. A rule is printed with its count of
held-out pools, and only where the lower end of Wilson's 95 % interval is above a half; where it is
not, the answer is that nobody can tell. How sure a rule is depends on
[the kind of models](#kinds-of-models).

Merges have their default options, and one is better than another by the mean share of the experts'
figures on their tasks. Thresholds are of theory, or were chosen on the pools that were *looked at*,
and have not been changed since the pools *held out* were measured, but for two. `rate` spoke of
entries of 0.001 and more, by a wrong bound of how far `wudi` goes; its threshold now follows from
the right one. What is nearly at right angles now has a mean cosine above -0.2, too: no pool has a
lower one.

| pools | looked at | held out |
|---|---|---|
"""
_WHAT = """
`mini8`: two to eight of its tasks, the sets of experts of seeds 0 to 2 looked at and of 3 to 5 held
out, all from one base; *one longer*: an expert moved twice as far from the base; *low rank*: task
vectors cut to their eight largest components. `lm-mini`: two to six of its experts. *Toys*:
networks of three layers, trained on clouds of points, from other seeds in each half; *alike* and
*apart* say whether tasks share their classes' places, *adapters* are of rank two, *conflicting*
tasks give the same inputs other labels, *permuted* experts have their units in another order, and
*strangers* began from weights of their own.

**What the counts do not say.**

- Only the toys were wholly unseen. Before the rules were written, whoever wrote them knew the
  [averages of every method](results.md) on all eight tasks of `mini8` with the very experts that
  are held out here, and published averages on `lm-mini`; that 0.6 is among the scales that are
  tried comes from there. Subsets, agreement and all figures of weights were new.
- Pools of `mini8` share a base and, within a seed, experts, and toys of a kind are alike, so
  intervals that take pools for independent are too narrow, and probabilities too sure.
- All models are tiny. A rule that was right on one kind of pools alone, which the last column
  shows, may be wrong on the next.
- Adapters were counted as toys of rank two, and as task vectors of `mini8` cut to rank eight.
  `isotropic` never speaks of them. `trial`, `torn` and `spectral-best` compare all merges, and were
  counted with an `iso-c` whose merges of adapters were nearly the base.
"""
_KINDS = """
## Kinds of models

How sure a rule is of a pool depends on the pool's kind: the architecture that `config.json` names,
whether task vectors have a low numerical rank (fewer than a quarter of the singular values reach
1 % of the largest), how many experts there are, and how large they are. A pool is of a counted kind
if it has no more experts than the largest pool of that kind, and at most ten times its entries.

| kind | is | experts | merged entries | held-out pools |
|---|---|---|---|---|
{rows}
- On a counted kind, the counts of that kind alone say how sure a rule is.
- On any other kind, each counted kind is one observation: whether the rule came true in most of its
  pools. The rule is then as sure as the lower end of Wilson's 95 % interval of these: 21 % for a
  rule that was right on one kind, 44 % on three, 57 % on five.

"""
_RULES = """## Rules

| rule | where | claim | looked at | held out | 95 % interval | by kind, held out |
|---|---|---|---|---|---|---|
"""
_TRIALS = """
## A trial, or a guess

Seven merges are what `--try` makes: {tried}. It asks each for 64 unlabeled examples of every task.
Here is how often the merge that one would choose was the best of all ten, or within 2 % of the
experts' figures of it, and in brackets what one loses on average, on the {count} held-out pools.
Where a trial chooses what one would have taken anyway, it tells nothing: that is so on `mini8`. On
`lm-mini` it loses as much as a fixed choice. What it gains over that is seen on toys alone.

| choose | all | {families} |
|---|---|{dashes}
"""
_PROXIES = """
## What a figure says of the outcome

Spearman's rank correlation, over held-out pools, of a figure with what the average keeps of
the experts' figures, and with what the best merge does:

| figure | with the average's | with the best merge's | pools |
|---|---|---|---|
"""


def page(pools: Pools) -> str:
    """Return the page."""
    held = _half(pools, held_out=True)
    kinds = _KINDS.format(rows=_kinds(held))
    parts = [_HEAD, _pools(pools), _WHAT, kinds, _RULES, _rules(pools), _failures(held)]
    families = sorted({_family(each) for each in held.values()})
    about = {"families": " | ".join(families), "dashes": "---|" * len(families)}
    parts += [_TRIALS.format(tried=", ".join(TRIED), count=len(held), **about), _choices(held)]
    return "".join([*parts, _PROXIES, _correlations(held), _forecast(held)])


def _pools(pools: Pools) -> str:
    counts = Counter((pool["kind"], pool["held_out"]) for pool in pools.values())
    kinds = sorted({kind for kind, _ in counts})
    rows = [(kind, counts[kind, False], counts[kind, True]) for kind in kinds]
    total = ("all", *(sum(row[place] for row in rows) for place in (1, 2)))
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
    halves = [_half(pools, held_out=each) for each in (False, True)]
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
    return f"\nWhere they failed, held out:\n\n{''.join(lines)}"


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
    groups = [pools, *([each for each in pools if _family(each) == name] for name in families)]
    return "".join(
        f"| {said} | {' | '.join(_choice(choose, group) for group in groups)} |\n"
        for said, choose in ways.items()
    )


def _choice(
    choose: Callable[[Mapping[str, Any]], Sequence[str]], pools: Collection[Mapping[str, Any]]
) -> str:
    """Say how a choice did: several names are one of them at random, in expectation."""
    lost = [[shares(pool)[BEST] - shares(pool)[name] for name in choose(pool)] for pool in pools]
    right = sum(fmean(gap < 0.02 for gap in gaps) for gaps in lost)
    return f"{right:.0f} of {len(lost)} ({100 * fmean(map(fmean, lost)):.1f} %)"


def _most(values: Mapping[str, float]) -> str:
    return max(TRIED, key=lambda name: values[name])


def _correlations(held: Pools) -> str:
    rows = []
    for figure in numbers(next(iter(held.values()))):
        known = [each for each in held.values() if not math.isnan(numbers(each)[figure])]
        values = [numbers(each)[figure] for each in known]
        if len(set(values)) > 1:
            ends = [[shares(each)[name] for each in known] for name in (AVERAGE, BEST)]
            cells = [f"{correlation(_ranks(values), _ranks(end)):+.2f}" for end in ends]
            rows.append(f"| {figure} | {' | '.join(cells)} | {len(known)} |\n")
    return "".join(rows)


def _ranks(values: Sequence[float]) -> list[float]:
    """Return the place of each value; that of equal ones is their mean."""
    ordered = sorted(values)
    return [ordered.index(value) + (ordered.count(value) - 1) / 2 for value in values]


def _forecast(held: Pools) -> str:
    gaps = [shares(each)[AVERAGE] - each["agreement"][AVERAGE] for each in held.values()]
    most = sorted(map(abs, gaps))[int(0.9 * len(gaps))]
    return (
        "\nWhat the average keeps of the experts' figures is its agreement with them "
        f"{fmean(gaps):+.2f} on average, and within {most:.2f} of it in nine of ten pools.\n"
    )


def record(pools: Pools) -> dict[str, Any]:
    """Return how often each rule came true: on pools it was made on, and on the others."""
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
    """Return the name that a pool is counted under: its own, where `COUNTED` has it."""
    return pool["kind"] if pool["kind"] in COUNTED else _family(pool)


def _half(pools: Pools, *, held_out: bool) -> Pools:
    return {name: each for name, each in pools.items() if each["held_out"] is held_out}


def _counts(
    rule: Rule, pools: Pools, group_of: Callable[[Mapping[str, Any]], str]
) -> dict[str, tuple[int, int]]:
    """Count, by group, the pools that a rule speaks of, and those where it came true before."""
    found: dict[str, tuple[int, int]] = {}
    for pool in pools.values():
        if rule.applies(numbers(pool)):
            held, of = found.get(group_of(pool), (0, 0))
            found[group_of(pool)] = (held + rule.came_true(shares(pool)), of + 1)
    return dict(sorted(found.items()))


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
    chosen = _most(pool["agreement"])
    return {**found, BEST: max(found[name] for name in MERGES), TRIED_BEST: found[chosen]}
