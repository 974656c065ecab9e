"""The examples of a split, read as far as a suite needs and compared by their content."""

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

#: Examples per batch in checks that need no more.
SIZE = 6
#: Splits of fewer examples say nothing of how often examples and labels repeat.
ENOUGH = 16
#: A split is read up to this many examples, and up to this many bytes.
_MOST_EXAMPLES, _MOST_BYTES = 1024, 64 * 2**20
#: The share of examples that two splits may have in common: large data sets repeat a few.
_COINCIDENCES = 0.02
#: What a task may raise for a batch that is larger than the split.
_TOO_LARGE = (FusionError, ValueError, LookupError)


@dataclass(frozen=True)
class Examples:
    """Examples of one split: a batch of them, and a key per example."""

    batch: Batch
    #: a digest of each example's content, without padding
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
    """Yield the tasks that have examples to look at."""
    return (task for task in pool if isinstance(task, AdaptiveTask))


def splits_of(task: AdaptiveTask, size: int = SIZE) -> list[Split]:
    """Return the splits that a task has; it refuses one that it lacks by a `FusionError`."""
    splits = []
    for split in Split:
        try:
            task.batch(0, size=size, split=split, seed=0)
        except FusionError as error:
            if split is Split.TEST:
                fail(
                    f"{task.name}: `batch` refuses {size} test examples: {error}",
                    f"Every task needs test examples; give this suite options with {size} or more.",
                )
            continue
        splits.append(split)
    return splits


def every_split(pool: TaskPool[Any], size: int = SIZE) -> Iterator[tuple[AdaptiveTask, Split]]:
    """Yield every split that a task has."""
    return ((task, split) for task in adaptive_tasks(pool) for split in splits_of(task, size))


def draw(task: AdaptiveTask, split: Split, size: int, *, step: int = 0, seed: int = 0) -> Batch:
    """Return a batch; fails if it has another number of examples than were asked for."""
    batch = task.batch(step, size=size, split=split, seed=seed)
    named = {**batch.tensors, **({} if batch.labels is None else {"the labels": batch.labels})}
    for name, values in named.items():
        if values.dim() == 0 or len(values) != size:
            count = "no" if values.dim() == 0 else len(values)
            fail(
                f"{task.name}: `batch` was asked for {size} {split} examples and returned "
                f"{count}{name and f', in {name}'}.",
                "Return exactly `size` examples, or raise RecipeError for a size that no batch "
                "can have.",
            )
    return batch


def read(task: AdaptiveTask, split: Split) -> Examples:
    """Return a split's examples: the largest batch that the task gives, within bounds."""
    batch = draw(task, split, 1)
    each = max(1, sum(values.nbytes for values in batch.tensors.values()))
    most = max(SIZE, min(_MOST_EXAMPLES, _MOST_BYTES // each))
    size, refused = 1, most + 1
    while refused - size > 1:
        wanted = min(2 * size, most) if refused > most else (size + refused) // 2
        try:
            batch = draw(task, split, wanted)
        except _TOO_LARGE:
            refused = wanted
        else:
            size = wanted
    return Examples(batch, keys_of(batch), is_whole=refused <= most)


def read_all(task: AdaptiveTask) -> Splits:
    """Return the examples of every split that a task has."""
    return {split: read(task, split) for split in splits_of(task)}


def keys_of(batch: Batch) -> tuple[str, ...]:
    """Return a digest per example; positions that are padding do not count."""
    names = sorted(batch.tensors)
    return tuple(
        digest(*(each.tensors[name] for name in names))
        for each in (unpadded(batch, number) for number in range(len(batch)))
    )


def unpadded(batch: Batch, number: int) -> Batch:
    """Return one example without the positions that are padding."""
    one = batch.part(number, number + 1)
    mask = one.mask
    if mask is None or mask.dim() != 2:  # noqa: PLR2004 - (examples, length)
        return one
    seen = mask.bool()
    return Batch(
        {
            name: values[:, seen[0]] if values.shape[:2] == seen.shape else values
            for name, values in one.tensors.items()
        }
    )


def share_of(some: Examples, others: Examples) -> float:
    """Return the share of examples that are among others; 0 for a single coincidence."""
    common = set(some.keys) & set(others.keys)
    return len(common) / len(set(some.keys)) if len(common) > 1 else 0.0


def have_in_common(one: Examples, other: Examples) -> float:
    """Return the share that two splits have in common; 0 for no more than the data repeats."""
    share = max(share_of(one, other), share_of(other, one))
    repeated = max(repeated_share(one.keys), repeated_share(other.keys))
    return share if share > max(_COINCIDENCES, 2 * repeated) else 0.0


def are_fixed(task: AdaptiveTask, whole: Examples) -> bool:
    """Tell whether every batch of a whole split holds the same examples.

    Those of language models are not: each batch draws the token that a text is cut at.
    """
    again = keys_of(draw(task, Split.TEST, len(whole), step=1, seed=1))
    return whole.is_whole and set(again) == set(whole.keys)


def repeated_share(keys: tuple[str, ...]) -> float:
    """Return the share of examples that repeat another one."""
    return 1 - len(set(keys)) / len(keys)


def rows_of(batch: Batch) -> Tensor | None:
    """Return a tensor of inputs as fp64 rows, one per example; None for a mapping."""
    if not isinstance(batch.inputs, torch.Tensor):
        return None
    return batch.inputs.detach().cpu().double().reshape(len(batch), -1)


def batch_digests(
    pool: TaskPool[Any], *, size: int = SIZE, backwards: bool = False
) -> dict[str, str]:
    """Hash some batches of every task and split, labels included."""
    places = [(task, split, step) for task, split in every_split(pool, size) for step in (0, 1)]
    digests = {
        f"{step} of {task.name}, {split}": batch_digest(draw(task, split, size, step=step, seed=7))
        for task, split, step in (reversed(places) if backwards else places)
    }
    return dict(sorted(digests.items()))


def batch_digest(batch: Batch) -> str:
    """Hash a batch, labels included."""
    labels = [] if batch.labels is None else [batch.labels]
    return digest(*(batch.tensors[name] for name in sorted(batch.tensors)), *labels)
