"""How alike sentences are: ranks of cosine similarities beside those of people's scores."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch.nn import functional

from fusion_core import Split
from fusion_core.errors import FusionError
from pools_lm.tasks.encoder import Encoder, Example
from pools_lm.tasks.examples import LinesTask, unbound
from pools_lm.tasks.ranks import rank_correlation
from pools_lm.tasks.sentence_config import SimilarityLines

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor, nn

    from fusion_core import Metrics
    from pools_lm.tasks.lines import Line


@dataclass
class SimilarityTask(LinesTask[SimilarityLines]):
    """Pairs of sentences, each sentence read by itself.

    It is only measured: pairs have no classes that a model could be more or less sure of.
    """

    #: None for a pool that is bound to no models yet
    encoder: Encoder | None = None

    def look(self, line: Line) -> None:
        """Raise a `FusionError` for a line without two sentences or their score."""
        self._score(line)
        for text in (self.data.first, self.data.second):
            self._examples([line], text)

    def identity(self) -> Mapping[str, Any]:
        """Return all that the correlation depends on."""
        return {**super().identity(), **self._bound.identity()}

    def evaluate(self, model: nn.Module) -> Metrics:
        """Return {"spearman": rank correlation of cosine similarities with the scores}."""
        lines = self.lines(Split.TEST)
        scores, size = [self._score(line) for line in lines], self.config.batch_size
        pairs = [*self._examples(lines, self.data.first), *self._examples(lines, self.data.second)]
        vectors = self._bound.embeddings(model, pairs, batch_size=size, said=self.name)
        first, second = functional.normalize(vectors, dim=-1).reshape(2, len(lines), -1)
        return {"spearman": rank_correlation(_products(first, second), scores)}

    @property
    def _bound(self) -> Encoder:
        if self.encoder is None:
            raise unbound(self.name)
        return self.encoder

    def _examples(self, lines: Sequence[Line], text: str) -> list[Example]:
        return [Example(token) for token in self._bound.tokens(lines, text)]

    def _score(self, line: Line) -> float:
        given = line[self.data.score]
        try:
            return float(given)
        except (TypeError, ValueError) as error:
            raise FusionError(
                f"{line.place}: {self.data.score} is {given!r}, which is not a number",
                hint=f"Name the field that is one: task_pool.datasets.{self.name}.score",
            ) from error


def _products(first: Tensor, second: Tensor) -> list[float]:
    return list((first * second).sum(dim=1).tolist())
