"""Merges as lazy sources: nothing is computed before it is read.

A `MergedSource` applies a `Kernel` to aligned operands, piece by piece; the kernel is the whole
method. Merges are sources, so they are operands of further merges.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fusion_core.weights.merging.applied import Applied, Kernel
from fusion_core.weights.merging.piece import check_finite, is_merged
from fusion_core.weights.source import WeightSource, check_values

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from concurrent.futures import Executor

    import torch

    from fusion_core.weights.source import TensorInfo


class MergedSource(Applied[Kernel], WeightSource):
    """A kernel applied to operands; computed when it is read.

    Its floating-point tensors are fp32 (fp64 where an operand is): a merge of merges rounds once,
    at the end, where a `CastSource` gives them the output's dtype. Tensors that are not
    floating-point are the reference's (the base's, or the first expert's).
    """

    infos: Mapping[str, TensorInfo]

    def read(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Merge a range of a tensor, which must be one that `cut` gives."""
        info = self.infos[name]
        if not is_merged(info):
            return self.operands.reference.read(name, start, stop)
        merged = self.compute(self.kernel.merge, (name, start, stop))
        return merged.reshape(-1).to(info.dtype).cpu()

    @property
    def sources(self) -> tuple[WeightSource, ...]:
        """The operands."""
        return self.operands.sources

    def prepare(self, executor: Executor, name: str | None = None) -> None:
        """Prepare the operands, then survey what the kernel's scope says."""
        super().prepare(executor, name)
        self.make_surveys(executor, name)

    def describe(self) -> str:
        """Name the method."""
        return f"merge by {self.method}"


class CastSource(WeightSource):
    """A source with other dtypes: where a merge is rounded to what it is stored as."""

    def __init__(
        self, source: WeightSource, infos: Mapping[str, TensorInfo], *, finite: bool
    ) -> None:
        """`infos` describes the tensors as they are wanted; `finite` refuses overflow."""
        self._source = source
        self._finite = finite
        self.infos = infos
        self.cut = source.cut

    def read(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Read and round."""
        info = self.infos[name]
        values = self._source.read(name, start, stop)
        check_values(values, info, (start, stop), self._source)
        values, dtype = values.to(info.dtype), info.dtype
        if self._finite and dtype.is_floating_point:
            check_finite(values, name, f"{self.describe()} in {dtype}")
        return values

    def ranges(self, name: str) -> Iterator[tuple[int, int]]:
        """Yield those of the source."""
        return self._source.ranges(name)

    @property
    def sources(self) -> tuple[WeightSource, ...]:
        """The source that is rounded."""
        return (self._source,)

    def describe(self) -> str:
        """Name the source."""
        return self._source.describe()
