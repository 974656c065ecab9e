"""How likely a model finds texts, in bits per byte: models of other vocabularies compare."""

from __future__ import annotations

import math
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING

from fusion_core import Measured, Metric, Split
from pools_lm.tasks.config import TextLines
from pools_lm.tasks.scoring import log_likelihoods
from pools_lm.tasks.task import LanguageTask

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import nn

    from fusion_core import Metrics
    from pools_lm.tasks.lines import Line
    from pools_lm.tasks.prompts import Pair


class PerplexityTask(LanguageTask[TextLines]):
    """Texts; a longer one is read in windows, each after the last token of the one before."""

    metrics = (Metric("bits_per_byte", unit="bits per byte", higher_is_better=False),)

    def look(self, line: Line) -> None:
        """Raise a `FusionError` for a line without a text."""
        self._text(line)

    def check(self) -> None:
        """Look at the first text, and at the token that stands before one."""
        super().check()
        _ = self.prompts and self.prompts.first

    def pairs(self, lines: Sequence[Line], split: Split) -> list[Pair]:
        """Return every text's windows."""
        del split  # a text is not a label of its own
        return [window for line in lines for window in self.bound.windows(self._text(line))]

    def evaluate(self, model: nn.Module) -> Metrics:
        """Return {"bits_per_byte": ...}: over all test texts, their bytes as UTF-8 has them."""
        lines = self.lines(Split.TEST)
        size = self.config.batch_size
        windows = [self.pairs([line], Split.TEST) for line in lines]
        pairs = [each for own in windows for each in own]
        found = log_likelihoods(model, pairs, batch_size=size, said=self.name)
        bounds = pairwise(accumulate(map(len, windows), initial=0))
        bits = [-sum(found[start:end]) / math.log(2) for start, end in bounds]
        sizes = [len(self._text(line).encode()) for line in lines]
        each = [own / max(1, size) for own, size in zip(bits, sizes, strict=True)]
        return Measured({"bits_per_byte": -sum(found) / math.log(2) / sum(sizes)}, each, sizes)

    def _text(self, line: Line) -> str:
        return line.filled(self.data.text)
