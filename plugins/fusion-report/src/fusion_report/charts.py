"""Make the charts of a page from runs, reports and task vectors."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fusion_report.drawings.bars import Bars
from fusion_report.drawings.heat import Heat
from fusion_report.drawings.lines import Panels, Paths, smoothing_span
from fusion_report.drawings.scatter import Scatter
from fusion_report.table import ratios
from fusion_report.vectors import group_by_part

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from fusion_report.drawings.svg import Drawing
    from fusion_report.runs import Coefficients, Log, Run
    from fusion_report.table import PageTable
    from fusion_report.vectors import TaskVectors

_MAX_EXPERTS = 24
_MAX_TENSORS = 1000
_WIDE, _HALF = 1110, 534  # widths in units, on a desktop screen
#: Prefixes of logged values that are not objectives.
_COEFFICIENT, _ON = "coefficient", "on"


@dataclass(frozen=True)
class Chart:
    """A drawing with its caption and the steps of its scale."""

    drawing: Drawing
    caption: str = ""
    scale: Sequence[tuple[int, str]] = ()

    @property
    def is_wide(self) -> bool:
        """Whether the chart takes the whole width of the page."""
        return self.drawing.wide > _HALF


def chart_experts(table: PageTable) -> Iterator[Chart]:
    """Yield a bar chart of every run's share of the experts' scores per task."""
    reports = table.reports
    shares = {name: ratios(report, report.tasks) for name, report in reports.items()}
    tasks = [task for task in table.tasks if any(task in share for share in shares.values())]
    if not tasks:
        return
    base_shares: dict[str, set[float]] = {}
    for report in reports.values():
        for task, share in ratios(report, report.reference.base).items():
            base_shares.setdefault(task, set()).add(share)
    # runs of several bases have no common mark
    base = {task: shares.pop() for task, shares in base_shares.items() if len(shares) == 1}
    bars = Bars(
        tasks,
        {name: [100 * row.get(task, math.nan) for task in tasks] for name, row in shares.items()},
        ("base", [100 * base.get(task, math.nan) for task in tasks]) if base else None,
        ("each task's expert", 100),
        "% of the expert's score",
    )
    words = "; ".join(
        f"{name}: " + ", ".join(f"{task} {100 * row[task]:.1f}" for task in tasks if task in row)
        for name, row in shares.items()
    )
    title = "Score per task relative to the task's expert"
    yield Chart(
        bars.drawing("experts", title, f"In percent of the expert's score. {words}", wide=_WIDE)
    )


def chart_costs(runs: Sequence[Run], table: PageTable) -> Iterator[Chart]:
    """Yield the average score against time and against memory, if two or more runs have both."""
    averages = {name: table.over_shared(report).average for name, report in table.reports.items()}
    costs = {
        "seconds": (
            "time of the merge in s",
            {run.name: run.provenance.run.seconds for run in runs},
        ),
        "memory": (
            "peak memory in GB",
            {run.name: _gigabytes(run.provenance.run.peak_memory) for run in runs},
        ),
    }
    plots = {
        name: (label, points)
        for name, (label, known) in costs.items()
        if len(points := _points(averages, known)) > 1
    }
    percent = table.metrics[table.shared[0]].unit == "fraction"
    for name, (label, points) in plots.items():
        scaled = {run: (x, 100 * y if percent else y) for run, (x, y) in points.items()}
        words = "; ".join(f"{run}: {x:.3g}, {y:.1f}" for run, (x, y) in scaled.items())
        scatter = Scatter(scaled, label, f"average {table.unit}".rstrip())
        title = f"Average against {label}"
        wide = _HALF if len(plots) > 1 else _WIDE
        yield Chart(scatter.drawing(f"cost-{name}", title, words, wide=wide))


def _points(
    averages: Mapping[str, float | None], costs: Mapping[str, float | None]
) -> dict[str, tuple[float, float]]:
    """Return the cost and average of every run that has both."""
    return {
        run: (cost, average)
        for run, average in averages.items()
        if average is not None and math.isfinite(average) and (cost := costs.get(run)) is not None
    }


def chart_vectors(vectors: TaskVectors) -> Iterator[Chart]:
    """Yield norms and cosines of task vectors."""
    experts = vectors.experts
    norms = Bars(experts, {"norm": vectors.norms})
    words = ", ".join(f"{name} {value:.3g}" for name, value in _zip(experts, vectors.norms))
    too_many = len(experts) > _MAX_EXPERTS
    caption = f"Cosines are omitted for more than {_MAX_EXPERTS} experts." if too_many else ""
    yield Chart(norms.drawing("norms", "Norms of the task vectors", words, wide=_HALF), caption)
    if too_many:
        return
    off_diagonal = [
        [math.nan if x == y else value for x, value in enumerate(row)]
        for y, row in enumerate(vectors.cosines)
    ]
    cosines = Heat(experts, experts, off_diagonal, least=0.2)
    words = "; ".join(
        f"{experts[x]} and {experts[y]} {value:.2f}"
        for y, row in enumerate(off_diagonal)
        for x, value in enumerate(row[:y])
    )
    yield Chart(
        cosines.drawing("cosines", "Cosines between task vectors", words, wide=_HALF),
        "Near 0, experts hardly interfere. Below 0, they pull in opposite directions.",
        cosines.scale,
    )
    parts = vectors.norms_by_part
    by_part = Heat([*parts], experts, [*parts.values()], from_zero=True)
    caption = "Shows where fine-tuning changed the model most."
    yield _chart_parts(by_part, "norms-by-part", "Norms by part of the model", caption)


def chart_coefficients(run: Run, name: str) -> Iterator[Chart]:
    """Yield a run's coefficients by layer and tensor, their spread, and their path."""
    init = run.option("init")
    is_known = isinstance(init, int | float)
    neutral, note = (float(init), ", the initial value") if is_known else (0.0, "")
    experts = [*run.coefficients][:_MAX_EXPERTS]
    total = len(run.coefficients)
    limit = f" Only the first {len(experts)} of {total} experts." if len(experts) < total else ""
    if experts:
        caption = f"Means over all tensors of a layer. No colour at {neutral:g}{note}.{limit}"
        parts = _mean_by_part(run.coefficients, experts)
        heat = Heat([*parts], experts, [*parts.values()], neutral)
        yield _chart_parts(heat, f"{name}-layers", "Coefficients by layer and expert", caption)
        yield from _by_tensor(run.coefficients, experts, name, neutral)
    if run.spreads:
        caption = f"Mean over a layer of the standard deviation within each tensor.{limit}"
        parts = _mean_by_part(run.spreads, experts)
        heat = Heat([*parts], experts, [*parts.values()], from_zero=True)
        yield _chart_parts(heat, f"{name}-spread", "Spread of coefficients within tensors", caption)
    yield from _paths(run.log, name, neutral)


