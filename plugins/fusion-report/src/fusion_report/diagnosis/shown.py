"""A diagnosis for people: short tables, and a line a finding."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from fusion_core import print_table
from fusion_report.diagnosis.ranks import COLUMNS
from fusion_report.diagnosis.signs import DENSITY

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from fusion_report.diagnosis.advice import Advice
    from fusion_report.diagnosis.figures import Figures

    Rows = list[list[str]]

#: How many parts of the model, and how many lines between models, are shown.
_FEW = 3


def print_diagnosis(figures: Figures, advice: Sequence[Advice]) -> None:
    """Print what was measured, and what to expect."""
    print_table(*_experts(figures))
    for headings, rows in (_between(figures), _models(figures), _lines(figures), _advice(advice)):
        if rows:
            print()  # noqa: T201 - a result
            print_table(headings, rows)
    notes = list(_notes(figures, advice))
    print("\n" * bool(notes) + "\n".join(notes))  # noqa: T201


def _experts(figures: Figures) -> tuple[list[str], Rows]:
    own = figures.answers.get("experts", {})
    whole = "of the base's" if figures.has_base else "of their mean's"
    rows = [
        [
            name,
            f"{each.norm:.3g}",
            _percent(each.relative_norm),
            _percent(each.changed),
            "" if math.isnan(each.rank) else f"{each.rank:.0f} ({_percent(each.rank_share)})",
            *([f"{own[each.task].entropy:.2f}" if each.task in own else ""] * bool(own)),
        ]
        for name, each in figures.experts.items()
    ]
    asked = ["entropy on its task"] * bool(own)
    return ["expert", "norm", whole, "changed", "effective rank", *asked], rows


def _between(figures: Figures) -> tuple[list[str], Rows]:
    if figures.count < 2:  # noqa: PLR2004 - nothing is between
        return [], []
    rows = [["cosines", _cosines(figures)]] if figures.has_base else []
    if figures.has_base:
        length = f"{figures.length_of_sum:.2f} times a mean task vector's"
        square = f"{math.sqrt(figures.count):.2f} at right angles, {figures.count} in line"
        rows.append(["length of the sum", f"{length} ({square})"])
    if not math.isnan(figures.conflict):
        kept = f"of the entries that several keep when each keeps its largest {DENSITY:.0%}"
        rows.append(["sign conflict", f"{_percent(figures.conflict)} {kept}"])
        rows.append(["magnitude opposed", f"{_percent(figures.opposed)} of what is kept"])
    rows.append(["differ most in", ", ".join(_parts(figures))])
    return ["between them", ""], rows


def _cosines(figures: Figures) -> str:
    pairs = figures.pairs
    (one, other), most = max(pairs.items(), key=lambda pair: pair[1])
    said = f"mean {figures.cosine:.2f}, {min(pairs.values()):.2f} to {most:.2f}"
    return said if len(pairs) == 1 else f"{said} ({one}, {other})"


def _parts(figures: Figures) -> Iterator[str]:
    known = [item for item in figures.parts.items() if not math.isnan(item[1].relative_norm)]
    most = sorted(known, key=lambda item: -item[1].relative_norm)[:_FEW]
    return (f"{name} ({_percent(part.relative_norm)})" for name, part in most)


def _models(figures: Figures) -> tuple[list[str], Rows]:
    """Lay out what models predict, as means over the tasks."""
    rows = [
        [name, f"{figures.entropy(name):.2f}", _percent(figures.agreement(name))]
        for name in figures.answers
        if name != "experts"
    ]
    return ["model", "entropy (nats)", "agrees with the experts"], rows


def _lines(figures: Figures) -> tuple[list[str], Rows]:
    worst = sorted(figures.paths, key=lambda path: -path.barrier)[:_FEW]
    rows = [
        [
            " - ".join(path.ends),
            ", ".join(_percent(each) for each in path.agreement),
            _percent(path.barrier),
        ]
        for path in worst
    ]
    return ["line between", "agreement along it", "barrier"], rows


def _advice(advice: Sequence[Advice]) -> tuple[list[str], Rows]:
    rows = [
        [_percent(each.count.probability), each.rule.claim, _held(each), each.rule.because]
        for each in advice
        if each.count.is_telling
    ]
    return ["sure", "expect", "held in", "because"], rows


def _held(advice: Advice) -> str:
    low, high = advice.count.interval
    return f"{advice.count.held} of {advice.count.of} pools ({100 * low:.0f}-{100 * high:.0f} %)"


def _notes(figures: Figures, advice: Sequence[Advice]) -> Iterator[str]:
    """Say what the tables do not."""
    if not figures.has_base:
        yield (
            "there is no base, so there are no task vectors: norms are of the experts' differences "
            "from their mean, and no method can be advised but those that take experts alone: "
            "simple-average, karcher, cart"
        )
    if figures.count == 1:
        yield "one expert: there is nothing to compare it with"
    looked, every = figures.matrices
    if looked < every:
        yield f"effective ranks are means over {looked} of {every} matrices, evenly spread"
    if figures.is_sampled:
        yield f"of wide matrices, {COLUMNS} columns were decomposed, evenly spread"
    if figures.paths:
        yield "barrier: how far agreement sinks below the straight line between a line's ends"
    for each in advice:
        if not each.count.is_telling:
            yield f"cannot tell: {each.rule.claim}? (held in {each.count.held} of {each.count.of})"


def _percent(share: float) -> str:
    return "" if math.isnan(share) else f"{100 * share:.1f} %" if share < 0.1 else f"{100 * share:.0f} %"
