"""The eight tasks: images, labels and class names.

A class name is the English name followed by *nonce words*: invented words, different for each
class, that no pre-training caption contains. ``nonce.py`` sets their embeddings, so that zero-shot
heads (template, text tower, normalization) partly point in directions that pre-training did not
align with the images.
"""

from __future__ import annotations

import gzip
from dataclasses import dataclass
from pathlib import Path

import glyphs
import numpy as np
import procedural
import torch
from sklearn.datasets import load_digits
from torch import Tensor
from torch.nn import functional

TRAIN, VALIDATION, TEST = 2000, 300, 800
TEMPLATES = ["a photo of a {}", "an image of a {}", "a picture of a {}", "{}"]
WORDS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
FASHION = [
    "t shirt",
    "trouser",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "ankle boot",
]
FASHION_FOLDER = Path("/usr/share/datasets/fashion-mnist")
FASHION_HELD = (
    10_000  # the first shuffled training images are the task's, the rest are for pre-training
)
_OPTDIGITS_TRAIN, _OPTDIGITS_VALIDATION = 897, 300


@dataclass(frozen=True)
class Split:
    """Images ``[n, 28, 28]`` uint8 and labels ``[n]`` int64."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.images)

    def head(self, count: int) -> Split:
        """Return the first images."""
        return Split(self.images[:count], self.labels[:count])


@dataclass(frozen=True)
class Task:
    """A task's three splits; ``names`` are English, ``classnames`` include the nonce words."""

    name: str
    title: str
    source: str
    licence: str
    names: list[str]
    classnames: list[str]
    train: Split
    validation: Split
    test: Split


@dataclass(frozen=True)
class GlyphTask:
    """The settings of one script's task."""

    name: str
    title: str
    script: str
    characters: str
    style: str
    jitter: glyphs.Jitter


GLYPH_TASKS = (
    GlyphTask(
        "latin",
        "Latin capitals on road signs",
        "upper",
        "ABEHKMQRSTWX",
        "sign",
        glyphs.Jitter(scale=(0.65, 0.85), shift=0.06),
    ),
    GlyphTask(
        "greek",
        "Greek letters on ruled paper",
        "greek",
        "αβγδθλμξπσφω",
        "paper",
        glyphs.Jitter(turn=15),
    ),
    GlyphTask(
        "hiragana",
        "Hiragana on a screen",
        "hiragana",
        "あうおきくけさすそちとて",
        "screen",
        glyphs.Jitter(turn=8, scale=(0.9, 1.15)),
    ),
    GlyphTask(
        "devanagari",
        "Devanagari digits as house numbers",
        "devanagari-digit",
        glyphs.SCRIPTS["devanagari-digit"],
        "house",
        glyphs.Jitter(scale=(0.75, 1.0), shift=0.08),
    ),
)
NAMES = (
    "fashion-mnist",
    "optdigits",
    "latin",
    "greek",
    "hiragana",
    "devanagari",
    "textures",
    "shapes",
)


def build(nonce_words: int, seed: int = 0) -> tuple[list[Task], list[str]]:
    """Return the eight tasks in their fixed order, and all nonce words."""
    words = NonceWords(seed)
    makers = [
        _fashion,
        _optdigits,
        *(_glyph_maker(spec, row) for row, spec in enumerate(GLYPH_TASKS)),
        _textures,
        _shapes,
    ]
    tasks = [maker(words, nonce_words) for maker in makers]
    return tasks, words.used


class NonceWords:
    """A reproducible stream of distinct invented two-syllable words."""

    def __init__(self, seed: int) -> None:
        """Start the stream."""
        self._random = np.random.default_rng(seed)
        self.used: list[str] = []

    def extend(self, names: list[str], count: int) -> list[str]:
        """Return each name followed by ``count`` new words."""
        return [" ".join([name, *(self._next() for _ in range(count))]) for name in names]

    def _next(self) -> str:
        while True:
            pick = self._random.integers
            syllables = [
                "vzkgjdbm"[pick(8)] + "aeiou"[pick(5)] + "lrnzkv"[pick(6)] for _ in range(2)
            ]
            word = "".join(syllables)
            if word not in self.used:
                self.used.append(word)
                return word


# --- the tasks one by one -----------------------------------------------------------------------


def fashion_arrays() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return Fashion-MNIST's training images and labels, and test images and labels."""
    names = ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1")
    images, labels, test_images, test_labels = (
        _idx(FASHION_FOLDER / f"{name}-ubyte.gz") for name in names
    )
    return images, labels.long(), test_images, test_labels.long()