def _chart_parts(heat: Heat, name: str, title: str, caption: str) -> Chart:
    """Return a heat map with one row per part of the model and one column per expert."""
    rows = zip(heat.rows, heat.values, strict=True)
    words = "; ".join(f"{part}: {_spoken(heat.columns, row)}" for part, row in rows)
    return Chart(heat.drawing(name, title, words, wide=_WIDE), caption, heat.scale)


def chart_objective(run: Run, name: str) -> Iterator[Chart]:
    """Yield the objectives of a search, raw and smoothed."""
    for number, (kind, series) in enumerate(_group_log(run.log).items()):
        if kind in {_COEFFICIENT, _ON}:
            continue
        steps = sorted(run.log)
        first = next(iter(series.values()))
        words = "; ".join(
            f"{key}: from {values[0]:.3g} to {values[-1]:.3g}" for key, values in series.items()
        )
        panels = Panels(steps, series)
        objective = kind.rstrip("/").capitalize()
        title = f"{objective} by task" if kind.endswith("/") else f"{objective} over all tasks"
        yield Chart(
            panels.drawing(f"{name}-log{number}", title, words, wide=_WIDE),
            f"Thin: every step. Bold: running mean over about {smoothing_span(first)} steps.",
        )


def _by_tensor(
    values: Coefficients, experts: Sequence[str], name: str, neutral: float
) -> Iterator[Chart]:
    """Yield all coefficients, one thin column per tensor."""
    parts = group_by_part(values[experts[0]])
    tensors = [tensor for names in parts.values() for tensor in names]
    if not len(parts) < len(tensors) <= _MAX_TENSORS:
        return
    rows = [[values[expert][tensor] for tensor in tensors] for expert in experts]
    sizes = {part: len(names) for part, names in parts.items()}
    heat = Heat(experts, tensors, rows, neutral, groups=sizes)
    words = "; ".join(
        f"{expert} from {min(row):.3g} to {max(row):.3g}"
        for expert, row in zip(experts, rows, strict=True)
    )
    title = "Coefficients by tensor and expert"
    drawing = heat.drawing(f"{name}-tensors", title, words, wide=_WIDE)
    yield Chart(
        drawing, f"One column per tensor, grouped by layer. No colour at {neutral:g}.", heat.scale
    )


def _paths(log: Log, name: str, neutral: float) -> Iterator[Chart]:
    titles = {
        _COEFFICIENT: "Mean coefficient of each expert during the search",
        _ON: "Share of components in use",
    }
    series_by_kind = _group_log(log)
    for kind, title in titles.items():
        known = {
            n: row for n, row in series_by_kind.get(kind, {}).items() if math.isfinite(row[-1])
        }
        if series := dict([*known.items()][:_MAX_EXPERTS]):
            ends = ", ".join(f"{key} {values[-1]:.3g}" for key, values in series.items())
            paths = Paths(sorted(log), series, neutral if kind == _COEFFICIENT else None)
            caption = "Means over the tensors whose coefficients are learned."
            yield Chart(
                paths.drawing(f"{name}-{kind}", title, f"At the end: {ends}", wide=_WIDE),
                caption if kind == _COEFFICIENT else "",
            )


def _group_log(log: Log) -> dict[str, dict[str, list[float]]]:
    """Return values logged in two or more steps, by kind: "entropy", or "entropy/" per task."""
    steps = [log[step] for step in sorted(log)]
    series: dict[str, dict[str, list[float]]] = {}
    for key in dict.fromkeys(key for values in steps for key in values) if len(steps) > 1 else ():
        kind, slash, member = key.partition("/")
        kind = kind if kind in {_COEFFICIENT, _ON} else kind + slash
        column = [values.get(key, math.nan) for values in steps]
        series.setdefault(kind, {})[member or kind] = column
    return series


def _mean_by_part(values: Coefficients, experts: Sequence[str]) -> dict[str, list[float]]:
    """Return one mean per expert over the tensors of each part of the model."""
    parts = group_by_part(values[experts[0]])
    return {
        part: [math.fsum(values[expert][n] for n in names) / len(names) for expert in experts]
        for part, names in parts.items()
    }


def _spoken(names: Sequence[str], values: Sequence[float]) -> str:
    return ", ".join(f"{name} {value:.3g}" for name, value in _zip(names, values))


def _zip(names: Sequence[str], values: Sequence[float]) -> Iterator[tuple[str, float]]:
    return zip(names, values, strict=True)


def _gigabytes(count: int | None) -> float | None:
    return None if count is None else count / 1e9
