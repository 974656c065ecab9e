"""Multiple-choice questions. The answer is the choice with the highest likelihood."""

from __future__ import annotations

from itertools import accumulate, pairwise
from typing import TYPE_CHECKING

import torch

from fusion_adapting import UNDEFINED, measure_accuracy, most_likely
from fusion_core import Split
from fusion_core.errors import FusionError
from pools_lm.tasks.config import ChoiceLines
from pools_lm.tasks.questions import QuestionTask
from pools_lm.tasks.scoring import log_likelihoods

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import nn

    from fusion_core import MetricValues
    from pools_lm.tasks.lines import Line
    from pools_lm.tasks.prompts import Pair


class ChoiceTask(QuestionTask[ChoiceLines]):
    """Multiple-choice questions, scored by log-likelihood divided by the length of the choice."""

    def answer(self, line: Line) -> str:
        """Return the text of the right choice."""
        return self._choices(line)[self._right_index(line)]

    def evaluate(self, model: nn.Module) -> MetricValues:
        """Return {"accuracy": fraction of the test questions}."""
        lines = self.lines(Split.TEST)
        choices_by_line = [self._choices(line) for line in lines]
        questions = zip(self.questions(lines), choices_by_line, strict=True)
        pairs = self.bound_prompts.pairs(
            [(question, choice) for question, choices in questions for choice in choices]
        )
        likelihoods = log_likelihoods(
            model, pairs, batch_size=self.config.batch_size, label=self.name
        )
        texts = [choice for choices in choices_by_line for choice in choices]
        scores = [
            likelihood / self._length(text, pair)
            for likelihood, text, pair in zip(likelihoods, texts, pairs, strict=True)
        ]
        bounds = pairwise(accumulate(map(len, choices_by_line), initial=0))
        table = torch.tensor(scores, dtype=torch.float64)
        chosen = [
            _first_equal(choices, int(most_likely(table[start:end])))
            for choices, (start, end) in zip(choices_by_line, bounds, strict=True)
        ]
        return measure_accuracy(chosen, list(map(self._right_index, lines)))

    def _length(self, text: str, pair: Pair) -> int:
        if self.data.normalise == "none":
            return 1
        units = text.encode() if self.data.normalise == "bytes" else pair.continuation
        return max(1, len(units))

    def _choices(self, line: Line) -> list[str]:
        option = self.data.choices
        choices = (
            line[option] if isinstance(option, str) else [line.fill(choice) for choice in option]
        )
        is_list = isinstance(choices, list) and len(choices) >= 2  # noqa: PLR2004
        if not is_list or None in choices or not all(map(str, choices)):
            raise FusionError(
                f"{line.location}: expected a list of at least two choices in {option!r}, got "
                f"{choices!r}",
                hint='Write it as in {"question": "...", "choices": ["a", "b"], "answer": 0}.',
            )
        return [str(choice) for choice in choices]

    def _right_index(self, line: Line) -> int:
        """Return the index of the right choice, the first of equal texts."""
        choices, field = self._choices(line), self.data.answer
        index = line.index_in(choices, field, of="index", noun="text", thing="choice")
        if index is not None:
            return _first_equal(choices, index)
        raise FusionError(
            f"{line.location}: {field} {line[field]!r} matches none of the {len(choices)} choices",
            hint="Give the index of the right choice, from 0, or its text.",
        )


def _first_equal(choices: Sequence[str], index: int) -> int:
    """Return the index of the first choice with the same text; `UNDEFINED` stays as it is."""
    return index if index == UNDEFINED else choices.index(choices[index])
