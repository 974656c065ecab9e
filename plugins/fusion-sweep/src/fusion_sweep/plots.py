"""Pictures of a sweep: the first objective over the options."""

from __future__ import annotations

from itertools import product
from math import isfinite
from typing import TYPE_CHECKING, Any

from fusion_core.commands import escape_control, import_optional
from fusion_sweep.formatting import describe_point, format_heading

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from fusion_sweep.results import Group

    #: groups that differ in numbers alone, by their other options
    Kinds = Mapping[str, Sequence[Group]]

_HIGH, _WIDE, _LEGEND, _ROW = 3.0, 4.0, 0.3, 0.3  # inches
_LOGARITHMIC = 100  # ratio of the largest to the smallest value from which an axis is logarithmic


def plot(groups: Sequence[Group]) -> Figure:
    """Draw finished points; there must be one.

    One numeric option gives a line, with the standard deviation over seeds. Two in every
    combination give a map. Otherwise each numeric option has a panel of dots. Other options
    distinguish lines or maps.
    """
    options = _numeric_options(groups)
    kinds: dict[str, list[Group]] = {}
    for group in groups:
        rest = {name: value for name, value in group.point.items() if name not in options}
        kinds.setdefault(escape_control(describe_point(rest)) or "all", []).append(group)
    if not options:
        return _draw_rows(kinds)
    complete = all(_is_complete(members, options) for members in kinds.values())
    if complete and len(options) > 1:
        return _draw_maps(kinds, options)
    return _draw_dots(kinds, options)


def _numeric_options(groups: Sequence[Group]) -> dict[str, list[float]]:
    """Return the options with several values that are all numbers, and their sorted values."""
    values_by_name: dict[str, set[Any]] = {}
    for group in groups:
        for name, value in group.point.items():
            values_by_name.setdefault(name, set()).add(value if _is_number(value) else str(value))
    return {
        name: sorted(values)
        for name, values in values_by_name.items()
        if len(values) > 1 and all(map(_is_number, values))
    }


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_complete(groups: Sequence[Group], options: Mapping[str, Sequence[float]]) -> bool:
    """Tell whether groups cover every combination of two options."""
    points = {tuple(group.point.get(name) for name in options) for group in groups}
    return len(options) == 2 and points == {*product(*options.values())}  # noqa: PLR2004


def _new_figure(width: float, height: float) -> Figure:
    """Return an empty figure of a size in inches; raises `FusionError` without matplotlib."""
    pyplot = import_optional("matplotlib.pyplot", "plot")
    figure: Figure = pyplot.figure(figsize=(width, height), layout="constrained")
    if "inline" in pyplot.get_backend():
        pyplot.close(figure)  # otherwise a notebook shows it a second time at the end of the cell
    return figure


def _draw_rows(kinds: Kinds) -> Figure:
    """Draw one row per point, if no option is numeric."""
    figure = _new_figure(1.5 * _WIDE, 0.8 + _ROW * len(kinds))
    axes = figure.subplots()
    for row, (group, *_) in enumerate(kinds.values()):
        mean, deviation = _mean_and_deviation(group)
        axes.errorbar(mean, row, xerr=deviation, marker="o", capsize=3)
    axes.set_yticks(range(len(kinds)), [*kinds], parse_math=False)
    axes.set(xlabel=_heading(group), ylim=(len(kinds) - 0.5, -0.5))
    axes.grid(axis="x", alpha=0.4)
    return figure


def _draw_dots(kinds: Kinds, options: Mapping[str, Sequence[float]]) -> Figure:
    legend = _LEGEND * len(kinds) if len(kinds) > 1 else 0
    figure = _new_figure(_WIDE * max(len(options), 1.5), _HIGH + legend)
    panels = figure.subplots(1, len(options), sharey=True, squeeze=False)[0]
    for axes, (name, values) in zip(panels, options.items(), strict=True):
        for number, (kind, groups) in enumerate(kinds.items()):
            style = {"color": f"C{number}", "linestyle": "-" if len(options) == 1 else "none"}
            _draw_kind(axes, name, groups, label=kind, **style)
        axes.set_xlabel(name)
        axes.grid(axis="y", alpha=0.4)
        if values[0] > 0 and values[-1] >= _LOGARITHMIC * values[0]:
            axes.set_xscale("log")
    panels[0].set_ylabel(_heading(groups[0]))
    if legend:
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper left")
    return figure


def _draw_kind(axes: Axes, name: str, groups: Sequence[Group], **style: str) -> None:
    """Draw groups over an option; those without the option become horizontal lines."""
    with_option = sorted(
        (group for group in groups if name in group.point), key=lambda group: group.point[name]
    )
    if not with_option:
        for group in groups:
            height = _mean_and_deviation(group)[0]
            axes.axhline(height, **{**style, "linestyle": "--"})  # type: ignore[arg-type]
        return
    rows = [(group.point[name], *_mean_and_deviation(group)) for group in with_option]
    x, y, deviations = zip(*rows, strict=True)
    axes.errorbar(x, y, yerr=deviations, marker="o", capsize=3, **style)  # type: ignore[arg-type]


def _draw_maps(kinds: Kinds, options: Mapping[str, Sequence[float]]) -> Figure:
    (x_name, columns), (y_name, rows) = options.items()
    figure = _new_figure(_WIDE * len(kinds) + 1, _HIGH + 0.5)
    panels = figure.subplots(1, len(kinds), sharey=True, squeeze=False)[0]
    means = [_mean_and_deviation(group)[0] for groups in kinds.values() for group in groups]
    finite = [*filter(isfinite, means)]
    limits = {"vmin": min(finite, default=None), "vmax": max(finite, default=None)}
    for axes, (kind, groups) in zip(panels, kinds.items(), strict=True):
        values = {
            (group.point[x_name], group.point[y_name]): _mean_and_deviation(group)[0]
            for group in groups
        }
        cells = [[values[x, y] for x in columns] for y in rows]
        image = axes.imshow(cells, origin="lower", aspect="auto", **limits)
        axes.set_xticks(range(len(columns)), [f"{column:g}" for column in columns])
        axes.set_yticks(range(len(rows)), [f"{row:g}" for row in rows])
        axes.set(xlabel=x_name)
        axes.set_title(kind if len(kinds) > 1 else "", parse_math=False)
    panels[0].set_ylabel(y_name)
    figure.colorbar(image, ax=panels, label=_heading(groups[0]))
    return figure


def _mean_and_deviation(group: Group) -> tuple[float, float]:
    """Return the first objective's mean and its standard deviation, 0 for one seed."""
    objective = group.objectives[0]
    scale = 100 if group.metric(objective).unit == "fraction" else 1
    return scale * group.mean(objective), scale * (group.deviation(objective) or 0.0)


def _heading(group: Group) -> str:
    return format_heading(group, group.objectives[0])
