"""The result of a sweep as text and HTML: the best points, notes, and curves of the objective."""

from __future__ import annotations

from html import escape
from math import isfinite
from typing import TYPE_CHECKING, Any

from fusion_core.commands import below_base_warnings, escape_control, html_table, print_table
from fusion_core.errors import RecipeError
from fusion_sweep.objectives import Objective

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from fusion_core import Report
    from fusion_sweep.results import Group, SweepResult

_BARS = "▁▂▃▄▅▆▇█"
_FEWEST = 3  # values of a curve
#: A note on the table's scores, by the examples that options are chosen on.
_CHOSEN_ON = {
    "half": "chosen and measured on one half of the test examples",
    "test": "chosen on the same test examples that are measured: the best score is inflated",
    "unlabeled": "chosen on unlabeled examples, without labels",
}


def print_result(result: SweepResult, top: int) -> None:
    """Print the best points, the best one's score on unused examples, and curves."""
    if result.groups:
        print_table(*_format_table(result, top))
    for line in _notes(result, top):
        print(escape_control(line))  # noqa: T201 - a result


def format_html(result: SweepResult, top: int) -> str:
    """Return the output of `print_result` as HTML for a notebook."""
    table = html_table(*_format_table(result, top)) if result.groups else ""
    return f"{table}<p>{'<br>'.join(map(escape, _notes(result, top)))}</p>"


def _format_table(result: SweepResult, top: int) -> tuple[list[str], list[list[str]]]:
    axes = list(dict.fromkeys(name for group in result.groups for name in group.point))
    objectives = [format_heading(result.groups[0], objective) for objective in result.objectives]
    has_marks = len(result.objectives) > 1
    front = result.front if has_marks else []
    rows = [
        [
            group.trials[0].id[:8],
            *(_format_value(group.point.get(axis)) for axis in axes),
            *(_format_mean(group, objective) for objective in result.objectives),
            *(["*" if group in front else ""] if has_marks else []),
        ]
        for group in result.groups[:top]
    ]
    return ["run", *axes, *objectives, *([""] if has_marks else [])], rows


def format_heading(group: Group, objective: Objective) -> str:
    """Return an objective's name with its unit and direction."""
    metric = group.metric(objective)
    unit = "%" if metric.unit == "fraction" else metric.unit
    notes = [unit, "" if metric.higher_is_better else "lower is better"]
    listed = ", ".join(filter(None, notes))
    return f"{objective.name} ({listed})" if listed else objective.name


def _format_mean(group: Group, objective: Objective) -> str:
    metric, deviation = group.metric(objective), group.deviation(objective)
    mean = metric.shown(group.mean(objective))
    return mean if deviation is None else f"{mean} ± {metric.shown(deviation)}"


def _notes(result: SweepResult, top: int) -> Iterator[str]:
    """Yield the lines below the table."""
    if result.groups:
        if top < len(result.groups):
            yield f"the best {top} of {len(result.groups)}; all: fuse runs ls {result.id[:8]}"
        if len(result.objectives) > 1:
            yield "* no other point is at least as good in all objectives and better in one"
        yield _CHOSEN_ON[result.on]
        reports = [
            trial.report for group in result.groups for trial in group.trials if trial.report
        ]
        yield from below_base_warnings({result.id: reports[0]} if reports else {})
        yield from _tested_note(result)
        yield from describe_curves(result)
    for path in result.written:
        yield f"written: {path}"
    has_seeds = len({trial.seed for trial in result.trials}) > 1
    for trial in result.failed[:top]:
        point = describe_point({"algorithm": trial.algorithm, **trial.point})
        seed = f", seed {trial.seed}" if has_seeds else ""
        yield f"failed: {point}{seed}: {trial.error}"


def _tested_note(result: SweepResult) -> Iterator[str]:
    """Yield the best trial's objectives on unused examples.

    For objectives without labels, these are the average or, without one, the tasks.
    """
    tested = result.tested
    if tested is None or tested.report is None:
        return
    report, objectives = tested.report, result.objectives
    if not objectives[0].needs_labels:
        names = report.tasks if report.average is None else ["average"]
        objectives = [Objective(name) for name in names]
    examples = "the other half" if result.on == "half" else "the test examples"
    has_seeds = len({trial.seed for trial in result.trials}) > 1
    best = f"the best, with seed {tested.seed}," if has_seeds else "the best"
    values = ", ".join(f"{one.name} {_format_objective(one, report)}" for one in objectives)
    yield f"{best} on {examples}, which were not used to choose: {values}"


def _format_objective(objective: Objective, report: Report) -> str:
    try:
        return objective.metric(report).shown(objective.value(report))
    except RecipeError:  # an expert is below the base on these examples only
        return "undefined"


def describe_curves(result: SweepResult) -> Iterator[str]:
    """Yield one line per numeric option: the best first objective at each of its values."""
    groups_by_algorithm: dict[str, list[Group]] = {}
    for group in result.groups:
        groups_by_algorithm.setdefault(str(group.point.get("algorithm", "")), []).append(group)
    for algorithm, groups in groups_by_algorithm.items():
        for axis in dict.fromkeys(axis for group in groups for axis in group.point):
            best = _best_by_value(groups, axis)
            if len(best) >= _FEWEST and any(map(isfinite, best.values())):
                low, *_, high = best
                peak = max(best, key=lambda value: best[value])
                name, line = f"{algorithm} {axis}".strip(), sparkline(list(best.values()))
                yield f"{name}: {low:g} {line} {high:g}, best at {peak:g}"


def _best_by_value(groups: Sequence[Group], axis: str) -> dict[float, float]:
    """Return the best score at each numeric value of an option, in order of the values."""
    best: dict[float, float] = {}
    for group in groups:
        value = group.point.get(axis)
        if isinstance(value, int | float) and not isinstance(value, bool):
            best[value] = max(best.get(value, group.scores[0]), group.scores[0])
    return dict(sorted(best.items()))


def sparkline(values: Sequence[float]) -> str:
    """Return one bar per value between the lowest and the highest, a blank for NaN and infinity."""
    finite = [*filter(isfinite, values)]
    low = min(finite, default=0.0)
    span, steps = max(finite, default=0.0) - low, len(_BARS) - 1
    bars = {value: _BARS[round(steps * (value - low) / span) if span else 0] for value in finite}
    return "".join(bars.get(value, " ") for value in values)


def describe_point(point: Mapping[str, Any]) -> str:
    """Return a point as text: its algorithm, if it has one, and its options."""
    algorithm = [str(point["algorithm"])] if "algorithm" in point else []
    options = (
        f"{name}={_format_value(value)}" for name, value in point.items() if name != "algorithm"
    )
    return " ".join([*algorithm, *options])


def _format_value(value: Any) -> str:  # noqa: ANN401 - any value of an option
    return "" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
