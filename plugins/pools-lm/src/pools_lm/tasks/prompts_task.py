"""Prompts of your own without right answers, on which a model should agree with a teacher."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from fusion_core import Metric, Split
from fusion_core.errors import RecipeError
from pools_lm.tasks.agreement import digest_predictions, measure_agreement
from pools_lm.tasks.config import PromptLines
from pools_lm.tasks.examples import unbound_error
from pools_lm.tasks.prompts import Pair, Turn
from pools_lm.tasks.scoring import greedy_tokens
from pools_lm.tasks.task import LanguageTask

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import nn

    from fusion_core import MetricValues
    from pools_lm.tasks.lines import Line


@dataclass
class PromptsTask(LanguageTask[PromptLines]):
    """Prompts that the task's expert answers greedily, or the base for a task without an expert.

    The metric is the share of the answers' tokens that a model finds most likely too. On general
    prompts, it shows how much a merge has kept of the base.
    """

    metrics = (Metric("agreement"),)
    asks_base = True

    @property
    def system(self) -> str | None:
        """The system message of the task's conversations."""
        return self.data.system

    def check(self) -> None:
        """Check the first prompt, and that the chat template renders its conversation."""
        super().check()
        self.check_template([Turn("Hello")])

    def check_line(self, line: Line) -> None:
        """Raise a `FusionError` for a line without a prompt."""
        line.fill(self.data.prompt)

    def pairs(self, lines: Sequence[Line], split: Split) -> list[Pair]:
        """Return the tokens of every prompt; nobody has answered it yet."""
        del split
        prompts = self.bound_prompts
        turns = [[Turn(line.fill(self.data.prompt))] for line in lines]
        contexts = prompts.contexts(prompts.questions(turns, self.system))
        return [Pair(context).within(prompts.length) for context in contexts]

    def evaluate(self, model: nn.Module) -> MetricValues:
        """Return {"agreement": fraction of the teacher's tokens}."""
        pairs, expected = self._expected
        size = self.config.batch_size
        rows = greedy_tokens(model, pairs, batch_size=size, label=self.name)
        return measure_agreement(rows, expected)

    def identity(self) -> Mapping[str, Any]:
        """Identify the prompts and the teacher's predictions, on which the metric depends."""
        return {**super().identity(), "predictions": digest_predictions(*self._expected)}

    @cached_property
    def _expected(self) -> tuple[list[Pair], list[list[int]]]:
        """The test prompts with the teacher's answers, and the tokens that it finds most likely."""
        if self.sampler is None:
            raise unbound_error(self.name)
        pairs = self.sampler.answer(self.name, self.load_examples(Split.TEST), or_base=True)
        if not all(pair.continuation for pair in pairs):
            raise RecipeError(
                f"task {self.name!r}: no model answers its prompts, so none can agree",
                hint="The kind `agreement` needs a base or an expert, and task_pool.answer_tokens "
                "above 0.",
            )
        return pairs, self.sampler.predict(self.name, pairs)
