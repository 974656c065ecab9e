"""Answers of a model, and their defects."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import takewhile
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

#: Repetitions that make a short piece of text suspicious, and a long one.
_SHORT_TIMES, _LONG_TIMES = 3, 2
#: Characters of a long piece, and minimum characters of the whole repetition.
_LONG_PIECE, _MIN_REPETITION = 24, 12


@dataclass(frozen=True)
class Answer:
    """A model's answer to one prompt."""

    text: str
    #: without the end token
    tokens: Sequence[int]
    #: whether the model's scores for the answer are finite
    is_finite: bool

    @property
    def verdict(self) -> str | None:
        """The defect of the answer; None if there is none."""
        if not self.is_finite:
            return "not finite"
        if not self.text.strip():
            return "empty"
        return "repeats itself" if repeats(self.text) else None


def repeats(text: str) -> bool:
    """Tell whether a text ends with three copies of one piece, or two of a long one.

    A long piece has 24 characters. The copies together have at least 12 characters and a third of
    the text. The last copy may be incomplete.
    """
    minimum = max(_MIN_REPETITION, len(text) / 3)
    for size in range(1, len(text) // _LONG_TIMES + 1):
        times = _LONG_TIMES if size >= _LONG_PIECE else _SHORT_TIMES
        # length of the end in which each character equals the one `size` before it
        pairs = zip(reversed(text), reversed(text[:-size]), strict=False)
        length = size + sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
        if length >= max(minimum, times * size):
            return True
    return False
