"""A diagnosis for people: short tables, and a line a finding."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import typer

from fusion_core.commands import escape_control, print_table
from fusion_report.diagnosis.kinds import counted_as
from fusion_report.diagnosis.ranks import COLUMNS
from fusion_report.diagnosis.record import read_record
from fusion_report.diagnosis.signs import DENSITY

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from fusion_report.diagnosis.advice import Advice
    from fusion_report.diagnosis.diagnose import Diagnosis
    from fusion_report.diagnosis.figures import Figures
    from fusion_report.diagnosis.record import Count

    Rows = list[list[str]]

#: How many parts of the model, and how many lines between models, are shown.
_FEW = 3
#: A share below this has a digit more.
_SMALL = 0.1


def print_diagnosis(diagnosis: Diagnosis) -> None:
    """Print what was measured, and what to expect."""
    figures, advice = diagnosis.figures, diagnosis.advice
    print_table(*_experts(figures))
    measured = _between(figures), _models(figures), _lines(figures)
    for headings, rows in (*measured, _counted(advice), _not_counted(advice)):
        if rows:
            typer.echo()
            print_table(headings, rows)
    if notes := [*diagnosis.warnings, *_notes(figures, advice)]:
        typer.echo(escape_control("\n".join(["", *notes])))


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
    rows = [*_of_vectors(figures)] if figures.has_base else []
    return ["between them", ""], [*rows, ["differ most in", ", ".join(_parts(figures))]]


def _of_vectors(figures: Figures) -> Iterator[list[str]]:
    """Yield what is between task vectors, as far as they are not zero."""
    if pairs := {pair: each for pair, each in figures.pairs.items() if not math.isnan(each)}:
        (one, other), most = max(pairs.items(), key=lambda pair: pair[1])
        said = f"{_cosine(min(pairs.values()))} to {_cosine(most)} ({one}, {other})"
        yield ["cosines", f"mean {_cosine(figures.cosine)}, {said}"]
    if not math.isnan(figures.length_of_sum):
        square = f"{math.sqrt(figures.count):.2f} at right angles, {figures.count} in line"
        said = f"{figures.length_of_sum:.2f} times that of a mean task vector"
        yield ["length of the sum", f"{said} ({square})"]
    if not math.isnan(figures.conflict):
        kept = f"of the entries that several keep of their largest {_percent(DENSITY)}"
        yield ["sign conflict", f"{_percent(figures.conflict)} {kept}"]
        yield ["magnitude opposed", f"{_percent(figures.opposed)} of what is kept"]


def _parts(figures: Figures) -> Iterator[str]:
    known = [item for item in figures.parts.items() if item[1].relative_norm > 0]
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


def _counted(advice: Sequence[Advice]) -> tuple[list[str], Rows]:
    """Lay out the rules that were counted on this kind of models."""
    rows = [
        [_sure(said), said.claim, _held(said.own_count), _held(said.count), said.rule.because]
        for said in advice
        if said.is_counted and said.is_shown
    ]
    return ["sure", "expect", "held in pools of this kind", "of all kinds", "because"], rows


def _not_counted(advice: Sequence[Advice]) -> tuple[list[str], Rows]:
    """Lay out the rules that were counted on other kinds of models only."""
    rows = [
        [f"{_percent(said.probability)} or more", said.claim, _held(said.count), said.rule.because]
        for said in advice
        if not said.is_counted and said.is_shown
    ]
    return ["sure", "expect (never counted on this kind)", "held in other kinds", "because"], rows


def _sure(advice: Advice) -> str:
    low, high = advice.interval
    return f"{_percent(advice.probability)} ({100 * low:.0f}-{100 * high:.0f})"


def _held(count: Count) -> str:
    kinds = "; ".join(f"{name} {held}/{of}" for name, (held, of) in count.by_kind.items())
    return f"{count.held} of {count.of}" + (f": {kinds}" if len(count.by_kind) > 1 else "")


def _notes(figures: Figures, advice: Sequence[Advice]) -> Iterator[str]:
    """Say what the tables do not."""
    if advice:
        yield from _kind(figures, advice)
    for said in advice:
        if not said.is_shown:
            of_kind = f"{_held(said.own_count)} of this kind; " if said.is_counted else ""
            yield f"cannot tell: {said.claim}? ({of_kind}{_held(said.count)})"
    yield from _missing(figures)
    looked, every = figures.matrices
    if looked < every:
        yield f"effective ranks are means over {looked} of {every} matrices, evenly spread"
    if figures.is_sampled:
        yield f"of wide matrices, {COLUMNS} columns were decomposed, evenly spread"
    if figures.paths:
        yield "barrier: how far agreement sinks below the straight line between a line's ends"


def _kind(figures: Figures, advice: Sequence[Advice]) -> Iterator[str]:
    """Say what kind of models these are, and what follows where rules were not counted on it."""
    names = counted_as(figures.kind)
    yield f"kind: {escape_control(str(figures.kind))}: " + (
        f"counted as {', '.join(names)}" if names else "no rule was counted on this kind"
    )
    if not all(said.is_counted for said in advice):
        yield (
            "never counted on this kind: what is left is the lower end of Wilson's 95 % interval "
            "over the other kinds, each of which counts once, by what came true in most of its "
            "pools"
        )


def _missing(figures: Figures) -> Iterator[str]:
    """Say what could not be looked at, and what else could be."""
    if not figures.has_base:
        yield (
            "no base, so no task vectors: norms are of the experts' differences from their mean, "
            "and what is left are methods that take experts alone: simple-average, karcher, cart"
        )
    if figures.count == 1:
        yield "one expert: there is nothing to compare it with"
    for name, each in figures.experts.items():
        if each.norm == 0:
            other = "the base" if figures.has_base else "the others"
            yield f"{escape_control(name)} is no different from {other}"
    if not figures.answers:
        yield "no examples were asked: name tasks that have unlabeled ones with --task-pool"
    elif not figures.tried:
        count = read_record()["trial"]
        yield (
            "--try makes some merges and asks them, too: the one that agreed most was the best, or "
            f"less than 2 % of the experts' figures behind, in {_held(count)}"
        )


def _cosine(value: float) -> str:
    return f"{round(value, 2) + 0:.2f}"  # and never -0.00


def _percent(share: float) -> str:
    digits = 1 if share < _SMALL else 0
    return "" if math.isnan(share) else f"{100 * share:.{digits}f} %"
