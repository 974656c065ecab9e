"""Procedural pictures: textures and outlines of shapes."""

from __future__ import annotations

import math

import numpy as np
import torch
from glyphs import SIZE, coordinates
from PIL import Image, ImageDraw
from torch import Tensor
from torch.nn import functional

TEXTURES = [
    "stripes",
    "checkerboard",
    "polka dots",
    "bricks",
    "square grid",
    "waves",
    "coarse noise",
    "rings",
    "blobs",
    "gradient",
    "zigzag",
    "crosshatch",
]
SHAPES = [
    "circle",
    "square",
    "triangle",
    "star",
    "cross",
    "diamond",
    "ring",
    "hexagon",
    "heart",
    "crescent",
]
COUNTS = ["one", "two", "three", "four", "five"]
_CANVAS = 112  # four times the final side, for smooth edges


# --- textures -----------------------------------------------------------------------------------


def textures(labels: Tensor, generator: torch.Generator) -> Tensor:
    """Return one texture per label, floats ``[n, 28, 28]`` in 0..1."""
    count = len(labels)

    def draw(low: float, high: float) -> Tensor:
        return torch.rand(count, 1, 1, generator=generator) * (high - low) + low

    every = torch.stack(_patterns(count, draw, generator))
    low, high = draw(0, 0.4), draw(0.6, 1.0)
    chosen = low + (high - low) * every[labels, torch.arange(count)]
    inverted = torch.rand(count, 1, 1, generator=generator) < 0.5
    noise = torch.randn(count, SIZE, SIZE, generator=generator) * draw(0.02, 0.08)
    return (torch.where(inverted, 1 - chosen, chosen) + noise).clamp(0, 1)


