"""What a model answers in its own words, held against what is right."""

from __future__ import annotations

import math
import operator
import re
from typing import TYPE_CHECKING, Any

from fusion_core import Measured, Metric, Split
from fusion_core.errors import FusionError
from pools_lm.tasks.config import GenerateLines
from pools_lm.tasks.prompts import Pair
from pools_lm.tasks.questions import QuestionTask
from pools_lm.tasks.ranks import rank_correlation
from pools_lm.tasks.writing import Writer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import nn

    from fusion_core import Metrics
    from pools_lm.tasks.lines import Line


class GenerateTask(QuestionTask[GenerateLines]):
    """Questions that are answered greedily, word by word.

    An answer is invalid if nothing is said, if the pattern is not found in it or, for numbers, if
    it is none. Invalid answers are wrong, and counted.
    """

    @property
    def metrics(self) -> Sequence[Metric]:  # type: ignore[override] # depends on the options
        """The main metric, and the fraction of invalid answers."""
        return Metric(self.data.metric), Metric("invalid", higher_is_better=False, is_noted=True)

    def answer(self, line: Line) -> str:
        """Return the right answer, the first where several are."""
        return self._answers(line)[0]

    def evaluate(self, model: nn.Module) -> Metrics:
        """Return the metric of the test questions, and the fraction of invalid answers."""
        lines = self.lines(Split.TEST)
        found = [self._read(each) for each in self._said(model, self.questions(lines))]
        right = [self._answers(line) for line in lines]
        invalid = sum(each is None for each in found) / len(lines)
        if self.data.metric == "spearman":
            return {"spearman": _correlation(found, right), "invalid": invalid}
        exact = list(map(operator.contains, right, found))
        return Measured({self.data.metric: sum(exact) / len(exact), "invalid": invalid}, exact)

    def _said(self, model: nn.Module, questions: Sequence[str]) -> list[str]:
        pairs = map(Pair, self.bound.contexts(questions))
        contexts = [pair.within(self._room).context for pair in pairs]
        limits: Any = {"max_tokens": self.data.max_tokens, "stop": self.data.stop}
        writer = Writer(self.bound, model, **limits, batch_size=self.config.batch_size)
        return writer.write(contexts, said=self.name)

    @property
    def _room(self) -> int:
        """Tokens that a question may have, so that its answer has room, too."""
        bound = self.bound
        return bound.length if bound.is_seq2seq else max(1, bound.length - self.data.max_tokens)

    def _read(self, said: str) -> str | None:
        """Return the answer in what was said; None for an invalid one."""
        found = said
        if self.data.pattern is not None:
            match = re.search(self.data.pattern, said)
            found = "" if match is None else str(match[match.re.groups and 1] or "")
        answer = found.strip()
        if self.data.metric == "spearman" and _number(answer) is None:
            return None
        return answer or None

    def _answers(self, line: Line) -> list[str]:
        field = self.data.answer
        given: Any = line.filled(field) if "{" in field else line[field]
        found = given if isinstance(given, list) else [given]
        if self.data.names is not None:
            names = dict(enumerate(self.data.names))
            found = [names.get(each, "") for each in found]
        if not found or not all(str(each).strip() for each in found):
            raise FusionError(
                f"{line.place}: {self.data.answer} is {given!r}, which is not an answer",
                hint="Give a text, or a list of texts that are all right.",
            )
        return [str(each).strip() for each in found]


def _correlation(found: Sequence[str | None], right: Sequence[Sequence[str]]) -> float:
    """Return the rank correlation; an invalid answer is taken for the mean of the right ones."""
    wanted = [_number(each[0]) or 0.0 for each in right]
    mean = sum(wanted) / len(wanted)
    given = [mean if each is None else _number(each) or 0.0 for each in found]
    return rank_correlation(given, wanted)


def _number(text: str) -> float | None:
    """Return the number that a text is; None for any other text."""
    try:
        found = float(text)
    except ValueError:
        return None
    return found if math.isfinite(found) else None
