"""The engine: read, merge and write every piece of a source, on an executor.

It knows sources and a staging directory, no algorithms. Pieces are cut as the source allows, at
places that do not depend on the number of workers, and each piece is written where it belongs as
soon as it is merged: memory holds a few pieces, whatever the model's size.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fusion_core.progress import Progress
from fusion_core.weights.execution import AHEAD, SerialExecutor, run_all, surveyors

if TYPE_CHECKING:
    from collections.abc import Iterator
    from concurrent.futures import Executor

    from fusion_core.weights.format import TensorInfo
    from fusion_core.weights.source import WeightSource
    from fusion_core.weights.writer import Staging

Unit = tuple["TensorInfo", int, int]


def materialise(
    source: WeightSource,
    staging: Staging,
    *,
    shard_size: int,
    executor: Executor | None = None,
    progress: Progress | None = None,
) -> None:
    """Compute a source and write it as safetensors shards into a staging directory."""
    executor = executor or SerialExecutor()
    infos = list(source.infos.values())
    staging.lay_out(infos, shard_size=shard_size)
    source.prepare(executor)

    def work(unit: Unit) -> int:
        info, start, stop = unit
        staging.write(info, start, source.read(info.name, start, stop))
        return (stop - start) * info.dtype.itemsize

    total = sum(info.nbytes for info in infos)
    with (progress or Progress()).track("merge", total=total, unit="B") as advance:
        for count in run_all(executor, work, _units(source, infos, executor)):
            advance(count)
    staging.finish_shards()


def _units(source: WeightSource, infos: list[TensorInfo], executor: Executor) -> Iterator[Unit]:
    """Cut tensors into units, each tensor when it is prepared; the next ones are meanwhile."""

    def prepare(info: TensorInfo) -> TensorInfo:
        source.prepare(executor, info.name)
        return info

    with surveyors(executor) as threads:
        for info in run_all(threads, prepare, infos, window=AHEAD):
            for start, stop in source.cut.ranges(info):
                yield info, start, stop
