"""The search in one picture, `coefficients.svg`: coefficients by layer, and how they got there.

Plain SVG without scripts or fonts of its own; the pointer over a cell shows its tensor's name.
"""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from torch import Tensor

    from fusion_adamerging.coefficients import Coefficients
    from fusion_core.adapting import Leaf

    Rows = Mapping[str, Sequence[float]]
    Metrics = Mapping[int, Mapping[str, float]]

_LEFT, _WIDTH, _ROW, _CHART, _GAP = 140, 820, 20, 180, 46
_COLOURS = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#777777", "#000000")
_TITLES = {"coefficient": "mean coefficient", "on": "share of components that are on"}
_LOW, _MIDDLE, _HIGH = (33, 102, 172), (247, 247, 247), (178, 24, 43)


def picture(found: Coefficients, metrics: Metrics, leaves: Sequence[Leaf]) -> bytes:
    """Draw heat maps of the coefficients (experts x layers) and the metrics over the steps."""
    names = [leaf.names[0] for leaf in leaves]
    parts: list[str] = []
    top = 24
    for title, rows in _maps(found, names):
        parts += _heat_map(title, rows, names, top)
        top += len(rows) * _ROW + _GAP
    for title, lines in _series(metrics).items() if len(metrics) > 1 else ():
        parts += _chart(title, lines, top)
        top += max(_CHART, 16 * len(lines)) + _GAP
    size = f'width="{_LEFT + _WIDTH + 160}" height="{top}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif">'
    body = "\n".join([head, '<rect width="100%" height="100%" fill="white"/>', *parts, "</svg>"])
    return body.encode() + b"\n"


def _maps(found: Coefficients, names: Sequence[str]) -> Iterator[tuple[str, Rows]]:
    """Yield title and rows of each heat map: of means and, where several share a layer, spread."""
    means = {expert: [row[name] for name in names] for expert, row in found.values.items()}
    if not found.finer:
        yield "coefficients by layer", means
        return
    yield "coefficients by layer, their means", means
    spread = "coefficients by layer, their standard deviations"
    rows = found.finer.items()
    yield spread, {expert: [_deviation(row.get(name)) for name in names] for expert, row in rows}


def _deviation(coefficients: Tensor | None) -> float:
    return 0.0 if coefficients is None else float(coefficients.std(correction=0))


def _heat_map(title: str, rows: Rows, names: Sequence[str], top: int) -> Iterator[str]:
    values = [value for row in rows.values() for value in row] or [0.0]
    low, high = min(values), max(values)
    yield _text(_LEFT, top - 8, f"{title}, {low:.3g} (blue) to {high:.3g} (red)")
    width = _WIDTH / max(len(names), 1)
    for number, (expert, row) in enumerate(rows.items()):
        y = top + number * _ROW
        yield _text(_LEFT - 8, y + 14, expert, anchor="end")
        for column, (name, value) in enumerate(zip(names, row, strict=True)):
            place = (value - low) / (high - low or 1)
            yield (
                f'<rect x="{_LEFT + column * width:.2f}" y="{y}" width="{width:.2f}" '
                f'height="{_ROW - 1}" fill="{_colour(place)}">'
                f"<title>{escape(expert)}, {escape(name)}: {value:.4g}</title></rect>"
            )


def _chart(title: str, lines: Mapping[str, Sequence[float]], top: int) -> Iterator[str]:
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
    """Return by title the lines of each chart: metrics whose keys begin alike."""
    steps = [metrics[step] for step in sorted(metrics)]
    found: dict[str, dict[str, list[float]]] = {}
    for kind, name in (key.split("/", 1) for key in steps[0] if "/" in key):
        title = _TITLES.get(kind, "objective by task, nats")
        found.setdefault(title, {})[name] = [step[f"{kind}/{name}"] for step in steps]
    return found


def _text(x: float, y: float, text: str, *, anchor: str = "start", fill: str = "#222") -> str:
    return (
        f'<text x="{x}" y="{y}" font-size="12" text-anchor="{anchor}" fill="{fill}">'
        f"{escape(text)}</text>"
    )


def _colour(place: float) -> str:
    """Return a colour on a scale from blue over white to red; 0 <= place <= 1."""
    one, other = (_LOW, _MIDDLE) if place < 0.5 else (_MIDDLE, _HIGH)  # noqa: PLR2004 - halves
    share = place * 2 % 1 if place < 1 else 1
    mixed = (round(a + share * (b - a)) for a, b in zip(one, other, strict=True))
    return "#" + "".join(f"{part:02x}" for part in mixed)
