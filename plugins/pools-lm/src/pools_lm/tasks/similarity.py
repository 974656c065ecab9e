"""Semantic textual similarity: rank correlation of cosine similarities with human scores."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional

from fusion_core import Split
from fusion_core.errors import FusionError
from pools_lm.tasks.encoder import Encoder, Example
from pools_lm.tasks.examples import LinesTask, unbound_error
from pools_lm.tasks.ranks import parse_number, rank_correlation
from pools_lm.tasks.sentence_config import SimilarityLines

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import nn

    from fusion_core import MetricValues
    from pools_lm.tasks.lines import Line


@dataclass
class SimilarityTask(LinesTask[SimilarityLines]):
    """Pairs of sentences, encoded separately.

    Algorithms cannot adapt on this task, because pairs have no classes.
    """

    #: None until the pool is bound to models
    encoder: Encoder | None = None

    def check_line(self, line: Line) -> None:
        """Raise a `FusionError` for a line without two sentences or their score."""
        self._score(line)
        for text in (self.data.first, self.data.second):
            self._examples([line], text)

    def identity(self) -> Mapping[str, Any]:
        """Return everything that the correlation depends on."""
        return {**super().identity(), **self._bound_encoder.identity()}

    def evaluate(self, model: nn.Module) -> MetricValues:
        """Return {"spearman": rank correlation of cosine similarities with the scores}."""
        lines = self.lines(Split.TEST)
        scores = [self._score(line) for line in lines]
        sentences = [
            *self._examples(lines, self.data.first),
            *self._examples(lines, self.data.second),
        ]
        # one vector per distinct sentence: vectors differ by rounding between batches, which would
        # rank equal pairs
        keys = [tuple(sentence.tokens["input_ids"]) for sentence in sentences]
        distinct = dict(zip(keys, sentences, strict=True))
        positions = {key: position for position, key in enumerate(distinct)}
        vectors = self._bound_encoder.embed_all(
            model, [*distinct.values()], batch_size=self.config.batch_size, label=self.name
        )
        rows = torch.tensor([positions[key] for key in keys]).view(2, len(lines))
        first, second = functional.normalize(vectors, dim=-1)[rows]
        cosines = (first * second).sum(dim=1)
        equal = rows[0] == rows[1]
        cosines[equal] = cosines[equal].round()  # 1, or NaN: errors of rounding would rank them
        return {"spearman": rank_correlation(cosines.tolist(), scores)}

    @property
    def _bound_encoder(self) -> Encoder:
        if self.encoder is None:
            raise unbound_error(self.name)
        return self.encoder

    def _examples(self, lines: Sequence[Line], text: str) -> list[Example]:
        return [Example(tokens) for tokens in self._bound_encoder.tokenize(lines, text)]

    def _score(self, line: Line) -> float:
        score = line[self.data.score]
        number = parse_number(score)
        if number is None:
            raise FusionError(
                f"{line.location}: expected a number in {self.data.score}, got {score!r}",
                hint=f"Name the field of the score: task_pool.datasets.{self.name}.score",
            )
        return number
