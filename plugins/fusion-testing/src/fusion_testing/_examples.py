"""Read the examples of a split, and compare examples by their content."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from fusion_core.contracts.batch import Batch, Split
from fusion_core.contracts.task_pool import AdaptiveTask
from fusion_core.errors import FusionError
from fusion_testing._guards import digest
from fusion_testing._suite import fail

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

    from fusion_core.contracts.task_pool import TaskPool

#: Examples per batch, unless a check needs more.
SIZE = 6
#: Splits with fewer examples are too small to judge how often examples and labels repeat.
ENOUGH = 16
#: Limits on the part of a split that is read.
_MAX_EXAMPLES, _MAX_BYTES = 1024, 64 * 2**20
#: Share of examples that two splits may have in common: large data sets repeat some.
_MAX_SHARE = 0.02
#: Errors that a task may raise for a batch larger than the split.
_TOO_LARGE = (FusionError, ValueError, LookupError)


@dataclass(frozen=True)
class Examples:
    """Examples of one split, in one batch, with one key per example."""

    batch: Batch
    #: one digest per example, without padding
    keys: tuple[str, ...]
    #: whether the batch holds every example of the split
    is_whole: bool

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def labels(self) -> list[Any]:
        """The labels in the order of the keys; empty without labels."""
        return [] if self.batch.labels is None else self.batch.labels.tolist()


Splits = dict[Split, Examples]


def adaptive_tasks(pool: TaskPool[Any]) -> Iterator[AdaptiveTask]:
    """Yield the tasks that have batches."""
    return (task for task in pool if isinstance(task, AdaptiveTask))


def splits_of(task: AdaptiveTask, size: int = SIZE) -> list[Split]:
    """Return the splits of a task: those for which `batch` does not raise a `FusionError`."""
    splits = []
    for split in Split:
        try:
            task.batch(0, size=size, split=split, seed=0)
        except FusionError as error:
            if split is Split.TEST:
                fail(
                    f"{task.name}: expected a batch of {size} test examples, got an error: {error}",
                    f"Return test examples for every task. The suite needs {size} or more per "
                    "split: set the fixture `options` accordingly.",
                )
            continue
        splits.append(split)
    return splits


def every_split(pool: TaskPool[Any], size: int = SIZE) -> Iterator[tuple[AdaptiveTask, Split]]:
    """Yield every task with each of its splits."""
    return ((task, split) for task in adaptive_tasks(pool) for split in splits_of(task, size))


def draw(task: AdaptiveTask, split: Split, size: int, *, step: int = 0, seed: int = 0) -> Batch:
    """Return a batch; fail if it does not have `size` examples."""
    batch = task.batch(step, size=size, split=split, seed=seed)
    named = {**batch.tensors, **({} if batch.labels is None else {"the labels": batch.labels})}
    for name, values in named.items():
        if values.dim() == 0 or len(values) != size:
            count = "none" if values.dim() == 0 else len(values)
            fail(
                f"{task.name}: expected {size} {split} examples from `batch`, got "
                f"{count}{name and f' in {name}'}.",
                "Return exactly `size` examples, or raise RecipeError for an impossible size.",
            )
    return batch


def read(task: AdaptiveTask, split: Split) -> Examples:
    """Return the largest batch of a split that the task accepts, within limits."""
    batch = draw(task, split, 1)
    size_of_one = max(1, sum(values.nbytes for values in batch.tensors.values()))
    limit = max(SIZE, min(_MAX_EXAMPLES, _MAX_BYTES // size_of_one))
    size, refused = 1, limit + 1
    while refused - size > 1:
        wanted = min(2 * size, limit) if refused > limit else (size + refused) // 2
        try:
            batch = draw(task, split, wanted)
        except _TOO_LARGE:
            refused = wanted
        else:
            size = wanted
    return Examples(batch, keys_of(batch), is_whole=refused <= limit)


def read_all(task: AdaptiveTask) -> Splits:
    """Return the examples of every split of a task."""
    return {split: read(task, split) for split in splits_of(task)}


def keys_of(batch: Batch) -> tuple[str, ...]:
    """Return one digest per example, without padding."""
    names = sorted(batch.tensors)
    return tuple(
        digest(*(example.tensors[name] for name in names))
        for example in (unpadded(batch, number) for number in range(len(batch)))
    )


def unpadded(batch: Batch, number: int) -> Batch:
    """Return one example without padding."""
    example = batch.part(number, number + 1)
    mask = example.mask
    if mask is None or mask.dim() != 2:  # noqa: PLR2004 - (examples, length)
        return example
    visible = mask.bool()
    return Batch(
        {
            name: values[:, visible[0]] if values.shape[:2] == visible.shape else values
            for name, values in example.tensors.items()
        }
    )


def share_of(some: Examples, others: Examples) -> float:
    """Return the share of `some` that is among `others`; 0 for a single coincidence."""
    common = set(some.keys) & set(others.keys)
    return len(common) / len(set(some.keys)) if len(common) > 1 else 0.0


def overlap(one: Examples, other: Examples) -> float:
    """Return the share that two splits have in common; 0 if the data's own repeats explain it."""
    share = max(share_of(one, other), share_of(other, one))
    repeated = max(repeated_share(one.keys), repeated_share(other.keys))
    return share if share > max(_MAX_SHARE, 2 * repeated) else 0.0


def are_fixed(task: AdaptiveTask, whole: Examples) -> bool:
    """Tell whether every batch of the whole test split holds the same examples.

    Examples of language models are not fixed: each batch draws the token at which it cuts a text.
    """
    keys = keys_of(draw(task, Split.TEST, len(whole), step=1, seed=1))
    return whole.is_whole and set(keys) == set(whole.keys)


def repeated_share(keys: tuple[str, ...]) -> float:
    """Return the share of examples that repeat another one."""
    return 1 - len(set(keys)) / len(keys)


def rows_of(batch: Batch) -> Tensor | None:
    """Return inputs as fp64 rows, one per example; None if the inputs are a mapping."""
    if not isinstance(batch.inputs, torch.Tensor):
        return None
    return batch.inputs.detach().cpu().double().reshape(len(batch), -1)


def batch_digests(
    pool: TaskPool[Any], *, size: int = SIZE, backwards: bool = False
) -> dict[str, str]:
    """Hash two batches of every task and split, labels included."""
    batches = [(task, split, step) for task, split in every_split(pool, size) for step in (0, 1)]
    digests = {
        f"{step} of {task.name}, {split}": batch_digest(draw(task, split, size, step=step, seed=7))
        for task, split, step in (reversed(batches) if backwards else batches)
    }
    return dict(sorted(digests.items()))


def batch_digest(batch: Batch) -> str:
    """Hash a batch, labels included."""
    labels = [] if batch.labels is None else [batch.labels]
    return digest(*(batch.tensors[name] for name in sorted(batch.tensors)), *labels)
