"""A picture of a sweep: how the first objective moves with what was swept over."""

from __future__ import annotations

from itertools import product
from math import isfinite
from typing import TYPE_CHECKING, Any

from fusion_core.commands import import_optional, printable
from fusion_sweep.shown import heading, said

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from fusion_sweep.results import Group

    #: the points that differ in numbers alone, by what else they have
    Kinds = Mapping[str, Sequence[Group]]

_HIGH, _WIDE, _LEGEND, _ROW = 3.0, 4.0, 0.3, 0.3  # inches
_LOGARITHMIC = 100  # from this ratio of the largest to the smallest on


def plot(groups: Sequence[Group]) -> Figure:
    """Draw points that are finished, of which there are some.

    One number that is swept over gives a line, with the standard deviation over seeds; two in every
    combination a map; others dots, a panel a number. What is not a number tells lines apart.
    """
    options = _options(groups)
    kinds: dict[str, list[Group]] = {}
    for group in groups:
        rest = {name: value for name, value in group.point.items() if name not in options}
        kinds.setdefault(printable(said(rest)) or "all", []).append(group)
    if not options:
        return _draw_kinds(kinds)
    full = all(_is_full(kind, options) for kind in kinds.values())
    return _draw_maps(kinds, options) if full and len(options) > 1 else _draw_dots(kinds, options)


def _options(groups: Sequence[Group]) -> dict[str, list[float]]:
    """Return the numbers that are swept over, with their values in order."""
    found: dict[str, set[Any]] = {}
    for group in groups:
        for name, value in group.point.items():
            found.setdefault(name, set()).add(value if _is_number(value) else str(value))
    return {
        name: sorted(values)
        for name, values in found.items()
        if len(values) > 1 and all(map(_is_number, values))
    }


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_full(groups: Sequence[Group], options: Mapping[str, Sequence[float]]) -> bool:
    """Tell whether two options have been tried in every combination."""
    tried = {tuple(group.point.get(name) for name in options) for group in groups}
    return len(options) == 2 and tried == {*product(*options.values())}  # noqa: PLR2004


def _new_figure(width: float, height: float) -> Figure:
    """Return an empty figure of a size in inches; raises `FusionError` without matplotlib."""
    pyplot = import_optional("matplotlib.pyplot", "plot")
    figure: Figure = pyplot.figure(figsize=(width, height), layout="constrained")
    if "inline" in pyplot.get_backend():
        pyplot.close(figure)  # else the end of the cell shows it a second time
    return figure


def _draw_kinds(kinds: Kinds) -> Figure:
    figure = _new_figure(1.5 * _WIDE, 0.8 + _ROW * len(kinds))
    axes = figure.subplots()
    for place, (group, *_) in enumerate(kinds.values()):
        mean, deviation = _figure(group)
        axes.errorbar(mean, place, xerr=deviation, marker="o", capsize=3)
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
            look = {"color": f"C{number}", "linestyle": "-" if len(options) == 1 else "none"}
            _draw_kind(axes, name, groups, label=kind, **look)
        axes.set_xlabel(name)
        axes.grid(axis="y", alpha=0.4)
        if values[0] > 0 and values[-1] >= _LOGARITHMIC * values[0]:
            axes.set_xscale("log")
    panels[0].set_ylabel(_heading(groups[0]))
    if legend:
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper left")
    return figure


def _draw_kind(axes: Axes, name: str, groups: Sequence[Group], **look: str) -> None:
    """Draw points by an option; one that does not have it is a line across."""
    having = sorted((each for each in groups if name in each.point), key=lambda e: e.point[name])
    for group in groups if not having else ():
        axes.axhline(_figure(group)[0], **{**look, "linestyle": "--"})  # type: ignore[arg-type]
    found = [(each.point[name], *_figure(each)) for each in having]
    if found:
        x, y, deviations = zip(*found, strict=True)
        axes.errorbar(x, y, yerr=deviations, marker="o", capsize=3, **look)  # type: ignore[arg-type]


def _draw_maps(kinds: Kinds, options: Mapping[str, Sequence[float]]) -> Figure:
    (across, columns), (up, rows) = options.items()
    figure = _new_figure(_WIDE * len(kinds) + 1, _HIGH + 0.5)
    panels = figure.subplots(1, len(kinds), sharey=True, squeeze=False)[0]
    every = [_figure(group)[0] for groups in kinds.values() for group in groups]
    known = [*filter(isfinite, every)]
    limits = {"vmin": min(known, default=None), "vmax": max(known, default=None)}
    for axes, (kind, groups) in zip(panels, kinds.items(), strict=True):
        values = {(each.point[across], each.point[up]): _figure(each)[0] for each in groups}
        cells = [[values[x, y] for x in columns] for y in rows]
        image = axes.imshow(cells, origin="lower", aspect="auto", **limits)
        axes.set_xticks(range(len(columns)), [f"{column:g}" for column in columns])
        axes.set_yticks(range(len(rows)), [f"{row:g}" for row in rows])
        axes.set(xlabel=across)
        axes.set_title(kind if len(kinds) > 1 else "", parse_math=False)
    panels[0].set_ylabel(up)
    figure.colorbar(image, ax=panels, label=_heading(groups[0]))
    return figure


def _figure(group: Group) -> tuple[float, float]:
    """Return the mean of the first objective and its standard deviation, 0 for one seed."""
    objective = group.objectives[0]
    scale = 100 if group.metric(objective).unit == "fraction" else 1
    return scale * group.mean(objective), scale * (group.deviation(objective) or 0.0)


def _heading(group: Group) -> str:
    return heading(group, group.objectives[0])
