"""Tasks on texts: examples as tokens, and the token that comes next as what adapting looks at."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic, Self, TypeVar

import torch

from fusion_core import AdaptiveTask, Batch, Split, shuffled_rows
from fusion_core.adapting import generator_of
from fusion_core.errors import RecipeError
from pools_lm.tasks.lines import identities, on_hub, read_lines
from pools_lm.tasks.scoring import next_scores, padded

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor, nn

    from fusion_core.hub import Wanted
    from pools_lm.tasks.config import LanguageTasksConfig
    from pools_lm.tasks.lines import Line
    from pools_lm.tasks.prompts import Pair, Prompts

DataT = TypeVar("DataT", bound=Any)
_HALVED = (Split.UNLABELED, Split.TEST)


@dataclass
class LanguageTask(AdaptiveTask, Generic[DataT]):
    """A task whose examples are tokens and, where they are known, tokens to follow.

    Adapting looks at one token an example, drawn from those to follow: its classes are the
    vocabulary. Where nothing is known to follow, it is the first.
    """

    name: str
    data: DataT
    config: LanguageTasksConfig
    #: None for a pool that is bound to no models yet
    prompts: Prompts | None = None
    is_halved: bool = False
    _pairs: dict[Split, list[Pair]] = field(default_factory=dict)

    def pairs(self, lines: Sequence[Line], split: Split) -> list[Pair]:
        """Return what lines come to as tokens; of UNLABELED ones no answer is needed."""
        raise NotImplementedError

    def check(self) -> None:
        """Read the first test example if it is here, and see that other files are there."""
        if on_hub(self.data.test) is None:
            read_lines(self.data.test, 1)
        identities(self._files())

    def downloads(self) -> Sequence[Wanted]:
        """Return the examples on the hub that measuring reads."""
        found = map(on_hub, self.measured())
        return [each for each in found if each is not None]

    def measured(self) -> list[str]:
        """Return the files that measuring reads."""
        return [self.data.test]

    def identity(self) -> Mapping[str, Any]:
        """Return all that the figures depend on."""
        return {
            "files": identities(self._files()),
            "data": self.data.model_dump(mode="json"),
            "chat": self.bound.is_chat,
            "length": self.bound.length,
            "limit": self.config.limit,
            "batch_size": self.config.batch_size,
            "halved": self.is_halved,
            "models": self.bound.digest,
        }

    def halved(self) -> Self:
        """Return this task with one half of its test examples as UNLABELED, the other as TEST."""
        clone = copy.copy(self)
        clone.is_halved, clone._pairs = True, {}  # noqa: SLF001 - a copy of this one
        return clone

    def batch(self, step: int, *, size: int, split: Split, seed: int) -> Batch:
        """Return `input_ids` and `attention_mask`, shape (size, tokens); labels are next tokens.

        Batches run through shuffled epochs, each of the whole number of batches that fit. Raises
        `RecipeError` for a size that no batch can have.
        """
        pairs = self._of(split)
        if not 0 < size <= len(pairs):
            raise RecipeError(
                f"a batch of {size}: task {self.name!r} has {len(pairs)} {split} examples",
                hint=f"Use a batch size from 1 to {len(pairs)}.",
            )
        key = f"{seed}\0{self.name}\0{split}"
        some = [pairs[row] for row in shuffled_rows(step, size, len(pairs), key=key).tolist()]
        rows, labels = self._begun(some, f"{key}\0{step}")
        return Batch(padded(rows), None if split is Split.UNLABELED else labels)

    def logits(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the scores of the next token, of shape (examples, tokens)."""
        return next_scores(model, batch.tensors)

    @property
    def bound(self) -> Prompts:
        """How texts are put to the models; raises `RecipeError` where none are known."""
        if self.prompts is None:
            raise RecipeError(
                f"task {self.name!r} knows no tokenizer: its pool is bound to no models",
                hint="Bind it: tasks = tasks.bind(pool)",
            )
        return self.prompts

    def lines(self, split: Split) -> list[Line]:
        """Return a split's lines; halves of the test lines where they are held out.

        Raises `RecipeError` for a split that the task does not have.
        """
        if self.is_halved and split in _HALVED:
            found = read_lines(self.data.test, self.config.limit)
            rows = shuffled_rows(0, len(found), len(found), key=f"halves\0{self.name}").tolist()
            half = len(found) // 2
            return [found[n] for n in (rows[:half] if split is Split.UNLABELED else rows[half:])]
        path = getattr(self.data, split)
        if path is None and split is Split.UNLABELED and self.config.transductive:
            return read_lines(self.data.test, self.config.limit)
        if path is None:
            raise RecipeError(
                f"task {self.name!r} has no {split} examples",
                hint=f"Name a file: task_pool.datasets.{self.name}.{split}.",
            )
        return read_lines(path, self.config.limit if split is Split.TEST else None)

    @property
    def hides_answers(self) -> bool:
        """Whether UNLABELED lines are test lines, whose answers must not be seen."""
        return self.is_halved or self.data.unlabeled is None

    def _of(self, split: Split) -> list[Pair]:
        if split not in self._pairs:
            self._pairs[split] = self.pairs(self.lines(split), split)
        return self._pairs[split]

    def _begun(self, pairs: Sequence[Pair], key: str) -> tuple[list[list[int]], Tensor]:
        """Return texts up to a token that is drawn from those to follow, and these tokens."""
        counts = [1 if self.bound.is_seq2seq else len(each.continuation) for each in pairs]
        shares = torch.rand(len(pairs), generator=generator_of(0, key)).tolist()
        places = [int(share * count) for share, count in zip(shares, counts, strict=True)]
        each = list(zip(pairs, places, strict=True))
        rows = [[*pair.context, *pair.continuation[:place]] for pair, place in each]
        return rows, torch.tensor([[*pair.continuation, -1][place] for pair, place in each])

    def _files(self) -> list[str]:
        return [path for split in Split if (path := getattr(self.data, split)) is not None]
