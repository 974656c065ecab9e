"""Tasks on texts: examples as tokens, and the token that comes next as what adapting looks at."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from fusion_adapting import generator_of
from fusion_core import Batch, Split
from pools_lm.tasks.examples import AdaptiveLinesTask, DataT, unbound
from pools_lm.tasks.scoring import next_scores, padded

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor, nn

    from pools_lm.tasks.config import LanguageTasksConfig
    from pools_lm.tasks.lines import Line
    from pools_lm.tasks.prompts import Pair, Prompts


@dataclass
class LanguageTask(AdaptiveLinesTask[DataT]):
    """A task whose examples are tokens and, where they are known, tokens to follow.

    Adapting looks at one token an example, drawn from those to follow: its classes are the
    vocabulary. Where nothing is known to follow, it is the first.
    """

    config: LanguageTasksConfig
    #: None for a pool that is bound to no models yet
    prompts: Prompts | None = None

    def pairs(self, lines: Sequence[Line], split: Split) -> list[Pair]:
        """Return what lines come to as tokens; of UNLABELED ones no answer is needed."""
        raise NotImplementedError

    def examples(self, lines: Sequence[Line], split: Split) -> list[Pair]:
        """Return the same: an example is a pair."""
        return self.pairs(lines, split)

    def identity(self) -> Mapping[str, Any]:
        """Return all that the figures depend on."""
        return {
            **super().identity(),
            "chat": self.bound.is_chat,
            "length": self.bound.length,
            "models": self.bound.digest,
        }

    def batch(self, step: int, *, size: int, split: Split, seed: int) -> Batch:
        """Return `input_ids` and `attention_mask`, shape (size, tokens); labels are next tokens.

        Batches run through shuffled epochs, each of the whole number of batches that fit. Raises
        `RecipeError` for a size that no batch can have.
        """
        key = f"{seed}\0{self.name}\0{split}"
        some = self.drawn(step, size=size, split=split, key=key)
        rows, labels = self._begun(some, f"{key}\0{step}")
        return Batch(padded(rows), None if split is Split.UNLABELED else labels)

    def logits(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the scores of the next token, of shape (examples, tokens)."""
        return next_scores(model, batch.tensors)

    @property
    def bound(self) -> Prompts:
        """How texts are put to the models; raises `RecipeError` where none are known."""
        if self.prompts is None:
            raise unbound(self.name)
        return self.prompts

    def _begun(self, pairs: Sequence[Pair], key: str) -> tuple[list[list[int]], Tensor]:
        """Return texts up to a token that is drawn from those to follow, and these tokens."""
        counts = [1 if self.bound.is_seq2seq else len(each.continuation) for each in pairs]
        shares = torch.rand(len(pairs), generator=generator_of(0, key)).tolist()
        places = [int(share * count) for share, count in zip(shares, counts, strict=True)]
        each = list(zip(pairs, places, strict=True))
        rows = [[*pair.context, *pair.continuation[:place]] for pair, place in each]
        return rows, torch.tensor([[*pair.continuation, -1][place] for pair, place in each])
