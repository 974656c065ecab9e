"""A picture of the search, `coefficients.svg`: the coefficients by layer, and the metrics by step.

Plain SVG without scripts or fonts. The tooltip of a cell names its tensor and, if the cell is a
mean, the range of its values. White marks the initial value of the coefficients.
"""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from torch import Tensor

    from fusion_adamerging.coefficients import Coefficients
    from fusion_adapting import Leaf

    Rows = Mapping[str, Sequence[float]]
    Metrics = Mapping[int, Mapping[str, float]]

_LEFT, _WIDTH, _ROW, _CHART, _GAP = 140, 820, 20, 180, 46
_COLOURS = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#777777", "#000000")
_TITLES = {"coefficient": "mean coefficient", "on": "share of components that are on"}
_LOW, _MIDDLE, _HIGH = (33, 102, 172), (247, 247, 247), (178, 24, 43)


def draw_search(
    coefficients: Coefficients, metrics: Metrics, leaves: Sequence[Leaf], *, start: float
) -> bytes:
    """Draw heat maps of the coefficients (experts x layers) and charts of the metrics."""
    names = [leaf.names[0] for leaf in leaves]
    elements: list[str] = []
    top = 24
    for heat_map in _heat_maps(coefficients, names, start):
        elements += heat_map.draw(names, top)
        top += len(heat_map.rows) * _ROW + _GAP
    for title, lines in _series(metrics).items() if len(metrics) > 1 else ():
        elements += _draw_chart(title, lines, top)
        top += max(_CHART, 16 * len(lines)) + _GAP
    size = f'width="{_LEFT + _WIDTH + 160}" height="{top}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif">'
    background = '<rect width="100%" height="100%" fill="white"/>'
    return "\n".join([head, background, *elements, "</svg>"]).encode() + b"\n"


@dataclass(frozen=True)
class _HeatMap:
    """One cell per expert and layer: white at the neutral value, more intense further away."""

    title: str
    rows: Rows
    neutral: float
    #: text after the value in a cell's tooltip: by expert, in the order of layers
    notes: Mapping[str, Sequence[str]]

    def draw(self, names: Sequence[str], top: int) -> Iterator[str]:
        """Yield the map's SVG elements."""
        values = [value for row in self.rows.values() for value in row]
        reach = max((abs(value - self.neutral) for value in values), default=0) or 1
        low, high = (f"{self.neutral + side * reach:.3g}" for side in (-1, 1))
        scale = f"{low} (blue) over {self.neutral:.3g} (white) to {high} (red)"
        yield _text(_LEFT, top - 8, f"{self.title}, {scale}")
        width = _WIDTH / max(len(names), 1)
        for number, (expert, row) in enumerate(self.rows.items()):
            y = top + number * _ROW
            yield _text(_LEFT - 8, y + 14, expert, anchor="end")
            cells = zip(names, row, self.notes[expert], strict=True)
            for column, (name, value, note) in enumerate(cells):
                colour = _colour(0.5 + (value - self.neutral) / reach / 2)
                yield (
                    f'<rect x="{_LEFT + column * width:.2f}" y="{y}" width="{width:.2f}" '
                    f'height="{_ROW - 1}" fill="{colour}">'
                    f"<title>{escape(expert)}, {escape(name)}: {value:.4g}{note}</title></rect>"
                )


def _heat_maps(
    coefficients: Coefficients, names: Sequence[str], start: float
) -> Iterator[_HeatMap]:
    """Yield a map of the means and, if layers have several coefficients, one of their spread."""
    means = {expert: [row[name] for name in names] for expert, row in coefficients.values.items()}
    if not coefficients.finer:
        blank = {expert: [""] * len(names) for expert in means}
        yield _HeatMap("coefficients by layer", means, start, blank)
        return
    finer = {
        expert: [row.get(name) for name in names] for expert, row in coefficients.finer.items()
    }
    notes = {expert: [_describe_range(values) for values in row] for expert, row in finer.items()}
    yield _HeatMap("coefficients by layer, their means", means, start, notes)
    spread = {expert: [_deviation(values) for values in row] for expert, row in finer.items()}
    yield _HeatMap("coefficients by layer, their standard deviations", spread, 0.0, notes)


def _deviation(values: Tensor | None) -> float:
    return 0.0 if values is None else float(values.std(correction=0))


def _describe_range(values: Tensor | None) -> str:
    if values is None:
        return ""
    return f", of {values.numel()} from {values.min():.4g} to {values.max():.4g}"


def _draw_chart(title: str, lines: Mapping[str, Sequence[float]], top: int) -> Iterator[str]:
    values = [value for line in lines.values() for value in line]
    low, high = min(values), max(values)
    steps = max(len(next(iter(lines.values()))) - 1, 1)
    yield _text(_LEFT, top - 8, f"{title}, over {steps + 1} steps")
    yield f'<path d="M{_LEFT} {top}v{_CHART}h{_WIDTH}" fill="none" stroke="#999"/>'
    yield _text(_LEFT - 8, top + 10, f"{high:.3g}", anchor="end")
    yield _text(_LEFT - 8, top + _CHART, f"{low:.3g}", anchor="end")
    for number, (name, line) in enumerate(lines.items()):
        colour = _COLOURS[number % len(_COLOURS)]
        points = " ".join(
            f"{_LEFT + _WIDTH * step / steps:.1f},"
            f"{top + _CHART * (1 - (value - low) / (high - low or 1)):.1f}"
            for step, value in enumerate(line)
        )
        yield f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="1.5"/>'
        yield _text(_LEFT + _WIDTH + 8, top + 12 + 16 * number, name, fill=colour)


def _series(metrics: Metrics) -> dict[str, dict[str, list[float]]]:
    """Return the lines of each chart by title; a chart shows the metrics of one key prefix."""
    steps = [metrics[step] for step in sorted(metrics)]
    charts: dict[str, dict[str, list[float]]] = {}
    for kind, name in (key.split("/", 1) for key in steps[0] if "/" in key):
        title = _TITLES.get(kind, "objective by task, nats")
        charts.setdefault(title, {})[name] = [step[f"{kind}/{name}"] for step in steps]
    return charts


def _text(x: float, y: float, text: str, *, anchor: str = "start", fill: str = "#222") -> str:
    return (
        f'<text x="{x}" y="{y}" font-size="12" text-anchor="{anchor}" fill="{fill}">'
        f"{escape(text)}</text>"
    )


def _colour(level: float) -> str:
    """Return a colour on a scale from blue (0) over white (0.5) to red (1)."""
    one, other = (_LOW, _MIDDLE) if level < 0.5 else (_MIDDLE, _HIGH)  # noqa: PLR2004 - halves
    share = level * 2 % 1 if level < 1 else 1
    mixed = (round(a + share * (b - a)) for a, b in zip(one, other, strict=True))
    return "#" + "".join(f"{part:02x}" for part in mixed)
