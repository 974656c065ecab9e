"""Which of a few answers a model finds the likeliest."""

from __future__ import annotations

from itertools import accumulate, pairwise
from typing import TYPE_CHECKING

from fusion_core import Measured, Split
from fusion_core.errors import FusionError
from pools_lm.tasks.config import ChoiceLines
from pools_lm.tasks.questions import QuestionTask
from pools_lm.tasks.scoring import log_likelihoods

if TYPE_CHECKING:
    from torch import nn

    from fusion_core import Metrics
    from pools_lm.tasks.lines import Line
    from pools_lm.tasks.prompts import Pair


class ChoiceTask(QuestionTask[ChoiceLines]):
    """Questions with a few answers; log-likelihoods are divided by the answers' lengths."""

    def answer(self, line: Line) -> str:
        """Return the right answer's text."""
        return self._choices(line)[self._right(line)]

    def evaluate(self, model: nn.Module) -> Metrics:
        """Return {"accuracy": fraction of the test questions}."""
        lines = self.lines(Split.TEST)
        choices = [self._choices(line) for line in lines]
        asked = zip(self.questions(lines), choices, strict=True)
        pairs = self.bound.pairs([(question, each) for question, own in asked for each in own])
        size = self.config.batch_size
        found = log_likelihoods(model, pairs, batch_size=size, said=self.name)
        texts = [each for own in choices for each in own]
        scores = [
            value / self._length(text, pair)
            for value, text, pair in zip(found, texts, pairs, strict=True)
        ]
        bounds = pairwise(accumulate(map(len, choices), initial=0))
        picked = [max(range(start, end), key=scores.__getitem__) - start for start, end in bounds]
        right = [each == self._right(line) for each, line in zip(picked, lines, strict=True)]
        return Measured({"accuracy": sum(right) / len(lines)}, right)

    def _length(self, text: str, pair: Pair) -> int:
        if self.data.normalise == "none":
            return 1
        counted = text.encode() if self.data.normalise == "bytes" else pair.continuation
        return max(1, len(counted))

    def _choices(self, line: Line) -> list[str]:
        given = self.data.choices
        found = line[given] if isinstance(given, str) else [line.filled(each) for each in given]
        if not isinstance(found, list) or len(found) < 2 or not all(map(str, found)):  # noqa: PLR2004
            raise FusionError(
                f"{line.place}: {given!r} does not list two answers or more: {found!r}",
                hint='Write it as in {"question": "...", "choices": ["a", "b"], "answer": 0}.',
            )
        return [str(each) for each in found]

    def _right(self, line: Line) -> int:
        """Return the place of the right answer."""
        given, choices = line[self.data.answer], self._choices(line)
        if isinstance(given, int) and 0 <= given < len(choices):
            return given
        if given in choices:
            return choices.index(given)
        raise FusionError(
            f"{line.place}: {self.data.answer} is {given!r}, which is none of its "
            f"{len(choices)} answers",
            hint="Give its place, from 0, or its text.",
        )
