"""The engine: read, merge and write every piece of a source, on an executor.

It knows sources and a staging directory, no algorithms. Pieces are cut as the source allows, at
places that do not depend on the number of workers, and each piece is written where it belongs as
soon as it is merged: memory holds a few pieces, whatever the model's size.

Workers that share our memory are given a few pieces at a time. Other processes open all files
themselves and are given whole tensors, so that each tensor's survey is made where it is used. Where
they may be on other machines, they are given whole shards: a network file system mixes up what two
machines write on one page.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING

from fusion_core.errors import RecipeError
from fusion_core.progress import Progress
from fusion_core.weights.merging.execution import (
    AHEAD,
    SerialExecutor,
    in_units,
    is_in_process,
    is_on_one_machine,
    run_all,
    surveyors,
)
from fusion_core.weights.source import check_values
from fusion_core.weights.state_dict import held_in_memory

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from concurrent.futures import Executor

    import torch

    from fusion_core.weights.source import TensorInfo, WeightSource
    from fusion_core.weights.writing._shards import Shards
    from fusion_core.weights.writing.writer import Staging

    Span = tuple[TensorInfo, int, int]
    Unit = tuple[Span, ...]

#: Bytes that a unit for another process has at least: it costs a sync.
_WORTH_SENDING = 32 * 2**20


def materialise(
    source: WeightSource,
    staging: Staging,
    *,
    shard_size: int,
    executor: Executor | None = None,
    progress: Progress | None = None,
) -> None:
    """Compute a source and write it as safetensors shards into a staging directory.

    What the directory holds from a run that was stopped is not computed again. Raises `RecipeError`
    for a source in memory on an executor of other processes.
    """
    executor = executor or SerialExecutor()
    if not is_in_process(executor):
        _check_is_on_disk(source, executor)
    staging.lay_out(list(source.infos.values()), shard_size=shard_size)
    done = staging.finished_tensors
    infos = [info for info in source.infos.values() if info.name not in done]
    if not is_in_process(executor):
        staging.shards.sync(infos)  # what is not on the disk yet would land on what workers write
    if infos:
        source.prepare(executor)
    work = _Work(source, staging.shards, is_shared=is_in_process(executor))
    total = sum(info.nbytes for info in infos)
    label = "merge the rest" if done else "merge"
    with (progress or Progress()).track(label, total=total, unit="B") as advance:
        for spans in run_all(executor, work, _units(source, infos, staging.shards, executor)):
            for info, start, stop in spans:
                advance((stop - start) * info.dtype.itemsize)
                if stop == info.numel:
                    staging.finished(info.name)
    staging.finish_shards()


@dataclass(frozen=True)
class _Work:
    """What is done with one unit, in this process or, where nothing `is_shared`, in another."""

    source: WeightSource
    shards: Shards
    is_shared: bool

    def __call__(self, unit: Unit) -> Unit:
        for info, start, stop in unit:
            self.shards.write(info, start, self._read(info, start, stop))
        if not self.is_shared:  # only this machine can make what it has written durable
            self.shards.sync([info for info, _, _ in unit])
        return unit

    def _read(self, info: TensorInfo, start: int, stop: int) -> torch.Tensor:
        values = self.source.read(info.name, start, stop)
        check_values(values, info, (start, stop), self.source)  # more would reach what lies behind
        return values


def _units(
    source: WeightSource, infos: Sequence[TensorInfo], shards: Shards, executor: Executor
) -> Iterator[Unit]:
    if is_in_process(executor):
        return _pieces(source, infos, executor)
    if is_on_one_machine(executor):
        return _tensors(source, infos)
    return _whole_shards(source, infos, shards)


def _pieces(
    source: WeightSource, infos: Sequence[TensorInfo], executor: Executor
) -> Iterator[Unit]:
    """Cut tensors into pieces, each tensor when it is prepared; the next ones are meanwhile."""

    def prepare(info: TensorInfo) -> TensorInfo:
        source.prepare(executor, info.name)
        return info

    with surveyors(executor) as threads:
        for info in run_all(threads, prepare, infos, window=AHEAD):
            yield from map(tuple, in_units(list(_spans(source, info)), executor))


def _whole_shards(
    source: WeightSource, infos: Sequence[TensorInfo], shards: Shards
) -> Iterator[Unit]:
    """Yield what is left of each shard, so that each has one writer; the largest first.

    Then the last ones, beside which workers have nothing to do, are small.
    """
    grouped = groupby(infos, key=lambda info: shards.layout.places[info.name].file)
    parts = [list(together) for _, together in grouped]
    for part in sorted(parts, key=lambda each: -sum(info.nbytes for info in each)):
        yield tuple(span for info in part for span in _spans(source, info))


def _spans(source: WeightSource, info: TensorInfo) -> Iterator[Span]:
    return ((info, start, stop) for start, stop in source.ranges(info.name))


def _tensors(source: WeightSource, infos: Sequence[TensorInfo]) -> Iterator[Unit]:
    """Yield whole tensors; small ones together."""
    gathered: list[Span] = []
    size = 0
    for info in infos:
        gathered += _spans(source, info)
        size += info.nbytes
        if size >= _WORTH_SENDING:
            yield tuple(gathered)
            gathered, size = [], 0
    if gathered:
        yield tuple(gathered)


def _check_is_on_disk(source: WeightSource, executor: Executor) -> None:
    live = held_in_memory(source)
    if live is not None:
        raise RecipeError(
            f"{live.describe()} is in this process's memory, and the {type(executor).__name__} "
            "works in others",
            hint="Use --executor threads, or save the model and name its directory.",
        )
