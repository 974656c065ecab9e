"""Print a diagnosis as short tables and notes."""

from __future__ import annotations

import math
from statistics import fmean
from typing import TYPE_CHECKING

import typer

from fusion_core.commands import escape_control, print_table
from fusion_report.diagnosis.cautions import find_cautions
from fusion_report.diagnosis.kinds import matching_kinds
from fusion_report.diagnosis.ranks import COLUMNS
from fusion_report.diagnosis.record import read_record
from fusion_report.diagnosis.signs import DENSITY

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from fusion_report.diagnosis.advice import Advice
    from fusion_report.diagnosis.diagnose import Diagnosis
    from fusion_report.diagnosis.figures import Figures, Mixture
    from fusion_report.diagnosis.record import Count

    #: headings and rows
    Layout = tuple[list[str], list[list[str]]]

#: Number of parts of the model, and of lines between models, to print.
_MAX_ROWS = 3
#: Shares below this get a decimal.
_SMALL = 0.1


def print_diagnosis(diagnosis: Diagnosis) -> None:
    """Print measurements, predictions and notes."""
    figures, advice = diagnosis.figures, diagnosis.advice
    layouts = [
        _expert_table(figures),
        _vector_table(figures),
        _model_table(figures),
        _path_table(figures),
        _prediction_table(advice),
        _unrecorded_table(advice),
    ]
    for number, (headings, rows) in enumerate(layouts):
        if number and rows:
            typer.echo()
        if rows:
            print_table(headings, rows)
    if notes := [*diagnosis.warnings, *_notes(figures, advice)]:
        typer.echo(escape_control("\n".join(["", *notes])))


def _expert_table(figures: Figures) -> Layout:
    answers = figures.answers.get("experts", {})
    headings = ["expert", "norm", "relative to " + ("base" if figures.has_base else "mean")]
    headings += ["changed", "effective rank"]
    if answers:
        headings.append("entropy on own task")
    rows = []
    for name, expert in figures.experts.items():
        rank = f"{expert.rank:.0f} ({_percent(expert.rank_share)})"
        row = [
            name,
            f"{expert.norm:.3g}",
            _percent(expert.relative_norm),
            _percent(expert.changed),
            "" if math.isnan(expert.rank) else rank,
        ]
        if answers:
            known = expert.task in answers
            row.append(f"{answers[expert.task].entropy:.2f}" if known else "")
        rows.append(row)
    return headings, rows


def _vector_table(figures: Figures) -> Layout:
    """Describe task vectors in relation to each other."""
    if figures.count < 2:  # noqa: PLR2004 - nothing to compare
        return [], []
    rows = [*_vector_rows(figures)] if figures.has_base else []
    if figures.mixture is not None:
        rows.append(["mixture", _describe_mixture(figures.mixture)])
    changed = [item for item in figures.parts.items() if item[1].relative_norm > 0]
    largest = sorted(changed, key=lambda item: -item[1].relative_norm)[:_MAX_ROWS]
    parts = ", ".join(f"{name} ({_percent(part.relative_norm)})" for name, part in largest)
    return ["task vectors", ""], [*rows, ["largest changes", parts]]


def _vector_rows(figures: Figures) -> Iterator[list[str]]:
    pairs = {pair: cosine for pair, cosine in figures.pairs.items() if not math.isnan(cosine)}
    if pairs:
        (one, other), highest = max(pairs.items(), key=lambda pair: pair[1])
        span = f"{_cosine(min(pairs.values()))} to {_cosine(highest)} ({one}, {other})"
        yield ["cosines", f"mean {_cosine(figures.cosine)}, {span}"]
    if not math.isnan(figures.length_of_sum):
        norms = [expert.norm for expert in figures.experts.values()]
        orthogonal = math.hypot(*norms) / fmean(norms)
        scale = f"{orthogonal:.2f} if orthogonal, {figures.count} if parallel"
        yield ["length of the sum", f"{figures.length_of_sum:.2f} times the mean norm ({scale})"]
    if not math.isnan(figures.conflict):
        entries = f"entries that several experts keep when trimmed to {_percent(DENSITY)}"
        yield ["sign conflict", f"{_percent(figures.conflict)} of the {entries}"]
        yield ["magnitude opposed", f"{_percent(figures.opposed)} of the magnitude that they keep"]


def _describe_mixture(mixture: Mixture) -> str:
    described = f"experts of layers hold {_percent(mixture.share)} of the entries"
    if math.isnan(mixture.router_cosine):
        return f"{described}; at most one model changed its routers"
    return f"{described}; cosines of routers: mean {_cosine(mixture.router_cosine)}"


