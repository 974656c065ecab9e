"""Which pictures a page has: made of runs, reports and task vectors, where there is something."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fusion_report.drawings.bars import Bars
from fusion_report.drawings.heat import Heat
from fusion_report.drawings.lines import Panels, Paths, span
from fusion_report.drawings.scatter import Scatter
from fusion_report.table import ratios
from fusion_report.vectors import parts_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from fusion_report.drawings.svg import Drawing
    from fusion_report.runs import Coefficients, Log, Run
    from fusion_report.table import Table
    from fusion_report.vectors import TaskVectors

_MOST_COLUMNS = 24
_MOST_TENSORS = 1000
_WHOLE, _HALF = 1110, 534  # units: a desk's width
#: What methods log beside their objectives.
_COEFFICIENT, _ON = "coefficient", "on"


@dataclass(frozen=True)
class Chart:
    """A picture with what is said below it, and the steps of its scale."""

    drawing: Drawing
    caption: str = ""
    scale: Sequence[tuple[int, str]] = ()

    @property
    def is_wide(self) -> bool:
        """Whether it takes the whole width."""
        return self.drawing.wide > _HALF


def against_experts(table: Table) -> Iterator[Chart]:
    """Yield how near runs come to the experts, by task."""
    reports = table.reports
    shares = {name: ratios(each, each.tasks) for name, each in reports.items()}
    tasks = [task for task in table.tasks if any(task in share for share in shares.values())]
    if not tasks:
        return
    base: dict[str, float] = {}
    for each in reports.values():
        base = {**ratios(each, each.base), **base}
    bars = Bars(
        tasks,
        {name: [100 * each.get(task, math.nan) for task in tasks] for name, each in shares.items()},
        ("base", [100 * base.get(task, math.nan) for task in tasks]) if base else None,
        ("each task's expert", 100),
        "% of the expert's",
    )
    words = "; ".join(
        f"{name}: " + ", ".join(f"{task} {100 * each[task]:.1f}" for task in tasks if task in each)
        for name, each in shares.items()
    )
    title = "How near each task comes to its own expert"
    yield Chart(bars.drawing("experts", title, f"In percent of the expert's. {words}", wide=_WHOLE))


def against_cost(runs: Sequence[Run], table: Table) -> Iterator[Chart]:
    """Yield accuracy against time and against memory, where two runs or more have both."""
    averages = {name: table.of(each).average for name, each in table.reports.items()}
    costs = {
        "seconds": (
            "time of the merge in s",
            {run.name: run.provenance.timings.seconds for run in runs},
        ),
        "memory": (
            "peak memory in GB",
            {run.name: _gigabytes(run.provenance.timings.peak_memory) for run in runs},
        ),
    }
    found = {
        name: (label, points)
        for name, (label, known) in costs.items()
        if len(points := _points(averages, known)) > 1
    }
    percent = table.metrics[table.shared[0]].unit == "fraction"
    for name, (label, points) in found.items():
        shown = {run: (x, 100 * y if percent else y) for run, (x, y) in points.items()}
        words = "; ".join(f"{run}: {x:.3g}, {y:.1f}" for run, (x, y) in shown.items())
        scatter = Scatter(shown, label, f"average {table.unit}".rstrip())
        title = f"Average against {label}"
        wide = _HALF if len(found) > 1 else _WHOLE
        yield Chart(scatter.drawing(f"cost-{name}", title, words, wide=wide))


def _points(
    averages: Mapping[str, float | None], costs: Mapping[str, float | None]
) -> dict[str, tuple[float, float]]:
    """Return cost and average of the runs that have both."""
    return {
        run: (cost, average)
        for run, average in averages.items()
        if average is not None and math.isfinite(average) and (cost := costs.get(run)) is not None
    }


def of_vectors(vectors: TaskVectors) -> Iterator[Chart]:
    """Yield lengths and angles of task vectors."""
    experts = vectors.experts
    norms = Bars(experts, {"norm": vectors.norms})
    words = ", ".join(f"{name} {value:.3g}" for name, value in _zip(experts, vectors.norms))
    many = len(experts) > _MOST_COLUMNS
    said = f"Cosines are left out of more than {_MOST_COLUMNS} experts." if many else ""
    yield Chart(norms.drawing("norms", "Norms of the task vectors", words, wide=_HALF), said)
    if many:
        return
    apart = [
        [math.nan if x == y else value for x, value in enumerate(row)]
        for y, row in enumerate(vectors.cosines)
    ]
    cosines = Heat(experts, experts, apart, least=0.2)
    words = "; ".join(
        f"{experts[x]} and {experts[y]} {value:.2f}"
        for y, row in enumerate(apart)
        for x, value in enumerate(row[:y])
    )
    yield Chart(
        cosines.drawing("cosines", "Cosines between task vectors", words, wide=_HALF),
        "Near 0 they hardly disturb each other; below it they pull apart.",
        cosines.scale,
    )
    parts = vectors.norms_by_part
    by_part = Heat([*parts], experts, [*parts.values()], from_zero=True)
    said = "Where in the model fine-tuning has changed most."
    yield _of_parts(by_part, "norms-by-part", "Norms by part of the model", said)


def of_coefficients(run: Run, name: str) -> Iterator[Chart]:
    """Yield a run's coefficients by layer, how far they spread, and how they got there."""
    given = run.option("init")
    is_known = isinstance(given, int | float)
    neutral, began = (float(given), ", where they began") if is_known else (0.0, "")
    experts = [*run.coefficients][:_MOST_COLUMNS]
    some = f" The first {len(experts)} of {len(run.coefficients)} experts."
    some = some if len(experts) < len(run.coefficients) else ""
    if experts:
        said = f"Means over the tensors of a layer; no colour at {neutral:g}{began}.{some}"
        parts = _by_part(run.coefficients, experts)
        heat = Heat([*parts], experts, [*parts.values()], neutral)
        yield _of_parts(heat, f"{name}-layers", "Coefficients by layer and expert", said)
        yield from _by_tensor(run.coefficients, experts, name, neutral)
    if run.spreads:
        said = (
            f"Standard deviations of those that share a tensor, and their means over a layer.{some}"
        )
        parts = _by_part(run.spreads, experts)
        heat = Heat([*parts], experts, [*parts.values()], from_zero=True)
        yield _of_parts(heat, f"{name}-spread", "How far coefficients spread within tensors", said)
    yield from _paths(run.log, name, neutral)


