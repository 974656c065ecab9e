"""Forward and backward passes of unlabeled batches through a live model.

Tasks pass one after the other, so that memory holds the activations of one batch. If those are
small, several tasks share a pass, each with its own head. The gradient is the same, and one large
product takes less time than several small ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from itertools import groupby, islice
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from fusion_adapting._live import replace_parameters
from fusion_adapting._predictions import make_generator, widened
from fusion_core import Batch, FeatureTask, Split

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from fusion_core import AdaptiveTask

    #: a task with its batch of one step
    Pair = tuple[AdaptiveTask, Batch]

#: The objective to minimise: (task name, step, logits of shape (examples, classes)) -> scalar.
Objective = Callable[[str, int, Tensor], Tensor]


@dataclass(frozen=True)
class Batches:
    """The unlabeled examples of each step, as a pure function of the step.

    A task with fewer examples than `size` or `examples` gives all of them.
    """

    size: int
    seed: int
    split: Split = Split.UNLABELED
    #: use only the first examples of each task, this many, in shuffled rounds; None: use all
    examples: int | None = None
    _first_examples: dict[str, Batch] = field(default_factory=dict, compare=False)

    def of(self, task: AdaptiveTask, step: int) -> Batch:
        """Return a task's batch in a step."""
        count = task.count(self.split)
        if self.examples is None or (count is not None and count <= self.examples):
            size = self.size if count is None else min(self.size, count)
            return task.batch(step, size=size, split=self.split, seed=self.seed)
        if task.name not in self._first_examples:
            whole = replace(self, size=min(self.size, self.examples), examples=None)
            joined = Batch.joined(list(whole.first(task, self.examples)))
            self._first_examples[task.name] = joined
        return self._first_examples[task.name].rows(self.rows(task.name, step, self.examples))

    def available(self, task: AdaptiveTask) -> float:
        """Return how many different examples of a task the steps see; infinity if unlimited."""
        count = task.count(self.split)
        return min(math.inf if number is None else number for number in (count, self.examples))

    def rows(self, task: str, step: int, examples: int) -> Tensor:
        """Return the indices of a step's examples; a round consists of whole batches."""
        size = min(self.size, examples)
        number, index = divmod(step, examples // size)
        generator = make_generator(self.seed, f"{task}\0{number}")
        return torch.randperm(examples, generator=generator)[index * size : (index + 1) * size]

    def first(self, task: AdaptiveTask, samples: int) -> Iterator[Batch]:
        """Yield a task's first batches with `samples` examples in all; the last may be smaller.

        A task with fewer examples gives each once, in batches of one size. The size is between half
        of `size` and `size`, such that the fewest examples are left over.
        """
        count = task.count(self.split)
        if not count or count > samples:
            for step, start in enumerate(range(0, samples, self.size)):
                yield self.of(task, step).part(0, samples - start)
            return
        largest = min(self.size, count)
        size = min(range(largest, largest // 2, -1), key=lambda size: count % size)
        equal = replace(self, size=size)
        for step in range(count // size):
            yield equal.of(task, step)


@dataclass(frozen=True)
class Outcome:
    """The result of one task's pass in one step."""

    #: the value of the objective
    objective: float
    #: shape (examples, classes), detached from the graph
    logits: Tensor


@dataclass
class Passes:
    """Passes of this process's tasks through a live model."""

    model: nn.Module
    tasks: Sequence[AdaptiveTask]
    batches: Batches
    device: torch.device
    bf16: bool = False
    #: tasks share a pass while its activations take at most this many bytes
    shared: int = 0
    #: by task: parameters that replace the model's, by every name there; these tasks share no pass
    task_parameters: Mapping[str, Mapping[str, nn.Parameter]] = field(default_factory=dict)
    #: measured so far: how many tasks of each kind fit into one pass
    capacities: dict[Any, int] = field(default_factory=dict)

    def backward(self, step: int, objective: Objective) -> dict[str, Outcome]:
        """Back-propagate the sum of all tasks' objectives; return the outcome of each task."""
        outcomes: dict[str, Outcome] = {}
        for group in self._groups(step):
            replacements = self.task_parameters.get(group[0][0].name, {})
            with replace_parameters(self.model, replacements):  # a layer may run again, backward
                outcomes |= self._back_propagate(group, step, objective)
        return outcomes

    def _back_propagate(
        self, group: Sequence[Pair], step: int, objective: Objective
    ) -> dict[str, Outcome]:
        """Back-propagate the objectives of tasks that share a pass."""
        logits = self._logits(group)
        named = [(task.name, values) for (task, _), values in zip(group, logits, strict=True)]
        objectives = [objective(name, step, values) for name, values in named]
        total = torch.stack(objectives).sum()
        if total.requires_grad:  # otherwise no merged parameter takes part
            total.backward()  # type: ignore[no-untyped-call]
        return {
            name: Outcome(value.item(), values.detach())
            for (name, values), value in zip(named, objectives, strict=True)
        }

    def _groups(self, step: int) -> Iterator[Sequence[Pair]]:
        """Group neighbouring tasks that can share a pass, as many as fit into one."""
        pairs = ((task, self.batches.of(task, step).to(self.device)) for task in self.tasks)
        for kind, members in groupby(pairs, key=self._kind):
            yield from self._split(kind, members)

    def _split(self, kind: object, members: Iterator[Pair]) -> Iterator[Sequence[Pair]]:
        for first in members:
            capacity = 1 if kind is None else self._capacity(kind, first)
            yield [first, *islice(members, capacity - 1)]

    def _kind(self, pair: Pair) -> object:
        """Return a key of the tasks that can share a pass: same features, same form of inputs."""
        task, batch = pair
        if not isinstance(task, FeatureTask) or task.name in self.task_parameters:
            return None
        return type(task).features, batch.form

    def _capacity(self, kind: object, pair: Pair) -> int:
        """Return how many tasks of a kind fit into a pass, as measured for the first of them."""
        if kind not in self.capacities:
            self.capacities[kind] = max(1, self.shared // max(self._activations(*pair), 1))
        return self.capacities[kind]

    def _activations(self, task: AdaptiveTask, batch: Batch) -> int:
        """Return the bytes that each task adds to a shared pass until its backward pass.

        These grow with the examples. What does not, such as parameters in bf16, is saved once.
        """
        examples = len(batch)
        saved = self._saved_bytes((task, batch))
        if examples == 1:
            return saved
        saved_for_one = self._saved_bytes((task, batch.part(0, 1)))
        return (saved - saved_for_one) * examples // (examples - 1)

    def _saved_bytes(self, pair: Pair) -> int:
        """Return the bytes that autograd saves in a pass, without the model's parameters."""
        parameters = {
            parameter.untyped_storage().data_ptr() for parameter in self.model.parameters()
        }
        saved: dict[int, int] = {}

        def record(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in parameters:
                saved[storage.data_ptr()] = storage.nbytes()
            return tensor.detach()  # the tensor itself would keep the whole graph alive

        with torch.autograd.graph.saved_tensors_hooks(record, lambda tensor: tensor):
            graph = self._logits([pair])  # while it lives, no two tensors share an address
        del graph
        return sum(saved.values())

    def _logits(self, group: Sequence[Pair]) -> list[Tensor]:
        task: Any = group[0][0]
        if not isinstance(task, FeatureTask):
            with self._autocast():
                return [widened(task.logits(self.model, group[0][1]))]
        with self._autocast():
            joined = Batch.joined([batch for _, batch in group])
            features = task.features(self.model, joined.inputs)
        parts = torch.split(widened(features), [len(batch) for _, batch in group])
        heads: list[Any] = [task for task, _ in group]
        return [head.head(part) for head, part in zip(heads, parts, strict=True)]

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16)
