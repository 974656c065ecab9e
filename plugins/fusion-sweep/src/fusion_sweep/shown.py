"""What a sweep found, for people: the best points, and how the objective moves."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING, Any

from fusion_core.commands import below_base_warnings, html_table, print_table, printable

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from fusion_sweep.objectives import Objective
    from fusion_sweep.results import Group, Results

_BARS = "▁▂▃▄▅▆▇█"
_FEWEST = 3  # values that make a curve
#: What is said of the figures, by what options were chosen on.
_CHOSEN = {
    "half": "chosen and measured on a half of the test examples",
    "test": "chosen on the test examples that are measured: the best figure flatters",
    "unlabeled": "chosen on unlabeled examples, without labels",
}


def print_found(found: Results, top: int) -> None:
    """Print the best points, the best on examples that chose nothing, and curves."""
    if found.groups:
        print_table(*_table(found, found.groups[:top]))
    for line in _lines(found, top):
        print(printable(line))  # noqa: T201 - a result


def as_html(found: Results, top: int) -> str:
    """Return what `print_found` prints, for a notebook."""
    table = html_table(*_table(found, found.groups[:top])) if found.groups else ""
    return f"{table}<p>{'<br>'.join(map(escape, _lines(found, top)))}</p>"


def _lines(found: Results, top: int) -> Iterator[str]:
    """Yield what is said below the table."""
    if found.groups:
        yield from _notes(found, len(found.groups[:top]))
        yield from curves(found)
    for path in found.written:
        yield f"written: {path}"
    for trial in found.failed[:top]:
        yield f"failed: {said({'algorithm': trial.algorithm, **trial.point})}: {trial.error}"


def _table(found: Results, groups: Sequence[Group]) -> tuple[list[str], list[list[str]]]:
    axes = list(dict.fromkeys(name for group in found.groups for name in group.point))
    objectives = [heading(found.groups[0], objective) for objective in found.objectives]
    marks = [""] if len(found.objectives) > 1 else []
    front = found.front if marks else []
    rows = [
        [
            group.trials[0].id[:8],
            *(_value(group.point.get(axis)) for axis in axes),
            *(_figure(group, objective) for objective in found.objectives),
            *(["*" if group in front else ""] if marks else []),
        ]
        for group in groups
    ]
    return ["run", *axes, *objectives, *marks], rows


def heading(group: Group, objective: Objective) -> str:
    """Return what an objective's figures are, with their unit and direction."""
    metric = group.metric(objective)
    unit = "%" if metric.unit == "fraction" else metric.unit
    down = "" if metric.higher_is_better else ", lower is better"
    return f"{objective.name} ({unit}{down})" if unit else objective.name


def _figure(group: Group, objective: Objective) -> str:
    metric, deviation = group.metric(objective), group.deviation(objective)
    shown = metric.shown(group.mean(objective))
    return shown if deviation is None else f"{shown} ± {metric.shown(deviation)}"


def _notes(found: Results, shown: int) -> Iterator[str]:
    if shown < len(found.groups):
        yield f"the best {shown} of {len(found.groups)}; all: fuse runs ls {found.id[:8]}"
    if len(found.objectives) > 1:
        yield "* no other is better in every objective"
    yield _CHOSEN[found.on]
    reports = [trial.report for group in found.groups for trial in group.trials if trial.report]
    yield from below_base_warnings({found.id: reports[0]} if reports else {})
    if found.tested is not None and found.tested.report is not None:
        report = found.tested.report
        average = report.average
        where = "the other half" if found.on == "half" else "the test examples"
        if average is not None:
            metric = next(iter(report.main_metrics.values()))
            yield f"the best on {where}, which chose nothing: average {metric.shown(average)}"


def curves(found: Results) -> Iterator[str]:
    """Yield a line a numeric option: how the first objective moves, the others at their best."""
    for name, groups in _by_algorithm(found).items():
        for axis in dict.fromkeys(axis for group in groups for axis in group.point):
            best = _best_by_value(groups, axis)
            if len(best) >= _FEWEST:
                yield _curve(name, axis, best)


def _by_algorithm(found: Results) -> Mapping[str, list[Group]]:
    groups: dict[str, list[Group]] = {}
    for group in found.groups:
        groups.setdefault(str(group.point.get("algorithm", "")), []).append(group)
    return groups


def _best_by_value(groups: Sequence[Group], axis: str) -> dict[float, float]:
    """Return the best score at each value of an option, where that is a number."""
    best: dict[float, float] = {}
    for group in groups:
        value = group.point.get(axis)
        if isinstance(value, int | float) and not isinstance(value, bool):
            best[value] = max(best.get(value, group.scores[0]), group.scores[0])
    return dict(sorted(best.items()))


def _curve(algorithm: str, axis: str, best: Mapping[float, float]) -> str:
    low, *_, high = best
    peak = max(best, key=lambda value: best[value])
    name = f"{algorithm} {axis}".strip()
    return f"{name}: {low:g} {sparkline(list(best.values()))} {high:g}, best at {peak:g}"


def sparkline(values: Sequence[float]) -> str:
    """Return a bar a value, from the lowest of them to the highest."""
    low, span = min(values), max(values) - min(values)
    steps = len(_BARS) - 1
    return "".join(_BARS[round(steps * (value - low) / span) if span else 0] for value in values)


def said(point: Mapping[str, Any]) -> str:
    """Return a point in words: its algorithm, if it has one, and its options."""
    named = [str(point["algorithm"])] if "algorithm" in point else []
    options = (f"{name}={_value(value)}" for name, value in point.items() if name != "algorithm")
    return " ".join([*named, *options])


def _value(value: Any) -> str:  # noqa: ANN401 - whatever an option takes
    return "" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
