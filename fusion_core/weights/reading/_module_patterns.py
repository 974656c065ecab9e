r"""PEFT's patterns for the names of modules, matched without backtracking.

They are regular expressions that come with an adapter, and PEFT tries each as
`re.match(rf"(.*\.)?({pattern})$", name)`. Here a pattern is a list of ends of names, each a row of
characters: literals, `.`, `\d` and sets such as `[0-9]`, repeated by `*`, `+`, `?` or not. Groups
of alternatives are written out. Anything else is refused.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import islice, product
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

_LONGEST, _MOST_ENDS = 1000, 1000
#: How much is looked at for all patterns and names: many times what large adapters take.
_MOST_STEPS = 3_000_000
_GROUP = re.compile(r"\((?:\?:)?([^()]*)\)(\??)")
_TOKEN = re.compile(
    r"(\\[-._/]|\\d|\[(?:\w-\w|\w)+\]|[^\\\[\](){}|*+?^$])([*+?]?)(?![*+?{])", re.ASCII
)
_RANGE = re.compile(r"(\w)-(\w)|(\w)", re.ASCII)


class ModulePatterns:
    """Patterns in their order; raises `ValueError` naming one that is not understood."""

    def __init__(self, patterns: Iterable[str]) -> None:
        self._steps = 0
        self._patterns = [[*self._read(pattern)] for pattern in patterns]

    def first(self, name: str) -> int | None:
        """Return the number of the first pattern that matches a module's name."""
        found = (n for n, ends in enumerate(self._patterns) if any(self._match(name, ends)))
        return next(found, None)

    def _read(self, pattern: str) -> Iterator[_End]:
        for end in _ends(pattern):
            self._count(10 * len(end.tokens))
            yield end

    def _match(self, name: str, ends: Iterable[_End]) -> Iterator[bool]:
        for end in ends:
            self._count(end.steps(name))
            yield end.matches(name)

    def _count(self, steps: int) -> None:
        self._steps += steps
        if self._steps > _MOST_STEPS:
            raise ValueError("its patterns are too involved")


@dataclass(frozen=True, slots=True)
class _Token:
    """A character of one kind, as often as it is repeated."""

    takes: Callable[[str], bool]
    is_optional: bool
    is_repeated: bool


@dataclass(frozen=True, slots=True)
class _End:
    """What a name ends with, behind a dot or all of it; `is_whole`: nothing else."""

    tokens: tuple[_Token, ...]
    is_whole: bool
    is_fixed: bool

    def steps(self, name: str) -> int:
        """Return how much work a name is: a fixed end is compared ten times as fast."""
        return 1 + len(self.tokens) // 10 if self.is_fixed else len(name) * len(self.tokens)

    def matches(self, name: str) -> bool:
        """Tell whether a name ends so."""
        if not self.is_fixed:
            return self._reaches_end(name)
        start = len(name) - len(self.tokens)
        fits = start == 0 or (start > 0 and not self.is_whole and name[start - 1] == ".")
        pairs = zip(reversed(self.tokens), reversed(name), strict=False)
        return fits and all(token.takes(char) for token, char in pairs)

    def _reaches_end(self, name: str) -> bool:
        """Follow all ways through the tokens at once, a character at a time."""
        places = self._onwards({0})
        for char in name:
            taking = [place for place in places if self._takes(place, char)]
            moved = {place + 1 for place in taking}
            moved |= {place for place in taking if self.tokens[place].is_repeated}
            places = self._onwards(moved | ({0} if char == "." and not self.is_whole else set()))
        return len(self.tokens) in places

    def _takes(self, place: int, char: str) -> bool:
        return place < len(self.tokens) and self.tokens[place].takes(char)

    def _onwards(self, places: set[int]) -> set[int]:
        """Add the places behind tokens that may be left out."""
        for place, token in enumerate(self.tokens):
            if place in places and token.is_optional:
                places.add(place + 1)
        return places


def _ends(pattern: str) -> Iterator[_End]:
    for first, *rest in _branches(pattern):
        pieces = [first.removeprefix("^"), *rest]
        pieces[-1] = pieces[-1].removesuffix("$")
        tokens = tuple(token for piece in pieces for token in _tokens(piece, pattern))
        is_fixed = not any(token.is_optional or token.is_repeated for token in tokens)
        yield _End(tokens, first.startswith("^"), is_fixed)


def _branches(pattern: str) -> Iterator[tuple[str, ...]]:
    """Write alternatives out, in pieces: `(q|k)_proj` is `q` `_proj` and `k` `_proj`."""
    found: list[tuple[str, ...]] = []
    for branch in _split(pattern) if len(pattern) <= _LONGEST else ():
        text, *groups = _GROUP.split(branch)
        choices = [[text]]
        for inner, optional, after in zip(*(groups[n::3] for n in range(3)), strict=True):
            choices += [[*inner.split("|"), *([""] if optional else [])], [after]]
        found += islice(product(*choices), _MOST_ENDS + 1)
    if not 0 < len(found) <= _MOST_ENDS:
        raise _not_understood(pattern)
    yield from found


def _split(pattern: str) -> list[str]:
    """Split at every `|` outside of groups."""
    parts, depth = [""], 0
    for char in pattern:
        depth += (char == "(") - (char == ")")
        if char == "|" and not depth:
            parts.append("")
        else:
            parts[-1] += char
    return parts


def _tokens(text: str, pattern: str) -> Iterator[_Token]:
    at = 0
    while at < len(text):
        found = _TOKEN.match(text, at)
        if found is None:
            raise _not_understood(pattern)
        yield _Token(_kind(found[1], pattern), found[2] in {"*", "?"}, found[2] in {"*", "+"})
        at = found.end()


def _kind(text: str, pattern: str) -> Callable[[str], bool]:
    """Return what tells whether a character is one that a token stands for."""
    if text == ".":
        return bool
    if not text.startswith("["):
        return str.isdecimal if text == r"\d" else text[-1].__eq__
    chars: set[str] = set()
    for low, high, single in _RANGE.findall(text[1:-1]):
        if low > high:
            raise _not_understood(pattern)
        chars |= {single} if single else {chr(n) for n in range(ord(low), ord(high) + 1)}
    return chars.__contains__


def _not_understood(pattern: str) -> ValueError:
    return ValueError(f"the pattern {pattern[:80]!r} is not one that is understood")
