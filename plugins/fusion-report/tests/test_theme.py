"""Compute contrasts and differences of the colours by their definitions."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from fusion_report.theme import DARK, LIGHT, STEPS, Theme, level

#: Machado et al. 2009, severity 1: linear RGB as seen without red, green or blue cones.
SEEN = {
    "all": np.eye(3),
    "protanopia": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "deuteranopia": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ],
    "tritanopia": [
        [1.255528, -0.076749, -0.178779],
        [-0.078411, 0.930809, 0.147602],
        [0.004733, 0.691367, 0.303900],
    ],
}
TO_XYZ = [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]


def linear(colour: str) -> np.ndarray:
    parts = np.array([int(colour[start : start + 2], 16) / 255 for start in (1, 3, 5)])
    return np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)


def contrast(one: str, other: str) -> float:
    dark, light = sorted(
        float(linear(colour) @ [0.2126, 0.7152, 0.0722]) for colour in (one, other)
    )
    return (light + 0.05) / (dark + 0.05)


def lab(rgb: np.ndarray) -> np.ndarray:
    xyz = TO_XYZ @ np.clip(rgb, 0, 1) / [0.9505, 1, 1.089]
    x, y, z = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


THEMES = pytest.mark.parametrize("theme", [LIGHT, DARK], ids=["light", "dark"])


@THEMES
def test_text_has_enough_contrast(theme: Theme) -> None:
    colours = theme.variables
    for ink in ("ink", "muted", "link", "bad"):
        assert min(contrast(colours[ink], colours[on]) for on in ("page", "card")) >= 4.5, ink
    for step in range(STEPS):
        assert contrast(colours[f"i{step}"], colours[f"d{step}"]) >= 4.5


@THEMES
def test_lines_and_bars_have_enough_contrast(theme: Theme) -> None:
    assert min(contrast(colour, theme.card) for colour in theme.series) >= 3


@THEMES
@pytest.mark.parametrize("seen", SEEN)
def test_series_can_be_distinguished(theme: Theme, seen: str) -> None:
    colours = [lab(SEEN[seen] @ linear(colour)) for colour in theme.series]
    assert min(float(np.linalg.norm(a - b)) for a, b in combinations(colours, 2)) > 12


@THEMES
@pytest.mark.parametrize("seen", SEEN)
def test_both_sides_of_a_scale_can_be_distinguished(theme: Theme, seen: str) -> None:
    scale = [lab(SEEN[seen] @ linear(theme.variables[f"d{step}"])) for step in range(STEPS)]
    assert all(np.linalg.norm(scale[4 - n] - scale[12 + n]) > 12 for n in range(5))
    from_neutral = [float(np.linalg.norm(step - scale[8])) for step in scale]
    assert from_neutral[8:] == sorted(from_neutral[8:])
    assert from_neutral[8::-1] == sorted(from_neutral[8::-1])


def test_a_value_has_the_step_of_its_distance_from_neutral() -> None:
    steps = [level(value, 0.2, 0.8) for value in (-0.6, -0.2, 0.2, 0.6, 1.0, 9.0)]
    assert steps == [0, 4, 8, 12, 16, 16]
    assert level(0.2, 0.2, 0.0) == 8
