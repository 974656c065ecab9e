"""Ranges of numbers, as `--over` takes them: LOW:HIGH:STEP.

The numbers of a range are counted by arithmetic, and made only after the count was checked.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING

from fusion_core.errors import RecipeError

if TYPE_CHECKING:
    from random import Random

_NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"
_RANGE = re.compile(rf"({_NUMBER}):({_NUMBER})(?::({_NUMBER}|log))?")
#: Significant digits of drawn and stepped numbers: 0.1 + 0.2 is 0.3.
_DIGITS = 9
#: A last step that misses the upper end by rounding alone still counts.
_SLACK = Fraction(1, 10**9)
_EXPECTED = "expected finite numbers, as LOW:HIGH, LOW:HIGH:STEP or LOW:HIGH:log"
_HINT = "Write a range with a step, or one to draw from: 0:1:0.1  0:1  1e-4:1e-1:log"


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`, both included: in steps, or any."""

    name: str
    low: float
    high: float
    step: float | None = None
    is_log: bool = False

    @property
    def first(self) -> float:
        """The lowest number."""
        return self.low

    @property
    def ends(self) -> tuple[float, float]:
        """The lowest number and the highest that a search can draw."""
        return self.low, self.high if self.step is None else self._at(self.count - 1)

    @property
    def spec(self) -> str:
        """The range as `--over` takes it."""
        step = "log" if self.is_log else self.step
        return f"{self.low}:{self.high}" + ("" if step is None else f":{step}")

    @property
    def count(self) -> int:
        """The number of values in a grid; raises `RecipeError` without a step."""
        if self.step is None:
            raise RecipeError(
                f"--over {self.name}={self.low}:{self.high}: a grid needs a step",
                hint=f"Give a step, {self.low}:{self.high}:STEP, or draw points: --random 20",
            )
        span = Fraction(self.high) - Fraction(self.low)
        return math.floor(span / Fraction(self.step) + _SLACK) + 1

    def grid(self) -> tuple[float, ...]:
        """Return every number; raises `RecipeError` without a step."""
        return tuple(self._at(number) for number in range(self.count))

    def draw(self, random: Random) -> float:
        """Return a random number."""
        if self.step is not None:
            return self._at(random.randrange(self.count))
        if self.is_log:
            return self.tidy(math.exp(random.uniform(math.log(self.low), math.log(self.high))))
        return self.tidy(random.uniform(self.low, self.high))

    def tidy(self, number: float) -> float:
        """Return a number as people write it: 0.1 + 0.2 is 0.3, whole steps give integers."""
        return round(number) if self._is_whole else float(f"{number:.{_DIGITS}g}")

    def check_step(self) -> None:
        """Raise `RecipeError` for a step so small that neighbours are equal after rounding."""
        if self.step is None or self._is_whole:
            return
        largest = max(abs(self.low), abs(self.high))
        smallest = 10.0 ** (math.floor(math.log10(largest)) - _DIGITS + 1)
        if self.step < smallest * (1 - 1e-9):
            raise RecipeError(
                f"--over {self.name}={self.spec}: the step {self.step} is too small for numbers as "
                f"large as {largest:g}, which keep {_DIGITS} digits",
                hint=f"Give a step of at least {smallest:g}, or whole numbers throughout.",
            )

    @property
    def _is_whole(self) -> bool:
        return isinstance(self.low, int) and isinstance(self.step, int)

    def _at(self, number: int) -> float:
        assert self.step is not None  # noqa: S101 - a counted range has a step
        return self.tidy(self.low + number * self.step)


def parse_range(name: str, text: str) -> Range | None:
    """Parse a range; return None for other text.

    Raises `RecipeError` for an empty range, or one with numbers that are not finite.
    """
    ends = text.strip().split(":")[:2]
    if len(ends) < 2 or not all(map(_is_number, ends)) or "," in text:  # noqa: PLR2004 - two ends
        return None
    match = _RANGE.fullmatch(text.strip())
    if match is None:
        raise RecipeError(f"--over {name}={text}: {_EXPECTED}", hint=_HINT)
    low, high = _number(match[1]), _number(match[2])
    is_log = match[3] == "log"
    step = None if is_log or match[3] is None else _number(match[3])
    if problem := _find_problem(low, high, step, is_log=is_log):
        raise RecipeError(f"--over {name}={text}: {problem}", hint=_HINT)
    return Range(name, low, high, step, is_log)


def _find_problem(low: float, high: float, step: float | None, *, is_log: bool) -> str | None:
    """Return why the numbers do not form a range, or None."""
    if not all(map(_is_finite, (low, high, *([] if step is None else [step])))):
        return "expected finite numbers"
    if not _is_finite(Fraction(high) - Fraction(low)):
        return "its ends are too far apart"
    reasons = {
        "the lower end must come first": low >= high,
        "the step is 0": step == 0,
        "the step must be positive": step is not None and step < 0,
        "a logarithmic range must begin above 0": is_log and low <= 0,
    }
    reason = next((reason for reason, holds in reasons.items() if holds), None)
    return reason and f"the range is empty: {reason}"


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _is_finite(number: float | Fraction) -> bool:
    try:
        return math.isfinite(float(number))
    except OverflowError:
        return False


def _number(text: str) -> float:
    is_whole = re.fullmatch(r"[+-]?\d+", text) and math.isfinite(float(text))
    return int(text) if is_whole else float(text)
