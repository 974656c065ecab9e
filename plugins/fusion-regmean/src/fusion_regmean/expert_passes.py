"""Passes of examples through experts, to compare their layers' inputs with a merge's."""

from __future__ import annotations

import math
from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fusion_adapting import build_live, observe_inputs
from fusion_core.errors import FusionError
from fusion_regmean.live_model import BATCH_SIZE, examples
from fusion_regmean.sources import tasks_of

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence

    from torch import Tensor, nn

    from fusion_core import AdaptiveTask, Batch, ModelPool, RunContext
    from fusion_regmean.live_model import LiveModel

    #: the names of a block's weights
    Names = Collection[str]
    #: the calls of a block's layers in a pass, in their order: a weight's name, and the inputs
    Calls = list[tuple[str, Tensor]]

#: Keep about so many bytes of experts' inputs.
_LIMIT = 2**29
#: The input of a batch that marks its predictions.
_PREDICTED = "predicted"


@dataclass(frozen=True)
class Pass:
    """A batch that passed through an expert, and the expert's calls of one block's layers."""

    task: AdaptiveTask
    batch: Batch
    calls: Calls

    def compare(self, live: LiveModel, see: Callable[[str, Tensor, Tensor], None]) -> None:
        """Call `see(name, inputs, expert's inputs)` for every call of the block in a merge.

        The batch passes through the merge up to the last call.
        """
        if not self.calls:
            return
        waiting = deque(self.calls)
        names = {name for name, _ in self.calls}
        layers = {layer: name for layer, name in live.layers.items() if name in names}

        def compare_call(layer: nn.Module, inputs: Tensor) -> None:
            name, expert_inputs = waiting.popleft()
            if (layers[layer], inputs.shape) != (name, expert_inputs.shape):
                raise self._mismatch(layers[layer])
            see(name, inputs, expert_inputs)
            if not waiting:
                raise _AllCompared

        with suppress(_AllCompared):
            observe_inputs(live.model, layers, self.task, self.batch, compare_call)
        if waiting:
            raise self._mismatch(waiting[0][0])

    def _mismatch(self, name: str) -> FusionError:
        return FusionError(
            f"task {self.task.name!r} calls the layer of {name!r} differently in the merge and in "
            "the expert, so their inputs cannot be compared",
            hint="`logits` must call every model in the same way for the same batch, whenever it "
            "is called. Do not keep results of an earlier call.",
        )


class _AllCompared(Exception):  # noqa: N818 - not an error
    """The rest of a merge's pass is not needed."""


@dataclass(frozen=True)
class ExpertPasses:
    """Passes of each expert's first `samples` unlabeled examples through it."""

    live: LiveModel
    pool: ModelPool[Any]
    context: RunContext
    samples: int

    def of(self, blocks: Sequence[Names]) -> list[dict[str, Iterable[Pass]]]:
        """Return each expert's passes through the next blocks, as many as fit in memory.

        If not even one block fits, its passes are made batch by batch, when they are needed.
        """
        parts = math.ceil(self.samples / BATCH_SIZE) * len(self.pool.experts)
        recorded: list[dict[str, Any]] = [{} for _ in blocks]
        for expert in self.pool.experts:
            for passes in self._through(expert, blocks[: len(recorded)], _LIMIT / parts):
                if not passes:
                    first = blocks[:1]
                    return [{name: self._one_by_one(name, first) for name in self.pool.experts}]
                del recorded[len(passes) :]
                for by_expert, one in zip(recorded, passes, strict=False):
                    by_expert.setdefault(expert, []).append(one)
        return recorded

    def _one_by_one(self, expert: str, block: Sequence[Names]) -> Iterator[Pass]:
        for (one,) in self._through(expert, block, math.inf):
            yield one

    def _through(self, expert: str, blocks: Sequence[Names], limit: float) -> Iterator[list[Pass]]:
        """Pass batches through an expert; yield the passes through the blocks that fit `limit`."""
        task = self._with_answers(tasks_of(self.context).adaptive(self.pool.task_of(expert)))
        model = build_live(self.pool, self.pool.experts[expert], self.context.device)
        twins = dict(model.named_modules())
        number_of = {name: number for number, names in enumerate(blocks) for name in names}
        layers = {
            twins[path]: self.live.layers[layer]
            for path, layer in self.live.model.named_modules()
            if self.live.layers.get(layer) in number_of
        }
        for batch in examples(task, self.samples, self.context):
            recorder = _Recorder(layers, number_of, limit, [[] for _ in blocks])
            observe_inputs(model, layers, task, batch, recorder.record)
            yield [Pass(task, batch, calls) for calls in recorder.calls]

    def _with_answers(self, task: AdaptiveTask) -> AdaptiveTask:
        """Return the task with whole answers, if they follow the texts that they answer.

        An encoder-decoder gets them in another call, whose padding has no mask.
        """
        whole = task.with_all_predictions()
        batch = next(examples(whole, 1, self.context))
        marks, mask = batch.tensors.get(_PREDICTED), batch.mask
        if marks is None or mask is None or marks.shape != mask.shape:
            return task
        return whole


@dataclass
class _Recorder:
    """Keeps the calls of the first blocks whose inputs fit into `limit` bytes."""

    names: Mapping[nn.Module, str]
    #: the number of the block of each weight
    number_of: Mapping[str, int]
    limit: float
    calls: list[Calls]
    size: int = 0

    def record(self, layer: nn.Module, inputs: Tensor) -> None:
        name = self.names[layer]
        number = self.number_of[name]
        if number < len(self.calls):
            self.calls[number].append((name, inputs.clone()))  # models may change it in place
            self.size += inputs.nbytes
        while self.size > self.limit:
            self.size -= sum(values.nbytes for _, values in self.calls.pop())
