"""The likelihood of texts in bits per byte, which compares models with different vocabularies."""

from __future__ import annotations

import math
from itertools import accumulate, chain, pairwise
from typing import TYPE_CHECKING

from fusion_core import Measured, Metric, Split
from fusion_core.errors import FusionError
from pools_lm.tasks.config import TextLines
from pools_lm.tasks.scoring import log_likelihoods
from pools_lm.tasks.task import LanguageTask

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import nn

    from fusion_core import MetricValues
    from pools_lm.tasks.lines import Line
    from pools_lm.tasks.prompts import Pair


class PerplexityTask(LanguageTask[TextLines]):
    """Texts, split into windows. Each window starts after the last token of the previous one."""

    metrics = (Metric("bits_per_byte", unit="bits per byte", higher_is_better=False),)

    def check_line(self, line: Line) -> None:
        """Raise a `FusionError` for a line without a text."""
        self._text(line)

    def check(self) -> None:
        """Check the first text, and that the tokenizer has a start token."""
        super().check()
        _ = self.prompts and self.prompts.start_token

    def pairs(self, lines: Sequence[Line], split: Split) -> list[Pair]:
        """Return the windows of all texts."""
        del split  # a text is not a label of its own
        return list(chain.from_iterable(self.bound_prompts.windows(list(map(self._text, lines)))))

    def evaluate(self, model: nn.Module) -> MetricValues:
        """Return {"bits_per_byte": ...} over all test texts, in bytes of UTF-8."""
        lines = self.lines(Split.TEST)
        windows_by_line = self.bound_prompts.windows(list(map(self._text, lines)))
        pairs = list(chain.from_iterable(windows_by_line))
        if not pairs:
            raise FusionError(f"the texts of {self.data.test} are empty", hint="Add some text.")
        likelihoods = log_likelihoods(
            model, pairs, batch_size=self.config.batch_size, label=self.name
        )
        bounds = pairwise(accumulate(map(len, windows_by_line), initial=0))
        bits = [-sum(likelihoods[start:end]) / math.log(2) for start, end in bounds]
        sizes = [len(self._text(line).encode()) for line in lines]
        by_text = [text_bits / max(1, size) for text_bits, size in zip(bits, sizes, strict=True)]
        total = -sum(likelihoods) / math.log(2) / sum(sizes)
        return Measured({"bits_per_byte": total}, by_text, sizes)

    def _text(self, line: Line) -> str:
        return line.fill(self.data.text)