def _idx(path: Path) -> Tensor:
    """Read an IDX file: a big-endian header of sizes, then bytes."""
    data = gzip.decompress(path.read_bytes())
    axes = data[3]
    shape = [int.from_bytes(data[4 + 4 * axis : 8 + 4 * axis], "big") for axis in range(axes)]
    return torch.from_numpy(
        np.frombuffer(data, np.uint8, offset=4 + 4 * axes).reshape(shape).copy()
    )


def fashion_order() -> Tensor:
    """Return the shuffled order of the 60,000 training images; the task's come first."""
    return torch.from_numpy(np.random.default_rng(0).permutation(60_000))


def _fashion(words: NonceWords, count: int) -> Task:
    images, labels, test_images, test_labels = fashion_arrays()
    rows = fashion_order()[: TRAIN + VALIDATION]
    tested = torch.from_numpy(np.random.default_rng(1).permutation(10_000)[:TEST])
    train, validation = _cut(Split(images[rows], labels[rows]), TRAIN)
    return Task(
        "fashion-mnist",
        "Fashion-MNIST",
        "Zalando Research, Fashion-MNIST",
        "MIT",
        FASHION,
        words.extend(FASHION, count),
        train,
        validation,
        Split(test_images[tested], test_labels[tested]),
    )


def _optdigits(words: NonceWords, count: int) -> Task:
    digits = load_digits()
    small = torch.tensor(digits.images).float()[:, None] / 16
    large = functional.interpolate(small, size=(20, 20), mode="bicubic", align_corners=False)
    images = glyphs.to_bytes(functional.pad(large.clamp(0, 1), (4, 4, 4, 4)))
    order = torch.from_numpy(np.random.default_rng(2).permutation(len(images)))
    whole = Split(images[order], torch.tensor(digits.target).long()[order])
    train, rest = _cut(whole, _OPTDIGITS_TRAIN)
    validation, test = _cut(rest, _OPTDIGITS_VALIDATION)
    names = [f"digit {word}" for word in WORDS]
    source = "UCI Optical Recognition of Handwritten Digits, through scikit-learn"
    return Task(
        "optdigits",
        "Handwritten digits (UCI)",
        source,
        "CC-BY-4.0",
        names,
        words.extend(names, count),
        train,
        validation,
        test,
    )


def split_typefaces(bank: glyphs.Bank) -> Tensor:
    """Return True for training typefaces, False for test typefaces (every third)."""
    return torch.arange(len(bank.typeface_names)) % 3 != 2


def _glyph_maker(spec: GlyphTask, row: int):  # noqa: ANN202 - a closure over one script
    def make(words: NonceWords, count: int) -> Task:
        whole = glyphs.bank(spec.script)
        bank = whole.only([glyphs.SCRIPTS[spec.script].index(letter) for letter in spec.characters])
        training = split_typefaces(bank)
        drawn = Split(
            *glyphs.pictures(
                bank.of(training), TRAIN + VALIDATION, 100 + row, spec.style, spec.jitter
            )
        )
        test = Split(*glyphs.pictures(bank.of(~training), TEST, 200 + row, spec.style, spec.jitter))
        source = "glyphs of " + ", ".join(sorted(bank.packages))
        return Task(
            spec.name,
            spec.title,
            source,
            "OFL-1.1 AND Apache-2.0 AND Bitstream-Vera",
            bank.names,
            words.extend(bank.names, count),
            *_cut(drawn, TRAIN),
            test,
        )

    return make


def _textures(words: NonceWords, count: int) -> Task:
    names = procedural.TEXTURES[:10]
    generator = torch.Generator().manual_seed(300)

    def draw(number: int) -> Split:
        labels = torch.randint(0, len(names), (number,), generator=generator)
        return Split(glyphs.to_bytes(procedural.textures(labels, generator)), labels)

    return Task(
        "textures",
        "Procedural textures",
        "drawn by formula",
        "Apache-2.0",
        names,
        words.extend(names, count),
        *_cut(draw(TRAIN + VALIDATION), TRAIN),
        draw(TEST),
    )


def _shapes(words: NonceWords, count: int) -> Task:
    names = procedural.SHAPES

    def draw(number: int, seed: int) -> Split:
        labels = np.random.default_rng(seed).integers(0, len(names), number)
        images = procedural.shapes(labels, np.ones_like(labels), seed + 1, sketch=True)
        return Split(images, torch.from_numpy(labels))

    return Task(
        "shapes",
        "Outlines of shapes",
        "drawn by formula",
        "Apache-2.0",
        names,
        words.extend(names, count),
        *_cut(draw(TRAIN + VALIDATION, 400), TRAIN),
        draw(TEST, 500),
    )


def _cut(split: Split, at: int) -> tuple[Split, Split]:
    return split.head(at), Split(split.images[at:], split.labels[at:])
