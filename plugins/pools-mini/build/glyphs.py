"""Glyphs from fonts: banks of letter masks, and the visual style of each script's images.

A bank contains each character of a script in each usable face, as 40x40 masks. A style turns masks
into 28x28 pictures of one kind (a road sign, ruled paper, a screen, a house number). A script has
the same style in training and test; only its typefaces differ.
"""

from __future__ import annotations

import hashlib
import math
import unicodedata
from collections import defaultdict
from dataclasses import dataclass

import numpy as np
import torch
from fonts import Face, covering
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torch.nn import functional

SIZE = 28
_MASK = 40
_FIRST_CAPITAL, _FIRST_SMALL = 0x41, 0x61


def _span(first: int, last: int, without: tuple[int, ...] = ()) -> str:
    return "".join(chr(code) for code in range(first, last + 1) if code not in without)


SCRIPTS: dict[str, str] = {
    "upper": _span(_FIRST_CAPITAL, 0x5A),
    "lower": _span(_FIRST_SMALL, 0x7A),
    "digit": _span(0x30, 0x39),
    "greek": _span(0x3B1, 0x3C9, without=(0x3C2,)),
    "cyrillic": "бвгджзиклмнптфцчшэюя",
    "hebrew": _span(0x5D0, 0x5EA, without=(0x5DA, 0x5DD, 0x5DF, 0x5E3, 0x5E5)),
    "hiragana": "あいうえおかきくけこさしすせそたちつてと",
    "katakana": "アイウエオカキクケコサシスセソタチツテトナニヌネノ",
    "devanagari-digit": _span(0x966, 0x96F),
    "devanagari": _span(0x915, 0x924),
    "arabic-digit": _span(0x660, 0x669),
    "bengali-digit": _span(0x9E6, 0x9EF),
    "thai-digit": _span(0xE50, 0xE59),
    "georgian": _span(0x10D0, 0x10F0),
    "armenian": _span(0x561, 0x586),
    "math": "∀∂∃∇∈∏∑√∞∫",
    "arrow": _span(0x2190, 0x2199),
    "chess": _span(0x2654, 0x2659),
}


