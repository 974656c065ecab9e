"""Render figures as SVG inside a page, with the page's fonts and colours and unique ids.

Every chart is rendered twice, for desktop screens and for phones, so that its text is readable.
"""

from __future__ import annotations

import re
import warnings
from abc import ABC, abstractmethod
from dataclasses import dataclass
from io import StringIO
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
from markupsafe import Markup
from matplotlib.figure import Figure

from fusion_core.commands import escape_control
from fusion_report.theme import PAINT

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: Width of a chart on phones, in units.
NARROW = 326
_STYLE: dict[str, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.family": ["DejaVu Sans"],  # measures text; the page shows its own font
    "text.color": PAINT["ink"],
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "savefig.facecolor": "none",
    "axes.edgecolor": PAINT["line"],
    "axes.labelcolor": PAINT["muted"],
    "axes.titlesize": "medium",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "xtick.labelsize": "medium",
    "ytick.labelsize": "medium",
    "xtick.color": PAINT["line"],
    "ytick.color": PAINT["line"],
    "xtick.labelcolor": PAINT["muted"],
    "ytick.labelcolor": PAINT["ink"],
    "grid.color": PAINT["line"],
    "grid.linewidth": 0.7,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
}
_REMOVED = re.compile(r"<(metadata|style)\b.*?</\1>", re.DOTALL)
_VARIABLES = {colour: f"var(--{name})" for name, colour in PAINT.items()}
_COLOUR = re.compile("|".join(_VARIABLES))
_DECIMALS = re.compile(r"(\d\.\d\d)\d+")


@dataclass(frozen=True)
class Drawing:
    """A chart with a title, and with a description for people who cannot see it."""

    name: str
    title: str
    words: str
    plot: Plot
    #: width on desktop screens, in units
    wide: float

    def __html__(self) -> str:
        return self._svg("wide", self.wide) + self._svg("narrow", NARROW)

    def _svg(self, size: str, width: float) -> Markup:
        with mpl.rc_context(), warnings.catch_warnings():
            mpl.rcdefaults()
            font_size = 11 if is_narrow(width) else 12.5
            style: Any = {**_STYLE, "font.size": font_size, "svg.hashsalt": self.name}
            mpl.rcParams.update(style)
            # the page's font shows scripts that the measuring font lacks
            warnings.filterwarnings("ignore", "Glyph .* missing from font", UserWarning)
            figure = Figure(figsize=(width / 72, 1), layout="constrained")
            self.plot.draw(figure, width)
            stream = StringIO()
            metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
            figure.savefig(stream, format="svg", metadata=metadata)
        return self._inline(stream.getvalue(), size)

    def _inline(self, text: str, size: str) -> Markup:
        """Turn the SVG of a file into an element of the page."""
        prefix = f"{self.name}-{size}"
        body = text[text.index(">", text.index("<svg")) + 1 :]
        box = re.search(r'viewBox="([^"]*)"', text)
        assert box is not None  # noqa: S101 - matplotlib always writes one
        body = _REMOVED.sub("", body)
        body = re.sub(r'(\bid="|href="#|url\(#)', rf"\1{prefix}-", body)
        body = body.replace("xlink:href", "href")
        body = re.sub(r"'DejaVu Sans'[^;\"]*", "inherit", body)
        body = re.sub(r' d="[^"]*"', lambda path: _DECIMALS.sub(r"\1", path[0]), body)
        body = _COLOUR.sub(lambda match: _VARIABLES[match[0]], body)
        width = float(box[1].split()[2]) * (1.4 if size == "narrow" else 1)
        title, words = escape_control(self.title), escape_control(self.words)
        head = Markup(
            '<svg xmlns="http://www.w3.org/2000/svg" class="{}" viewBox="{}" role="img" '
            'style="max-width:{:.0f}px" aria-label="{}"><title>{}</title><desc>{}</desc>'
        ).format(size, box[1], width, title, title, words)
        return head + Markup(body.rstrip())  # noqa: S704 - matplotlib escapes text


class Plot(ABC):
    """A chart that can be drawn at any width."""

    @abstractmethod
    def draw(self, figure: Figure, width: float) -> None:
        """Draw on an empty figure of a width in units, and set its height."""

    def drawing(self, name: str, title: str, words: str, *, wide: float) -> Drawing:
        """Return the chart with a title and a description; `name` is unique in the page."""
        return Drawing(name, title, words, self, wide)


def is_narrow(width: float) -> bool:
    """Tell whether a chart is for phones."""
    return width <= NARROW


def set_height(figure: Figure, height: float) -> None:
    """Set the height of a figure in units."""
    figure.set_figheight(height / 72)


def shorten(name: str, longest: int = 24) -> str:
    """Return a name on one line, with an ellipsis in the middle if it is too long."""
    line = escape_control(" ".join(name.split()))
    half = longest // 2
    return (
        line if len(line) <= longest else f"{line[: half - 1]}\N{HORIZONTAL ELLIPSIS}{line[-half:]}"
    )


def format_number(value: float) -> str:
    """Format a number with about three digits, and zero without a sign."""
    digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2  # noqa: PLR2004 - decimal
    text = f"{value:.{digits}f}"
    return text.lstrip("-") if not text.strip("-0.") else text


def remove_frame(axes: Axes) -> None:
    """Hide the spines and ticks of a chart."""
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
