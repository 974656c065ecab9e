"""The agreement of a model with each expert, on prompts that models write themselves."""

from __future__ import annotations

import copy
import hashlib
import json
import math
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch

from fusion_adapting import UNDEFINED
from fusion_core import Measured, Metric, Split, TaskPool, choose_tasks, unknown_task
from fusion_core.errors import FusionError, RecipeError
from pools_lm.tasks.config import AgreementConfig
from pools_lm.tasks.prompts import Prompts
from pools_lm.tasks.sampling import PromptSampler, write_prompts
from pools_lm.tasks.scoring import greedy_tokens
from pools_lm.tasks.task import TokenTask

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from torch import nn

    from fusion_core import MetricValues, ModelPool
    from pools_lm.tasks.prompts import Pair


def measure_agreement(rows: Sequence[list[int]], expected: Sequence[list[int]]) -> Measured:
    """Return {"agreement": fraction of positions with the expected token}, with that of rows.

    The outcome of a row is NaN if one of its tokens is `UNDEFINED`, and then so is the agreement.
    """
    sizes = [len(row) for row in rows]
    equal = [
        math.nan
        if UNDEFINED in (*row, *right)
        else sum(token == other for token, other in zip(row, right, strict=True))
        for row, right in zip(rows, expected, strict=True)
    ]
    fractions = [count / size for count, size in zip(equal, sizes, strict=True)]
    return Measured({"agreement": sum(equal) / sum(sizes)}, fractions, sizes)


def digest_predictions(pairs: Sequence[Pair], expected: Sequence[list[int]]) -> str:
    """Return a digest of texts and of the tokens that are expected at their positions."""
    rows = [[list(pair.context), list(pair.continuation)] for pair in pairs]
    return hashlib.sha256(json.dumps([rows, expected]).encode()).hexdigest()


@dataclass
class AgreementTask(TokenTask):
    """Prompts that a model writes, on which a merge should predict what the expert predicts.

    UNLABELED and TEST have different prompts.
    """

    name: str
    sampler: PromptSampler = field(kw_only=True)
    batch_size: int = field(kw_only=True)

    metrics = (Metric("agreement"),)

    def read_examples(self, split: Split) -> list[Pair]:
        """Return the sampled prompts with the expert's answers; there are no TRAIN examples."""
        if split is Split.TRAIN:
            raise RecipeError(
                f"task {self.name!r} has no labeled examples: models write its prompts",
                hint="Name a task pool with labeled examples.",
            )
        pairs = self.sampler.pairs(self.name, key=str(split))
        if split is Split.UNLABELED:
            return pairs
        seen = self.load_examples(Split.UNLABELED)
        unseen = [pair for pair in pairs if pair not in seen]
        if not unseen:
            raise FusionError(
                f"task {self.name!r}: models write {len(seen)} different prompts, too few to "
                "measure others than a search sees",
                hint="Name a task pool with test examples, or give task_pool.sampled more prompts.",
            )
        return unseen[: self.sampler.config.limit]

    def evaluate(self, model: nn.Module) -> MetricValues:
        """Return {"agreement": fraction of positions with the expert's most likely token}."""
        pairs, expected = self._expected
        rows = greedy_tokens(model, pairs, batch_size=self.batch_size, label=self.name)
        return measure_agreement(rows, expected)

    def check(self) -> None:
        """Check nothing: the models write the prompts during the run."""

    def identity(self) -> Mapping[str, Any]:
        """Identify the prompts and the expert's predictions, on which the metric depends."""
        return {"prompts": digest_predictions(*self._expected)}

    @cached_property
    def _expected(self) -> tuple[list[Pair], list[list[int]]]:
        """The TEST pairs, and the expert's most likely tokens at their positions."""
        pairs = self.load_examples(Split.TEST)
        return pairs, self.sampler.predict(self.name, pairs)


class AgreementTasks(TaskPool[AgreementConfig]):
    """One task per expert, which needs no data: models write the prompts.

    `names` is empty until the pool is bound to models.
    """

    config_class: ClassVar[type[AgreementConfig]] = AgreementConfig
    names: Sequence[str] = ()

    def __init__(self, config: AgreementConfig) -> None:
        super().__init__(config)
        self.dtype = None if config.dtype == "auto" else getattr(torch, config.dtype)
        count = min(config.sampled, config.limit or config.sampled)
        self.measured_on = f"at most {count} prompts per task that models wrote"
        self._tasks: dict[str, AgreementTask] = {}

    def __getitem__(self, name: str) -> AgreementTask:
        """Return one task; raises `RecipeError` naming close matches for an unknown one."""
        if name not in self._tasks:
            raise unknown_task(name, self.names, "tasks")
        return self._tasks[name]

    def bind(self, pool: ModelPool[Any]) -> Self:
        """Return these tasks with one task per task of a pool's experts."""
        config = self.config
        prompts = Prompts.of_pool(pool, chat=config.chat, length=config.length)
        sampler = PromptSampler(pool, prompts, config)
        known = list(dict.fromkeys(map(pool.task_of, pool.experts)))
        clone = copy.copy(self)
        clone.names = choose_tasks(config.tasks, known, "task_pool.tasks")
        clone._tasks = {  # noqa: SLF001 - its own class
            name: AgreementTask(
                name, prompts=prompts, sampler=sampler, batch_size=config.batch_size
            )
            for name in clone.names
        }
        return clone

    def prepare(self, device: torch.device, save: Callable[[str, bytes], None]) -> Self:
        """Return these tasks with prompts written on the run's device, and save the prompts."""
        clone = copy.copy(self)
        clone._tasks = {  # noqa: SLF001
            name: task.on_device(device) for name, task in self._tasks.items()
        }
        write_prompts(clone._tasks.values(), save)  # noqa: SLF001
        return clone

    def identity(self, name: str) -> Mapping[str, Any]:
        """Identify a task by its prompts and its expert's predictions."""
        return self[name].identity()
