"""What a model has said, and what is wrong with it."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import takewhile
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

#: How often a piece of text in a row is too often, and how often a long one is.
_TIMES, _TIMES_OF_LONG = 3, 2
#: Characters of a long piece, and of all that is repeated, at least.
_LONG, _CHARACTERS = 24, 12


@dataclass(frozen=True)
class Answer:
    """A model's answer to one prompt."""

    text: str
    #: without the one that ends an answer
    tokens: Sequence[int]
    #: whether what the model computed for it are numbers
    is_finite: bool

    @property
    def verdict(self) -> str | None:
        """What is wrong with it; None for nothing that shows."""
        if not self.is_finite:
            return "not finite"
        if not self.text.strip():
            return "empty"
        return "repeats itself" if repeats(self.text) else None


def repeats(text: str) -> bool:
    """Tell whether a text ends with one piece over and over: three times, or twice if it is long.

    Long are 24 characters. All of them are at least 12, and a third of the text; at the very end a
    piece may be cut.
    """
    least = max(_CHARACTERS, len(text) / 3)
    sizes = range(1, len(text) // _TIMES_OF_LONG + 1)
    return any(_repeated(text, size) >= max(least, _often(size) * size) for size in sizes)


def _often(size: int) -> int:
    return _TIMES_OF_LONG if size >= _LONG else _TIMES


def _repeated(text: str, size: int) -> int:
    """Return the length of the end whose characters are those `size` places before them."""
    pairs = zip(reversed(text), reversed(text[:-size]), strict=False)
    return size + sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
