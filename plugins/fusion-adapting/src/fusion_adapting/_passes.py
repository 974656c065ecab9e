"""Passes of unlabeled batches through the live model, forward and back.

Tasks are passed through one after the other, so that memory holds the activations of one batch.
Where those are small, several tasks share a pass, each with its own head: the gradient is the same,
and one large product takes less time than several small ones.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from itertools import groupby, islice
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from fusion_adapting._live import standing_in
from fusion_adapting._predictions import generator_of, widened
from fusion_core import Batch, FeatureTask, Split

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from fusion_core import AdaptiveTask

    #: a task with its batch of one step
    Pair = tuple[AdaptiveTask, Batch]

#: What is minimised: a scalar, of a task's name, the step and the logits (examples, classes).
Objective = Callable[[str, int, Tensor], Tensor]


@dataclass(frozen=True)
class Batches:
    """Which unlabeled examples are passed through in a step: a pure function of the step."""

    size: int
    seed: int
    split: Split = Split.UNLABELED
    #: the first so many of each task, in shuffled rounds; None: as the task has them
    examples: int | None = None
    _few: dict[str, Batch] = field(default_factory=dict, compare=False)

    def of(self, task: AdaptiveTask, step: int) -> Batch:
        """Return a task's batch."""
        if self.examples is None:
            return task.batch(step, size=self.size, split=self.split, seed=self.seed)
        if task.name not in self._few:
            whole = replace(self, size=min(self.size, self.examples), examples=None)
            self._few[task.name] = Batch.joined(list(whole.first(task, self.examples)))
        return self._few[task.name].rows(self.rows(task.name, step, self.examples))

    def rows(self, task: str, step: int, examples: int) -> Tensor:
        """Return which of a task's examples a step sees; a round holds whole batches of them."""
        size = min(self.size, examples)
        number, place = divmod(step, examples // size)
        shuffle = generator_of(self.seed, f"{task}\0{number}")
        return torch.randperm(examples, generator=shuffle)[place * size : (place + 1) * size]

    def first(self, task: AdaptiveTask, samples: int) -> Iterator[Batch]:
        """Yield a task's first batches, with `samples` examples in all; the last may be smaller.

        What a task does that has fewer is its own affair: most give them again.
        """
        for step, start in enumerate(range(0, samples, self.size)):
            yield self.of(task, step).part(0, samples - start)


@dataclass(frozen=True)
class Outcome:
    """What one step showed of one task."""

    #: the value of what is minimised
    objective: float
    #: shape (examples, classes), without a graph
    logits: Tensor


@dataclass
class Passes:
    """The tasks of this process, and how their batches go through a live model."""

    model: nn.Module
    tasks: Sequence[AdaptiveTask]
    batches: Batches
    device: torch.device
    bf16: bool = False
    #: tasks share a pass while its activations take no more bytes
    shared: int = 0
    #: by task, what stands in the places of the model's parameters, by all names in the model; such
    #: a task shares no pass
    own: Mapping[str, Mapping[str, nn.Parameter]] = field(default_factory=dict)
    #: how many tasks of a kind fit into a pass, once that is known
    rooms: dict[Any, int] = field(default_factory=dict)

    def backward(self, step: int, objective: Objective) -> dict[str, Outcome]:
        """Back-propagate the sum of all tasks' objectives, and return what was seen of each."""
        seen: dict[str, Outcome] = {}
        for group in self._groups(step):
            logits = self._logits(group)
            named = [(task.name, values) for (task, _), values in zip(group, logits, strict=True)]
            objectives = [objective(name, step, values) for name, values in named]
            total = torch.stack(objectives).sum()
            if total.requires_grad:  # else nothing that is merged takes part in it
                total.backward()  # type: ignore[no-untyped-call]
            for (name, values), value in zip(named, objectives, strict=True):
                seen[name] = Outcome(value.item(), values.detach())
        return seen

    def _groups(self, step: int) -> Iterator[Sequence[Pair]]:
        """Group neighbouring tasks that can share a pass, as many as fit into one."""
        pairs = ((task, self.batches.of(task, step).to(self.device)) for task in self.tasks)
        for kind, members in groupby(pairs, key=self._kind):
            yield from self._parted(kind, members)

    def _parted(self, kind: object, members: Iterator[Pair]) -> Iterator[Sequence[Pair]]:
        for first in members:
            room = 1 if kind is None else self._room(kind, first)
            yield [first, *islice(members, room - 1)]

    def _room(self, kind: object, pair: Pair) -> int:
        """Return how many tasks like this one fit into a pass: what one takes is measured once."""
        if kind not in self.rooms:
            self.rooms[kind] = max(1, self.shared // max(self._activations(*pair), 1))
        return self.rooms[kind]

    def _activations(self, task: AdaptiveTask, batch: Batch) -> int:
        """Return the bytes that a task's pass keeps for its way back and a shared one once a task.

        That is what grows with the examples: parameters in bf16, say, are kept once for all.
        """
        examples = len(batch)
        kept = self._kept((task, batch))
        if examples == 1:
            return kept
        alone = self._kept((task, batch.part(0, 1)))
        return (kept - alone) * examples // (examples - 1)

    def _kept(self, pair: Pair) -> int:
        own = {parameter.untyped_storage().data_ptr() for parameter in self.model.parameters()}
        kept: dict[int, int] = {}

        def keep(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in own:
                kept[storage.data_ptr()] = storage.nbytes()
            return tensor.detach()  # itself, it would lead back to the graph, and none be freed

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            graph = self._logits([pair])  # as long as it lives, no two tensors share an address
        del graph
        return sum(kept.values())

    def _kind(self, pair: Pair) -> object:
        """Tell which tasks can share a pass: the same features of inputs of the same form."""
        task, batch = pair
        if not isinstance(task, FeatureTask) or task.name in self.own:
            return None
        return type(task).features, batch.form

    def _logits(self, group: Sequence[Pair]) -> list[Tensor]:
        task: Any = group[0][0]
        with standing_in(self.model, self.own.get(task.name, {})):
            return self._scores(task, group)

    def _scores(self, task: Any, group: Sequence[Pair]) -> list[Tensor]:  # noqa: ANN401
        if not isinstance(task, FeatureTask):
            with self._autocast():
                return [widened(task.logits(self.model, group[0][1]))]
        with self._autocast():
            joined = Batch.joined([each for _, each in group])
            features = task.features(self.model, joined.inputs)
        parts = torch.split(widened(features), [len(each) for _, each in group])
        heads: list[Any] = [task for task, _ in group]
        return [head.head(part) for head, part in zip(heads, parts, strict=True)]

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16)
