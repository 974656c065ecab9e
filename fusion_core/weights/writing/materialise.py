"""The engine: read, merge and write every piece of a source on an executor.

It knows sources and a staging directory, but no algorithms. The source determines where tensors are
cut, independently of the number of workers. Each piece is written as soon as it is merged, so
memory holds a few pieces, whatever the size of the model.

A unit of work depends on the executor:

- Threads of this process receive a few pieces at a time.
- Other processes open all files themselves. They receive whole tensors, so that a tensor's survey
  is made where it is used.
- Other machines receive whole shards, because a network file system mixes up what two machines
  write on one page.
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
    group_by_size,
    group_into_units,
    is_in_process,
    is_on_one_machine,
    run_all,
    survey_executor,
)
from fusion_core.weights.reading.format import build_header
from fusion_core.weights.source import check_values, check_variances, view_bytes
from fusion_core.weights.state_dict import find_in_memory_source
from fusion_core.weights.writing._shards import STEM

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from concurrent.futures import Executor

    import torch

    from fusion_core.weights.source import TensorInfo, WeightSource
    from fusion_core.weights.writing._shards import Shards
    from fusion_core.weights.writing.writer import Staging

    Span = tuple[TensorInfo, int, int]
    Unit = tuple[Span, ...]

#: The least bytes in a unit for another process, which costs a sync.
_WORTH_SENDING = 32 * 2**20


def materialise(  # noqa: PLR0913 - what is written, where, and how
    source: WeightSource,
    staging: Staging,
    *,
    shard_size: int,
    stem: str = STEM,
    executor: Executor | None = None,
    progress: Progress | None = None,
) -> None:
    """Compute a source and write it as safetensors shards into a staging directory.

    `stem` begins the names of the files; several files must be called `model`.

    Tensors that a stopped run has finished are not computed again. Raises `RecipeError` for a
    source in memory on an executor of other processes.
    """
    executor = executor or SerialExecutor()
    is_local = is_in_process(executor)
    if not is_local and (live := find_in_memory_source(source)) is not None:
        raise RecipeError(
            f"{live.describe()} is in this process's memory, and the {type(executor).__name__} "
            "works in other processes",
            hint="Use --executor threads, or save the model and name its directory.",
        )
    staging.lay_out(list(source.infos.values()), shard_size=shard_size, stem=stem)
    finished = staging.finished_tensors
    infos = [info for info in source.infos.values() if info.name not in finished]
    if not is_local:
        staging.shards.sync(infos)  # a later write-back would overwrite the workers' data
    if infos:
        source.prepare(executor)
    work = _Work(source, staging.shards, is_local=is_local)
    total = sum(info.nbytes for info in infos)
    label = "merge the rest" if finished else "merge"
    with (progress or Progress()).track(label, total=total, unit="B") as advance:
        for unit in run_all(executor, work, _units(source, infos, staging.shards, executor)):
            for info, start, stop in unit:
                advance((stop - start) * info.dtype.itemsize)
                if stop == info.numel:
                    staging.mark_finished(info)
    staging.finish_shards()


@dataclass(frozen=True)
class _Work:
    """Computes and writes one unit, in this process or in another."""

    source: WeightSource
    shards: Shards
    is_local: bool

    def __call__(self, unit: Unit) -> Unit:
        for info, start, stop in unit:
            self.shards.write(info, start, _read_checked(self.source, info, start, stop))
        if not self.is_local:  # only the worker's machine can sync what the worker wrote
            self.shards.sync([info for info, _, _ in unit])
        return unit


def _read_checked(source: WeightSource, info: TensorInfo, start: int, stop: int) -> torch.Tensor:
    values = source.read(info.name, start, stop)
    check_values(values, info, (start, stop), source)  # extra values would overwrite the next ones
    check_variances(values, info, source)
    return values


def _units(
    source: WeightSource, infos: Sequence[TensorInfo], shards: Shards, executor: Executor
) -> Iterator[Unit]:
    if is_in_process(executor):
        return _pieces(source, infos, executor)
    if is_on_one_machine(executor):
        return _whole_tensors(source, infos)
    return _whole_shards(source, infos, shards)


def _pieces(
    source: WeightSource, infos: Sequence[TensorInfo], executor: Executor
) -> Iterator[Unit]:
    """Yield groups of pieces, while the next tensors are prepared. Small tensors share a group."""

    def prepare(tensors: Sequence[TensorInfo]) -> Sequence[TensorInfo]:
        for info in tensors:
            source.prepare(executor, info.name)
        return tensors

    groups = group_into_units(infos, executor, lambda info: info.numel, fewest=1)
    with survey_executor(executor) as threads:
        for tensors in run_all(threads, prepare, groups, window=AHEAD):
            spans = (span for info in tensors for span in _spans(source, info))
            yield from map(tuple, group_into_units(spans, executor, _elements_in))


def _elements_in(span: Span) -> int:
    _, start, stop = span
    return stop - start


def _whole_tensors(source: WeightSource, infos: Sequence[TensorInfo]) -> Iterator[Unit]:
    """Yield whole tensors, small ones together."""
    for tensors in group_by_size(infos, lambda info: info.nbytes, _WORTH_SENDING):
        yield tuple(span for info in tensors for span in _spans(source, info))


def _whole_shards(
    source: WeightSource, infos: Sequence[TensorInfo], shards: Shards
) -> Iterator[Unit]:
    """Yield the unfinished tensors of each shard, so that each shard has one writer.

    The largest come first, so that workers do not idle long while the last ones are written.
    """
    groups = groupby(infos, key=lambda info: shards.layout.locations[info.name].file)
    parts = [list(group) for _, group in groups]
    for part in sorted(parts, key=lambda part: -sum(info.nbytes for info in part)):
        yield tuple(span for info in part for span in _spans(source, info))


def _spans(source: WeightSource, info: TensorInfo) -> Iterator[Span]:
    return ((info, start, stop) for start, stop in source.ranges(info.name))


def serialise(source: WeightSource, executor: Executor) -> Iterator[bytes]:
    """Yield the content of one safetensors file in order, for tensors that go to a side file.

    The tensors are computed range by range on the executor.
    """
    header, _ = build_header(source.infos.values(), {})
    yield header

    def spans() -> Iterator[Span]:
        source.prepare(executor)
        for info in source.infos.values():
            source.prepare(executor, info.name)
            yield from _spans(source, info)

    yield from run_all(executor, _Serialisation(source), spans())


@dataclass(frozen=True)
class _Serialisation:
    source: WeightSource

    def __call__(self, span: Span) -> bytes:
        return bytes(view_bytes(_read_checked(self.source, *span).contiguous()))
