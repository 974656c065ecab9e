"""The pre-training mixture: a broad synthetic set of captioned images.

It covers the eight tasks *weakly*: their scripts appear in a plain style only and their fine names
in a fraction of the captions (the others are just ``greek letter``), while other scripts appear in
every style with their names. So the base has the features, and partly knows the tasks.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import glyphs
import numpy as np
import procedural
import tasks
import torch
from torch import Tensor

_GENERIC = (
    "lower",
    "georgian",
    "armenian",
    "katakana",
    "thai-digit",
    "bengali-digit",
    "arabic-digit",
    "math",
    "arrow",
    "chess",
    "cyrillic",
    "hebrew",
    "devanagari",
    "digit",
)
_COARSE = {
    "upper": "capital latin letter",
    "greek": "greek letter",
    "hiragana": "hiragana letter",
    "devanagari-digit": "devanagari digit",
}
_GENERIC_FINE = 0.9


@dataclass
class Mixture:
    """Images ``[n, 28, 28]`` uint8, with one caption per image."""

    images: list[Tensor] = field(default_factory=list)
    captions: list[str] = field(default_factory=list)

    def add(self, images: Tensor, fine: list[str], coarse: str, share: float, seed: int) -> None:
        """Add images with the fine caption with probability ``share``, otherwise the coarse one."""
        chosen = torch.rand(len(images), generator=torch.Generator().manual_seed(seed)) < share
        self.images.append(images)
        self.captions += [
            name if pick else coarse for name, pick in zip(fine, chosen.tolist(), strict=True)
        ]


def build(generic: int, weak: int, weak_share: float) -> Mixture:
    """Build ``generic`` images per style group of generic scripts, and ``weak`` per task domain."""
    mixture = Mixture()
    for row, script in enumerate(_GENERIC):
        _add_generic(mixture, script, row, generic * (2 if script == "digit" else 1))
    _add_shapes(mixture, generic, weak, weak_share)
    _add_fashion(mixture, weak, weak_share)
    _add_textures(mixture, weak, weak_share)
    for row, script in enumerate(_COARSE):
        _add_weak_script(mixture, script, row, weak, weak_share)
    return mixture


def _add_generic(mixture: Mixture, script: str, row: int, count: int) -> None:
    bank = glyphs.bank(script)
    coarse = " ".join(bank.names[0].split()[:-1])
    for column, style in enumerate(glyphs.STYLES):
        number, seed = (
            count // 3 if style in {"plain", "clutter"} else count // 12,
            1000 + 10 * row + column,
        )
        images, labels = glyphs.pictures(bank, number, seed, style)
        mixture.add(images, [bank.names[label] for label in labels], coarse, _GENERIC_FINE, seed)


def _add_weak_script(mixture: Mixture, script: str, row: int, count: int, share: float) -> None:
    """Add a task's script from half of its training typefaces, never in the task's style."""
    bank = glyphs.bank(script)
    seen = tasks.split_typefaces(bank) & (torch.arange(len(bank.typeface_names)) % 2 == 0)
    images, labels = glyphs.pictures(bank.of(seen), count, 2000 + row, "clutter")
    mixture.add(images, [bank.names[label] for label in labels], _COARSE[script], share, 2000 + row)


def _add_shapes(mixture: Mixture, generic: int, weak: int, share: float) -> None:
    """Add several filled shapes with their number, and single shapes with their name."""
    random = np.random.default_rng(3000)
    labels = random.integers(0, len(procedural.SHAPES), generic + weak)
    counts = np.concatenate([random.integers(2, 6, generic), np.ones(weak, dtype=np.int64)])
    images = procedural.shapes(labels, counts, 3001, sketch=False)
    several = [f"{procedural.COUNTS[count - 1]} shape" for count in counts[:generic]]
    mixture.add(images[:generic], several, "shape", _GENERIC_FINE, 3002)
    half = generic + weak // 2
    images[half:] = procedural.shapes(labels[half:], counts[half:], 3004, sketch=True)
    names = [procedural.SHAPES[label] for label in labels[generic:]]
    mixture.add(images[generic:], names, "shape", share, 3003)


def _add_fashion(mixture: Mixture, count: int, share: float) -> None:
    images, labels, _, _ = tasks.fashion_arrays()
    rows = tasks.fashion_order()[tasks.FASHION_HELD : tasks.FASHION_HELD + count]
    names = [tasks.FASHION[label] for label in labels[rows]]
    mixture.add(images[rows], names, "clothing", share, 4000)


def _add_textures(mixture: Mixture, count: int, share: float) -> None:
    generator = torch.Generator().manual_seed(5000)
    labels = torch.randint(0, len(procedural.TEXTURES), (count,), generator=generator)
    images = glyphs.to_bytes(procedural.textures(labels, generator))
    names = [procedural.TEXTURES[label] for label in labels]
    mixture.add(images, names, "texture", share, 5001)