def _of_parts(heat: Heat, name: str, title: str, said: str) -> Chart:
    """Return a map of the parts of a model, a column an expert."""
    rows = zip(heat.rows, heat.values, strict=True)
    words = "; ".join(f"{part}: {_spoken(heat.columns, row)}" for part, row in rows)
    return Chart(heat.drawing(name, title, words, wide=_WHOLE), said, heat.scale)


def of_objective(run: Run, name: str) -> Iterator[Chart]:
    """Yield what the search minimised, raw and smoothed."""
    for number, (kind, series) in enumerate(_logged(run.log).items()):
        if kind in {_COEFFICIENT, _ON}:
            continue
        steps = sorted(run.log)
        first = next(iter(series.values()))
        ends = {each: (values[0], values[-1]) for each, values in series.items()}
        words = "; ".join(f"{each}: from {a:.3g} to {b:.3g}" for each, (a, b) in ends.items())
        panels = Panels(steps, series)
        what = kind.rstrip("/").capitalize()
        title = f"{what} by task" if kind.endswith("/") else f"{what} over all tasks"
        yield Chart(
            panels.drawing(f"{name}-log{number}", title, words, wide=_WHOLE),
            f"Thin: every step. Bold: its mean over about {span(first)} steps.",
        )


def _by_tensor(
    values: Coefficients, experts: Sequence[str], name: str, neutral: float
) -> Iterator[Chart]:
    """Yield all coefficients, a thin column a tensor."""
    parts = parts_of(values[experts[0]])
    tensors = [tensor for names in parts.values() for tensor in names]
    if not len(parts) < len(tensors) <= _MOST_TENSORS:
        return
    rows = [[values[each][tensor] for tensor in tensors] for each in experts]
    sizes = {part: len(names) for part, names in parts.items()}
    heat = Heat(experts, tensors, rows, neutral, groups=sizes)
    words = "; ".join(
        f"{expert} from {min(row):.3g} to {max(row):.3g}"
        for expert, row in zip(experts, rows, strict=True)
    )
    title = "Coefficients by tensor and expert"
    drawing = heat.drawing(f"{name}-tensors", title, words, wide=_WHOLE)
    yield Chart(drawing, f"A column a tensor, by layer; no colour at {neutral:g}.", heat.scale)


def _paths(log: Log, name: str, neutral: float) -> Iterator[Chart]:
    titles = {
        _COEFFICIENT: "How the experts' mean coefficients moved",
        _ON: "Share of components that are on",
    }
    found = _logged(log)
    for kind, title in titles.items():
        known = {n: row for n, row in found.get(kind, {}).items() if math.isfinite(row[-1])}
        if series := dict([*known.items()][:_MOST_COLUMNS]):
            ends = ", ".join(f"{each} {values[-1]:.3g}" for each, values in series.items())
            paths = Paths(sorted(log), series, neutral if kind == _COEFFICIENT else None)
            yield Chart(paths.drawing(f"{name}-{kind}", title, f"At the end: {ends}", wide=_WHOLE))


def _logged(log: Log) -> dict[str, dict[str, list[float]]]:
    """Return what was logged in two steps or more, by kind: "entropy" alone, "entropy/" by task."""
    steps = [log[step] for step in sorted(log)]
    found: dict[str, dict[str, list[float]]] = {}
    for key in dict.fromkeys(key for each in steps for key in each) if len(steps) > 1 else ():
        kind, slash, member = key.partition("/")
        kind = kind if kind in {_COEFFICIENT, _ON} else kind + slash
        found.setdefault(kind, {})[member or kind] = [each.get(key, math.nan) for each in steps]
    return found


def _by_part(values: Coefficients, experts: Sequence[str]) -> dict[str, list[float]]:
    """Return means over the tensors of each part of the model, in the order of experts."""
    parts = parts_of(values[experts[0]])
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