@dataclass(frozen=True)
class Bank:
    """Masks ``[n, 40, 40]`` uint8, with the character and typeface of each, and names."""

    masks: Tensor
    labels: Tensor
    typefaces: Tensor
    names: list[str]
    typeface_names: list[str]
    packages: frozenset[str]

    def only(self, labels: list[int]) -> Bank:
        """Return the bank of some characters, renumbered in their order."""
        renumber = torch.full((len(self.names),), -1)
        renumber[torch.tensor(labels)] = torch.arange(len(labels))
        keep = renumber[self.labels] >= 0
        return Bank(
            self.masks[keep],
            renumber[self.labels[keep]],
            self.typefaces[keep],
            [self.names[label] for label in labels],
            self.typeface_names,
            self.packages,
        )

    def of(self, typefaces: Tensor) -> Bank:
        """Return the bank of some typefaces (one boolean per typeface)."""
        keep = typefaces[self.typefaces]
        return Bank(
            self.masks[keep],
            self.labels[keep],
            self.typefaces[keep],
            self.names,
            self.typeface_names,
            self.packages,
        )

    def draw(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw ``count`` masks, labels first, so that common typefaces do not bias the classes."""
        labels = torch.randint(0, len(self.names), (count,), generator=generator)
        order = torch.argsort(self.labels, stable=True)
        counts = torch.bincount(self.labels, minlength=len(self.names))
        starts = counts.cumsum(0) - counts
        offset = (torch.rand(count, generator=generator) * counts[labels]).long()
        return self.masks[order[starts[labels] + offset]], labels


def name(script: str, character: str) -> str:
    """Return a character's English name from Unicode: ``greek letter alpha``."""
    words = unicodedata.name(character).lower().replace("-", " ").replace("small ", "")
    words = words.replace("capital ", "")
    return f"capital {words}" if script == "upper" else words


def bank(script: str, most: int = 200, a_typeface: int = 3) -> Bank:
    """Draw a script in at most ``most`` typefaces, with up to ``a_typeface`` faces per typeface."""
    rows: list[tuple[int, np.ndarray]] = []
    typefaces: list[str] = []
    seen: set[str] = set()
    packages: set[str] = set()
    for typeface, faces in _shuffled_typefaces(SCRIPTS[script])[:most]:
        drawn = [(face, _cut_all(face, SCRIPTS[script])) for face in faces[:a_typeface]]
        usable = [(face, cuts) for face, cuts in drawn if cuts is not None and _is_new(cuts, seen)]
        rows += [(len(typefaces), cuts) for _, cuts in usable]
        packages |= {face.package for face, _ in usable}
        typefaces += [typeface] if usable else []
    return _assemble(script, rows, typefaces, frozenset(packages))


def _assemble(
    script: str, rows: list[tuple[int, np.ndarray]], typefaces: list[str], packages: frozenset[str]
) -> Bank:
    size = len(SCRIPTS[script])
    return Bank(
        masks=torch.from_numpy(np.concatenate([cuts for _, cuts in rows])),
        labels=torch.arange(size).repeat(len(rows)),
        typefaces=torch.tensor([row for row, _ in rows]).repeat_interleave(size),
        names=[name(script, character) for character in SCRIPTS[script]],
        typeface_names=typefaces,
        packages=packages,
    )


def _shuffled_typefaces(characters: str) -> list[tuple[str, list[Face]]]:
    """Return typefaces ordered by a hash of their names, regular styles first."""
    groups: dict[str, list[Face]] = defaultdict(list)
    for face in covering(characters):
        groups[face.typeface].append(face)
    order = sorted(groups, key=lambda name: hashlib.sha256(name.encode()).hexdigest())
    return [(name, sorted(groups[name], key=_plainness)) for name in order]


def _plainness(face: Face) -> tuple[bool, int, str]:
    return ("Regular" not in face.path.name, len(face.path.name), face.key)


def _cut_all(face: Face, characters: str) -> np.ndarray | None:
    """Return all characters of a face; None if one of them cannot be drawn."""
    try:
        font = ImageFont.truetype(str(face.path), 56, index=face.index)
        return np.stack([_cut(font, character) for character in characters])
    except (OSError, ValueError):
        return None


def _cut(font: ImageFont.FreeTypeFont, character: str) -> np.ndarray:
    """Return a character cropped to its ink, scaled to 28 on its longer side, centred in 40x40."""
    left, top, right, bottom = (int(edge) for edge in font.getbbox(character))
    if not (1 < right - left <= 200 and 1 < bottom - top <= 200):
        msg = f"no ink for {character!r}"
        raise ValueError(msg)
    image = Image.new("L", (right - left + 4, bottom - top + 4))
    ImageDraw.Draw(image).text((2 - left, 2 - top), character, font=font, fill=255)
    box = image.getbbox()
    if box is None:
        msg = f"no ink for {character!r}"
        raise ValueError(msg)
    return _centre(image.crop(box))


def _centre(image: Image.Image) -> np.ndarray:
    scale = SIZE / max(image.size)
    width, height = (max(2, round(side * scale)) for side in image.size)
    canvas = np.zeros((_MASK, _MASK), np.uint8)
    top, left = (_MASK - height) // 2, (_MASK - width) // 2
    canvas[top : top + height, left : left + width] = np.asarray(
        image.resize((width, height), Image.Resampling.LANCZOS)
    )
    return canvas


def _is_new(cuts: np.ndarray, seen: set[str]) -> bool:
    """Tell whether a face is a new design, without boxes for missing glyphs and no renamed copy."""
    hashes = [hashlib.sha256((cut >> 5).tobytes()).hexdigest() for cut in cuts]
    distinct, copied = len(set(hashes)), sum(hash_ in seen for hash_ in hashes)
    if distinct < 0.9 * len(hashes) or copied > 0.3 * len(hashes):
        return False
    seen.update(hashes)
    return True


# --- pictures -----------------------------------------------------------------------------------


def uniform(count: int, low: float, high: float, generator: torch.Generator) -> Tensor:
    """Return ``[count, 1, 1, 1]`` random numbers, one per image."""
    return torch.rand(count, 1, 1, 1, generator=generator) * (high - low) + low


def to_bytes(images: Tensor) -> Tensor:
    """Convert floats in 0..1 to uint8 ``[n, 28, 28]``."""
    return (images * 255).round().clamp(0, 255).to(torch.uint8).reshape(-1, SIZE, SIZE)


@dataclass(frozen=True)
class Jitter:
    """Ranges of rotation (degrees), scale, shear and shift (half image widths)."""

    turn: float = 12.0
    scale: tuple[float, float] = (0.8, 1.15)
    shear: float = 0.15
    shift: float = 0.12


def place_masks(masks: Tensor, jitter: Jitter, generator: torch.Generator) -> Tensor:
    """Convert masks ``[n, 40, 40]`` to jittered masks ``[n, 1, 28, 28]`` in 0..1."""
    count = len(masks)

    def draw(low: float, high: float) -> Tensor:
        return torch.rand(count, generator=generator) * (high - low) + low

    angle, scale = draw(-jitter.turn, jitter.turn) * math.pi / 180, 1 / draw(*jitter.scale)
    shear, aspect = draw(-jitter.shear, jitter.shear), draw(0.9, 1.1)
    cosine, sine = angle.cos(), angle.sin()
    matrix = torch.zeros(count, 2, 3)
    matrix[:, 0, 0], matrix[:, 0, 1] = scale * cosine * aspect, scale * (shear * cosine - sine)
    matrix[:, 1, 0], matrix[:, 1, 1] = scale * sine * aspect, scale * (shear * sine + cosine)
    matrix[:, 0, 2], matrix[:, 1, 2] = (draw(-jitter.shift, jitter.shift) for _ in range(2))
    grid = functional.affine_grid(matrix, [count, 1, SIZE, SIZE], align_corners=False)
    return functional.grid_sample(masks.float()[:, None] / 255, grid, align_corners=False)


def smooth_field(count: int, cells: int, generator: torch.Generator) -> Tensor:
    """Return a low-frequency random picture in 0..1, such as uneven light or a wall."""
    coarse = torch.rand(count, 1, cells, cells, generator=generator)
    return functional.interpolate(coarse, size=(SIZE, SIZE), mode="bicubic", align_corners=False)


def noisy(images: Tensor, scale: float, generator: torch.Generator) -> Tensor:
    """Add camera noise."""
    return (images + scale * torch.randn(images.shape, generator=generator)).clamp(0, 1)


def coordinates() -> tuple[Tensor, Tensor]:
    """Return the row and column of each pixel."""
    line = torch.arange(SIZE).float()
    rows, columns = torch.meshgrid(line, line, indexing="ij")
    return rows, columns


def plain(mask: Tensor, generator: torch.Generator) -> Tensor:
    """Draw ink on an even ground, in either polarity."""
    count = len(mask)
    ink, ground = uniform(count, 0.65, 1.0, generator), uniform(count, 0, 0.25, generator)
    images = ground * (1 - mask) + ink * mask
    images = images + 0.05 * torch.randn(mask.shape, generator=generator) * uniform(
        count, 0.2, 1.5, generator
    )
    inverted = torch.rand(count, 1, 1, 1, generator=generator) < 0.5
    return torch.where(inverted, 1 - images, images).clamp(0, 1)


def clutter(mask: Tensor, generator: torch.Generator) -> Tensor:
    """Draw ink on an uneven ground, with a piece of another glyph at one border."""
    count = len(mask)
    others = mask[torch.randperm(count, generator=generator)]
    distance = int(torch.randint(17, 24, (1,), generator=generator))
    side = torch.randint(0, 4, (count, 1, 1, 1), generator=generator)
    pieces = torch.zeros_like(mask)
    for index, (axis, sign) in enumerate(((3, 1), (3, -1), (2, 1), (2, -1))):
        pieces = torch.where(side == index, torch.roll(others, sign * distance, axis), pieces)
    both = torch.maximum(mask, pieces * uniform(count, 0.3, 1.0, generator))
    light = smooth_field(count, 4, generator).clamp(0, 1) * uniform(count, 0, 0.45, generator)
    return plain((light * (1 - both) + both).clamp(0, 1), generator)


def sign(mask: Tensor, generator: torch.Generator) -> Tensor:
    """Draw a letter on a round, square or diamond plate with a rim."""
    count, (rows, columns) = len(mask), coordinates()
    radius = uniform(count, 11.5, 13.8, generator)
    across = (columns - uniform(count, 12.5, 14.5, generator)).abs()
    down = (rows - uniform(count, 12.5, 14.5, generator)).abs()
    kind = torch.randint(0, 3, (count, 1, 1, 1), generator=generator)
    square = torch.maximum(across, down) * 1.08
    distance = torch.where(kind == 1, square, (across + down) * 0.74)
    distance = torch.where(kind == 0, (across**2 + down**2).sqrt(), distance)
    plate = torch.sigmoid(3 * (radius - distance))
    rim = 0.8 * torch.sigmoid(3 * (1.2 - (distance - radius + 1.2).abs()))
    colour = _plate_colour(count, generator)
    picture = _gradient(count, generator) * (1 - plate) + colour * plate
    picture = picture * (1 - rim) + rim * (1 - colour)
    return noisy(picture * (1 - mask) + mask * (1 - colour), 0.04, generator)


def _plate_colour(count: int, generator: torch.Generator) -> Tensor:
    dark = torch.rand(count, 1, 1, 1, generator=generator) < 0.7
    low, high = uniform(count, 0.05, 0.3, generator), uniform(count, 0.7, 0.95, generator)
    return torch.where(dark, low, high)


def _gradient(count: int, generator: torch.Generator) -> Tensor:
    (rows, columns), angle = coordinates(), uniform(count, 0, 2 * math.pi, generator)
    phase = uniform(count, 0, 2 * math.pi, generator)
    wave = torch.sin((columns * angle.cos() + rows * angle.sin()) / 9 + phase)
    return uniform(count, 0.3, 0.7, generator) + uniform(count, 0, 0.3, generator) * wave


def paper(mask: Tensor, generator: torch.Generator) -> Tensor:
    """Draw dark ink on light ruled paper."""
    count, (rows, _) = len(mask), coordinates()
    spacing, phase = uniform(count, 6, 9, generator), uniform(count, 0, 9, generator)
    rules = (((rows + phase) % spacing) < 1).float() * uniform(count, 0.1, 0.3, generator)
    sheet = uniform(count, 0.8, 1.0, generator) - rules
    return noisy(sheet * (1 - mask) + uniform(count, 0, 0.35, generator) * mask, 0.03, generator)


def screen(mask: Tensor, generator: torch.Generator) -> Tensor:
    """Draw a bright outline on a dark screen with scan lines."""
    count, (rows, _) = len(mask), coordinates()
    edge = functional.max_pool2d(mask, 3, 1, 1) - mask * uniform(count, 0.3, 1.0, generator)
    pitch, phase = uniform(count, 1.4, 2.2, generator), uniform(count, 0, 6, generator)
    lines = 0.75 + 0.25 * torch.sin(rows * pitch + phase)
    dark = uniform(count, 0, 0.12, generator)
    return noisy(dark + edge * uniform(count, 0.7, 0.9, generator) * lines, 0.04, generator)


def house(mask: Tensor, generator: torch.Generator) -> Tensor:
    """Draw a blurred digit between neighbours on an uneven wall, in either polarity."""
    count = len(mask)
    both = torch.maximum(mask, _neighbours(mask, generator) * uniform(count, 0.5, 1, generator))
    wall = uniform(count, 0.2, 0.8, generator)
    polarity = torch.where(wall > 0.5, -1.0, 1.0)
    light = (smooth_field(count, 3, generator) - 0.5) * 0.3
    picture = wall + light + uniform(count, 0.3, 0.6, generator) * polarity * both
    padded = functional.pad(picture, (1, 1, 1, 1), mode="replicate")
    return noisy((functional.avg_pool2d(padded, 3, 1) + picture) / 2, 0.03, generator)


def _neighbours(mask: Tensor, generator: torch.Generator) -> Tensor:
    distance = int(torch.randint(16, 21, (1,), generator=generator))
    right, left = (mask[torch.randperm(len(mask), generator=generator)] for _ in range(2))
    right, left = torch.roll(right, distance, 3), torch.roll(left, -distance, 3)
    right[..., : distance - 8] = 0
    left[..., SIZE - distance + 8 :] = 0
    return torch.maximum(right, left)


STYLES = {
    "plain": plain,
    "clutter": clutter,
    "sign": sign,
    "paper": paper,
    "screen": screen,
    "house": house,
}


def pictures(
    source: Bank, count: int, seed: int, style: str, jitter: Jitter = Jitter()
) -> tuple[Tensor, Tensor]:
    """Draw ``count`` pictures ``[n, 28, 28]`` uint8 and their labels.

    Pictures are drawn in blocks, so that block-wise parameters, such as the distance of
    neighbours, vary within a set.
    """
    generator = torch.Generator().manual_seed(seed)
    images, labels = [], []
    for start in range(0, count, 64):
        masks, block = source.draw(min(64, count - start), generator)
        placed = place_masks(masks, jitter, generator)
        images.append(to_bytes(STYLES[style](placed, generator)))
        labels.append(block)
    return torch.cat(images), torch.cat(labels)
