"""Passes of unlabeled batches through the live model, forward and back.

Tasks are passed through one after the other, so that memory holds the activations of one batch.
Where those are small, several tasks share a pass, each with its own head: the gradient is the same,
and one large product takes less time than several small ones.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from itertools import groupby, islice
from typing import TYPE_CHECKING, Any

import torch

from fusion_adamerging.objective import disagreement, entropy
from fusion_adamerging.watch import Seen
from fusion_core import Batch, FeatureTask, Split
from fusion_core.adapting import with_fast_products

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import Tensor, nn

    from fusion_core import AdaptiveTask

    #: a task with its batch of one step
    Pair = tuple[AdaptiveTask, Batch]


@dataclass(frozen=True)
class Batches:
    """Which examples are passed through in a step: a pure function of the step."""

    size: int
    seed: int

    def of(self, task: AdaptiveTask, step: int) -> Batch:
        """Return a task's unlabeled batch."""
        return task.batch(step, size=self.size, split=Split.UNLABELED, seed=self.seed)


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
    #: by task and step the logits to agree with; None where entropy is what is minimised
    teacher: dict[str, dict[int, Tensor]] | None = None
    #: how many tasks of a kind fit into a pass, once that is known
    rooms: dict[Any, int] = field(default_factory=dict)

    def backward(self, step: int) -> dict[str, Seen]:
        """Back-propagate the sum of all tasks' objectives, and return what was seen of each."""
        seen: dict[str, Seen] = {}
        for group in self._groups(step):
            logits = self._logits(group)
            named = [(task.name, values) for (task, _), values in zip(group, logits, strict=True)]
            objectives = [self._objective(name, step, values) for name, values in named]
            total = torch.stack(objectives).sum()
            if total.requires_grad:  # else nothing that is merged takes part in it
                total.backward()  # type: ignore[no-untyped-call]
            for (name, values), objective in zip(named, objectives, strict=True):
                seen[name] = _seen(objective, values)
        return seen

    def _objective(self, task: str, step: int, logits: Tensor) -> Tensor:
        if self.teacher is None:
            return entropy(logits)
        return disagreement(logits, self.teacher[task][step].to(logits.device))

    def _groups(self, step: int) -> Iterator[Sequence[Pair]]:
        """Group neighbouring tasks that can share a pass, as many as fit into one."""
        pairs = ((task, self.batches.of(task, step).to(self.device)) for task in self.tasks)
        for kind, members in groupby(pairs, key=_kind):
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
        own = {each.untyped_storage().data_ptr() for each in self.model.parameters()}
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

    def _logits(self, group: Sequence[Pair]) -> list[Tensor]:
        task: Any = group[0][0]
        if not isinstance(task, FeatureTask):
            with self._autocast():
                return [_widened(task.logits(self.model, group[0][1]))]
        with self._autocast():
            joined = Batch.joined([each for _, each in group])
            features = task.features(self.model, joined.inputs)
        parts = torch.split(_widened(features), [len(each) for _, each in group])
        heads: list[Any] = [task for task, _ in group]
        return [head.head(part) for head, part in zip(heads, parts, strict=True)]

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16)


def expert_logits(
    expert: nn.Module, task: AdaptiveTask, batches: Batches, steps: range, device: torch.device
) -> Iterator[tuple[int, Tensor]]:
    """Yield by step what a task's own expert predicts, on the CPU; (examples, classes) each."""
    with_fast_products(expert).to(device).eval()
    for step in steps:
        with torch.no_grad():
            logits = task.logits(expert, batches.of(task, step).to(device))
        yield step, logits.float().cpu()


def _kind(pair: Pair) -> object:
    """Tell which tasks can share a pass: the same features of inputs of the same form."""
    task, batch = pair
    if not isinstance(task, FeatureTask):
        return None
    return type(task).features, batch.form


def _widened(values: Tensor) -> Tensor:
    return values.to(torch.promote_types(values.dtype, torch.float32))


def _seen(objective: Tensor, logits: Tensor) -> Seen:
    return Seen(objective.item(), Counter(logits.detach().argmax(dim=-1).reshape(-1).tolist()))
