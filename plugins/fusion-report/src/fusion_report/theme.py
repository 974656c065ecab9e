"""The colours of the page: CSS variables with one value for the light and one for the dark theme.

People with colour vision deficiencies can distinguish the six colours of series, which also stand
out from the page. Text has the contrast of WCAG level AA. Tests compute all of this.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    Rgb = tuple[float, float, float]

#: Number of steps of a colour scale, from far below to far above the neutral value.
STEPS = 17
SERIES = 6
_BLACK, _WHITE = "#000000", "#ffffff"


@dataclass(frozen=True)
class Theme:
    """The colours of a theme as #rrggbb."""

    page: str
    card: str
    ink: str
    muted: str
    line: str
    link: str
    bad: str
    series: Sequence[str]
    #: both ends and the middle of colour scales
    low: str
    neutral: str
    high: str

    @property
    def variables(self) -> Mapping[str, str]:
        """All colours by the names of their CSS variables.

        `d0` to `d16` are the colour scale, `i0` to `i16` the colours of text on it.
        """
        plain = {
            name: getattr(self, name)
            for name in ("page", "card", "ink", "muted", "line", "link", "bad")
        }
        series = {f"s{number}": colour for number, colour in enumerate(self.series)}
        scale = [self._interpolate(2 * step / (STEPS - 1) - 1) for step in range(STEPS)]
        return (
            plain
            | series
            | {f"d{step}": colour for step, colour in enumerate(scale)}
            | {f"i{step}": ink_on(colour) for step, colour in enumerate(scale)}
        )

    def _interpolate(self, position: float) -> str:
        """Return the colour of the scale at a position from -1 to 1."""
        end = self.low if position < 0 else self.high
        parts = zip(rgb(self.neutral), rgb(end), strict=True)
        return "#" + "".join(f"{round(255 * (a + abs(position) * (b - a))):02x}" for a, b in parts)


def level(value: float, neutral: float, reach: float) -> int:
    """Return the step of the scale for a value; its ends are `reach` away from neutral."""
    position = (value - neutral) / reach if reach else 0.0
    return round((min(max(position, -1), 1) + 1) / 2 * (STEPS - 1))


def ink_on(colour: str) -> str:
    """Return black or white, whichever contrasts more with a colour."""
    return max(_BLACK, _WHITE, key=lambda ink: contrast(ink, colour))


def contrast(one: str, other: str) -> float:
    """Return the WCAG 2 contrast of two colours, from 1 to 21."""
    darker, lighter = sorted((_luminance(one), _luminance(other)))
    return (lighter + 0.05) / (darker + 0.05)


def rgb(colour: str) -> Rgb:
    """Return the channels of #rrggbb, from 0 to 1."""
    red, green, blue = (int(colour[start : start + 2], 16) / 255 for start in (1, 3, 5))
    return red, green, blue


def _luminance(colour: str) -> float:
    red, green, blue = (
        part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4  # noqa: PLR2004 - sRGB
        for part in rgb(colour)
    )
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


LIGHT = Theme(
    page="#f4f5f7",
    card="#ffffff",
    ink="#1b1f24",
    muted="#57606a",
    line="#d5d9de",
    link="#0a58a8",
    bad="#b3261e",
    series=("#083f75", "#dd6b0a", "#0f9576", "#cc4aa6", "#5c4708", "#7d55f2"),
    low="#1f6fb5",
    neutral="#f2f2f0",
    high="#c2500c",
)
DARK = Theme(
    page="#0d1117",
    card="#161b22",
    ink="#e6e9ed",
    muted="#9aa4af",
    line="#343b44",
    link="#7fb8ff",
    bad="#ff8f87",
    series=("#9cc7ff", "#d9773a", "#3fe0a5", "#e0529c", "#f7d254", "#8f62f0"),
    low="#5fb0f5",
    neutral="#262c34",
    high="#f0894a",
)

#: Placeholder colours of charts, one per CSS variable, which replaces it in the SVG.
PAINT: Mapping[str, str] = {
    name: f"#0{number:05x}" for number, name in enumerate(LIGHT.variables, start=1)
}