def _patterns(count: int, draw, generator: torch.Generator) -> list[Tensor]:  # noqa: ANN001
    """Return all textures for each image. The label selects one, which is wasteful but short."""
    (rows, columns), angle = coordinates(), draw(0, math.pi)
    lengthwise = (columns - 13.5) * angle.cos() + (rows - 13.5) * angle.sin()
    across = -(columns - 13.5) * angle.sin() + (rows - 13.5) * angle.cos()
    period, phase, other, sharp = draw(4, 9), draw(0, 6.283), draw(0, 6.283), draw(3, 10)
    pulse = 2 * math.pi / period
    wave, cross = torch.sin(lengthwise * pulse + phase), torch.sin(across * pulse + other)
    row = torch.floor(across / period + phase)
    brick = (lengthwise / (1.6 * period) + 0.5 * (row % 2) + other) % 1
    course, column = (across / period + phase) % 1, (lengthwise / period + phase) % 1
    tooth = 2 * ((across / (1.5 * period) + other) % 1 - 0.5).abs()
    radius = ((columns - draw(4, 24)) ** 2 + (rows - draw(4, 24)) ** 2).sqrt()
    slant = torch.sin((lengthwise * 0.5 + across * 0.87) * pulse + other)
    return [
        torch.sigmoid(sharp * wave),
        torch.sigmoid(2 * sharp * wave * cross),
        torch.sigmoid(sharp * (wave + cross - 1)),
        1 - torch.maximum((brick < 0.16).float(), (course < 0.22).float()),
        torch.maximum((column < 0.2).float(), (((across / period + other) % 1) < 0.2).float()),
        torch.sigmoid(sharp * torch.sin(lengthwise * pulse + phase + 1.6 * cross)),
        torch.sigmoid(sharp * _noise(count, SIZE // 2, "bilinear", generator)),
        torch.sigmoid(sharp * torch.sin(radius * pulse + phase)),
        torch.sigmoid(sharp * _noise(count, 6, "bicubic", generator)),
        torch.sigmoid(lengthwise / 8 + draw(-0.5, 0.5)),
        torch.sigmoid(sharp * torch.sin(lengthwise * pulse + phase + tooth * 2 * math.pi * 0.9)),
        torch.maximum(torch.sigmoid(sharp * (wave - 0.6)), torch.sigmoid(sharp * (slant - 0.6))),
    ]


def _noise(count: int, cells: int, mode: str, generator: torch.Generator) -> Tensor:
    coarse = torch.randn(count, 1, cells, cells, generator=generator)
    return functional.interpolate(coarse, size=(SIZE, SIZE), mode=mode, align_corners=False)[:, 0]


# --- shapes -------------------------------------------------------------------------------------


def shapes(labels: np.ndarray, counts: np.ndarray, seed: int, *, sketch: bool) -> Tensor:
    """Draw ``counts[i]`` copies of shape ``labels[i]`` per image, uint8 ``[n, 28, 28]``.

    Plain shapes are filled on an even ground. A sketch is an outline over stray strokes. The task
    uses sketches, pre-training does not.
    """
    random = np.random.default_rng(seed)
    drawn = [
        _sketch(int(label), random) if sketch else _filled(int(label), int(count), random)
        for label, count in zip(labels, counts, strict=True)
    ]
    return torch.from_numpy(np.stack(drawn))


def _filled(label: int, count: int, random: np.random.Generator) -> np.ndarray:
    image = Image.new("L", (_CANVAS, _CANVAS), int(random.integers(0, 60)))
    draw, ink, turn = (
        ImageDraw.Draw(image),
        int(random.integers(150, 256)),
        random.uniform(-0.4, 0.4),
    )
    for centre, radius in _spots(count, random):
        if label == SHAPES.index("ring"):
            draw.polygon(
                outline(label, centre, radius, turn), outline=ink, width=max(3, int(radius * 0.3))
            )
        else:
            draw.polygon(outline(label, centre, radius, turn), fill=ink)
    return _finish(image, random.uniform(2, 14), random)


def _sketch(label: int, random: np.random.Generator) -> np.ndarray:
    image = Image.new("L", (_CANVAS, _CANVAS), int(random.integers(0, 80)))
    draw, turn = ImageDraw.Draw(image), random.uniform(-0.5, 0.5)
    for _ in range(int(random.integers(1, 4))):
        draw.line(
            random.uniform(0, _CANVAS, 4).tolist(),
            fill=int(random.integers(90, 200)),
            width=int(random.integers(3, 7)),
        )
    radius = random.uniform(26, 44)
    centre = random.uniform(radius + 2, _CANVAS - radius - 2, 2)
    ink, width = int(random.integers(170, 256)), int(random.integers(5, 11))
    points = outline(label, centre, radius, turn)
    draw.line([*points, points[0], points[1]], fill=ink, width=width, joint="curve")
    if label == SHAPES.index("ring"):
        inner = outline(label, centre, radius * 0.5, turn)
        draw.line([*inner, inner[0], inner[1]], fill=ink, width=width, joint="curve")
    return _finish(image, random.uniform(6, 15), random)


def _spots(count: int, random: np.random.Generator) -> list[tuple[np.ndarray, float]]:
    """Return circles that do not overlap; fewer than requested only if they do not fit."""
    spots: list[tuple[np.ndarray, float]] = []
    for _ in range(200):
        radius = random.uniform(14, 34) if count == 1 else random.uniform(11, 16)
        centre = random.uniform(radius + 1, _CANVAS - 1 - radius, 2)
        if all(np.hypot(*(centre - spot)) > radius + size for spot, size in spots):
            spots.append((centre, radius))
        if len(spots) == count:
            break
    return spots


def outline(
    label: int, centre: np.ndarray, radius: float, turn: float
) -> list[tuple[float, float]]:
    """Return the corners of a shape in order."""
    unit = _UNIT[SHAPES[label]]
    cosine, sine = math.cos(turn), math.sin(turn)
    turned = unit @ np.array([[cosine, sine], [-sine, cosine]])
    return [(float(x), float(y)) for x, y in centre + radius * turned]


def _regular(corners: int, start: float = -math.pi / 2, inner: float = 1.0) -> np.ndarray:
    angles = start + np.arange(corners) * 2 * math.pi / corners
    radii = np.where(np.arange(corners) % 2 == 0, 1.0, inner)
    return np.stack([radii * np.cos(angles), radii * np.sin(angles)], 1)


def _cross() -> np.ndarray:
    arm = 0.3
    quarter = np.array([[arm, -arm], [1, -arm], [1, arm]])
    turns = [np.linalg.matrix_power(np.array([[0, 1], [-1, 0]]), k) for k in range(4)]
    return np.concatenate([quarter @ turn for turn in turns])


def _heart() -> np.ndarray:
    t = np.linspace(0, 2 * math.pi, 32, endpoint=False)
    y = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    return np.stack([16 * np.sin(t) ** 3, -y], 1) / 17


def _crescent() -> np.ndarray:
    outer = np.linspace(0.25 * math.pi, 1.75 * math.pi, 20)
    reach = math.cos(0.25 * math.pi)
    inner = np.linspace(1.5 * math.pi, 0.5 * math.pi, 14)
    hollow = np.stack([reach + 0.9 * np.cos(inner), reach * np.sin(inner)], 1)
    return np.concatenate([np.stack([np.cos(outer), np.sin(outer)], 1), hollow])


_UNIT = {
    "circle": _regular(40),
    "square": _regular(4, math.pi / 4),
    "triangle": _regular(3),
    "star": _regular(10, inner=0.42),
    "cross": _cross(),
    "diamond": _regular(4) * [0.6, 1.0],
    "ring": _regular(40),
    "hexagon": _regular(6, 0.0),
    "heart": _heart(),
    "crescent": _crescent(),
}


def _finish(image: Image.Image, noise: float, random: np.random.Generator) -> np.ndarray:
    small = np.asarray(image.resize((SIZE, SIZE), Image.Resampling.BOX)).astype(np.float32)
    small = small + random.normal(0, noise, small.shape)
    return (255 - small if random.random() < 0.5 else small).clip(0, 255).astype(np.uint8)