def _model_table(figures: Figures) -> Layout:
    """Describe predictions of models as means over the tasks."""
    rows = [
        [name, f"{figures.entropy(name):.2f}", _percent(figures.agreement(name))]
        for name in figures.answers
        if name != "experts"
    ]
    return ["model", "entropy (nats)", "agreement with the experts"], rows


def _path_table(figures: Figures) -> Layout:
    worst = sorted(figures.paths, key=lambda path: -path.barrier)[:_MAX_ROWS]
    rows = [
        [" - ".join(path.ends), ", ".join(map(_percent, path.agreement)), _percent(path.barrier)]
        for path in worst
    ]
    return ["line between", "agreement along the line", "barrier"], rows


def _prediction_table(advice: Sequence[Advice]) -> Layout:
    """Lay out the predictions of rules with a record on this kind of models."""
    rows = []
    for prediction in advice:
        if prediction.is_counted and prediction.is_shown:
            low, high = prediction.interval
            confidence = f"{_percent(prediction.probability)} ({100 * low:.0f}-{100 * high:.0f})"
            counts = [_describe_count(prediction.own_count), _describe_count(prediction.count)]
            rows.append([confidence, prediction.claim, *counts, prediction.rule.because])
    headings = ["confidence", "prediction", "held in pools of this kind", "of all kinds", "reason"]
    return headings, rows


def _unrecorded_table(advice: Sequence[Advice]) -> Layout:
    """Lay out the predictions of rules with a record on other kinds of models only."""
    rows = [
        [
            f"{_percent(prediction.probability)} or more",
            prediction.claim,
            _describe_count(prediction.count),
            prediction.rule.because,
        ]
        for prediction in advice
        if not prediction.is_counted and prediction.is_shown
    ]
    headings = [
        "confidence",
        "prediction (no record on this kind)",
        "held in other kinds",
        "reason",
    ]
    return headings, rows


def _describe_count(count: Count) -> str:
    kinds = "; ".join(f"{name} {held}/{of}" for name, (held, of) in count.by_kind.items())
    return f"{count.held} of {count.of}" + (f": {kinds}" if len(count.by_kind) > 1 else "")


def _notes(figures: Figures, advice: Sequence[Advice]) -> Iterator[str]:
    if advice:
        yield from _kind_notes(figures, advice)
    for prediction in advice:
        if not prediction.is_shown:
            record = _describe_count(prediction.count)
            if prediction.is_counted:
                record = f"{_describe_count(prediction.own_count)} of this kind; {record}"
            yield f"cannot tell: {prediction.claim}? ({record})"
    for caution in find_cautions(figures):
        yield f"{caution.name}: {escape_control(caution.text)}"
    yield from _missing_notes(figures)
    decomposed, total = figures.matrices
    if decomposed < total:
        yield f"effective ranks are means over {decomposed} of {total} matrices, evenly spread"
    if figures.is_sampled:
        yield f"effective ranks use {COLUMNS} columns of wide matrices, evenly spread"
    if figures.paths:
        yield "barrier: largest drop of agreement below the straight line between the ends"


def _kind_notes(figures: Figures, advice: Sequence[Advice]) -> Iterator[str]:
    """Name the kind of models, and explain the confidence if it has no record."""
    names = matching_kinds(figures.kind)
    record = f"counted as {', '.join(names)}" if names else "no record on this kind"
    yield f"kind: {escape_control(str(figures.kind))}: {record}"
    if not all(prediction.is_counted for prediction in advice):
        yield (
            "no record on this kind: the confidence is the lower end of Wilson's 95 % interval "
            "over the other kinds, where each kind counts once, by most of its pools"
        )


def _missing_notes(figures: Figures) -> Iterator[str]:
    """Name what was not measured, and how to measure it."""
    if not figures.has_base:
        yield (
            "no base, so no task vectors: norms are distances of the experts from their mean, and "
            "only methods without a base apply, such as simple-average, karcher and cart"
        )
    if figures.count == 1:
        yield "only one expert: nothing to compare it with"
    for name, expert in figures.experts.items():
        if expert.norm == 0 and (figures.has_base or figures.count > 1):
            reference = "the base" if figures.has_base else "the others"
            yield f"{escape_control(name)} equals {reference}"
    if not figures.answers:
        yield "no predictions measured: name tasks with unlabeled examples with --task-pool"
    elif not figures.trial_agreement:
        record = _describe_count(read_record()["trial"])
        yield (
            "--try also measures some merges; the one with the highest agreement was the best, or "
            f"less than 2 % of the experts' scores behind, in {record}"
        )


def _cosine(value: float) -> str:
    return f"{round(value, 2) + 0:.2f}"  # adding 0 turns -0.0 into 0.0


def _percent(share: float) -> str:
    digits = 1 if share < _SMALL else 0
    return "" if math.isnan(share) else f"{100 * share:.{digits}f} %"
