"""Questions that a model answers by generation, compared with the right answers."""

from __future__ import annotations

import operator
import re
from typing import TYPE_CHECKING, Any

from fusion_core import Measured, Metric, Split
from fusion_core.errors import FusionError
from pools_lm.tasks.config import GenerateLines
from pools_lm.tasks.generation import TextGenerator
from pools_lm.tasks.prompts import Pair
from pools_lm.tasks.questions import QuestionTask
from pools_lm.tasks.ranks import parse_number, rank_correlation

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import nn

    from fusion_core import MetricValues
    from pools_lm.tasks.lines import Line
    from pools_lm.tasks.prompts import Prompts


class GenerateTask(QuestionTask[GenerateLines]):
    """Questions that are answered by greedy generation.

    An answer is invalid if it is empty, if the pattern does not match or, for numbers, if it is not
    a number. Invalid answers are wrong, and counted.
    """

    @property
    def metrics(self) -> Sequence[Metric]:  # type: ignore[override] # depends on the options
        """The main metric, and the fraction of invalid answers."""
        return Metric(self.data.metric), Metric("invalid", higher_is_better=False, is_noted=True)

    def answer(self, line: Line) -> str:
        """Return the right answer, the first if there are several."""
        return self._right_answers(line)[0]

    def evaluate(self, model: nn.Module) -> MetricValues:
        """Return the metric of the test questions, and the fraction of invalid answers."""
        lines = self.lines(Split.TEST)
        texts = self._generate(model, self.questions(lines))
        answers = [self._extract(text) for text in texts]
        right = [self._right_answers(line) for line in lines]
        invalid = sum(answer is None for answer in answers) / len(lines)
        if self.data.metric == "spearman":
            return {"spearman": _correlation(answers, right), "invalid": invalid}
        exact = list(map(operator.contains, right, answers))
        return Measured({self.data.metric: sum(exact) / len(exact), "invalid": invalid}, exact)

    def check(self) -> None:
        """Check the first example, and that the models' positions hold a question and an answer.

        Raises `RecipeError` for a stop text that is a special token and more.
        """
        super().check()
        if self.prompts is not None:
            self._room(self._ending(self.prompts))

    def _ending(self, prompts: Prompts) -> Prompts:
        return prompts.ending_at(self.data.stop, f"task_pool.datasets.{self.name}.stop")

    def _room(self, prompts: Prompts) -> int:
        option = f"task_pool.datasets.{self.name}.max_tokens"
        return prompts.room_for_question(self.data.max_tokens, option)

    def _generate(self, model: nn.Module, questions: Sequence[str]) -> list[str]:
        prompts, max_tokens = self._ending(self.bound_prompts), self.data.max_tokens
        room = self._room(prompts)
        contexts = [Pair(ids).within(room).context for ids in prompts.contexts(questions)]
        generator = TextGenerator(
            prompts, model, max_tokens, self.data.stop, batch_size=self.config.batch_size
        )
        return generator.generate(contexts, label=self.name)

    def _extract(self, text: str) -> str | None:
        """Return the answer in a generated text; None for an invalid one."""
        answer = text
        if self.data.pattern is not None:
            match = re.search(self.data.pattern, text)
            answer = "" if match is None else str(match[match.re.groups and 1] or "")
        answer = answer.strip()
        if self.data.metric == "spearman" and parse_number(answer) is None:
            return None
        return answer or None

    def _right_answers(self, line: Line) -> list[str]:
        field = self.data.answer
        value: Any = line.fill(field) if "{" in field else line[field]
        answers = value if isinstance(value, list) else [value]
        is_boolean = any(isinstance(answer, bool) for answer in answers)
        hint = "Give a text, or a list of right texts. A boolean is not a text."
        if self.data.names is not None:
            options = [*enumerate(self.data.names), *((name, name) for name in self.data.names)]
            answers = [next((name for key, name in options if key == one), "") for one in answers]
            hint = f"Give one of {', '.join(self.data.names)}, or its number, from 0."
        texts = ["" if answer is None else str(answer).strip() for answer in answers]
        if is_boolean or not line.has(field) or not texts or not all(texts):
            raise FusionError(f"{line.location}: invalid {field} {value!r}", hint=hint)
        if self.data.metric == "spearman" and parse_number(texts[0]) is None:
            raise FusionError(
                f"{line.location}: expected a number as {self.data.answer}, got {texts[0]!r}",
                hint='Write it with a point, such as "3.5", or choose another metric.',
            )
        return texts


def _correlation(answers: Sequence[str | None], right: Sequence[Sequence[str]]) -> float:
    """Return the rank correlation. An invalid answer counts as the mean of the right ones."""
    targets = [float(texts[0]) for texts in right]
    mean = sum(targets) / len(targets)
    values = [mean if answer is None else float(answer) for answer in answers]
    return rank_correlation(values, targets)
