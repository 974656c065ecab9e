"""Merges as lazy sources: nothing is computed before it is read.

A `MergedSource` applies a `Kernel` to aligned operands, piece by piece; the kernel is the whole
method. Merges are sources, so they can be operands of further merges.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from fusion_core.weights.merging.compiled import blocks_at_once
from fusion_core.weights.merging.kernels import AppliedKernel, Kernel
from fusion_core.weights.merging.piece import Piece, check_finite, is_merged
from fusion_core.weights.source import LowRank, WeightSource

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from concurrent.futures import Executor

    from fusion_core.weights.source import TensorInfo


class MergedSource(AppliedKernel[Kernel], WeightSource):
    """A kernel applied to operands; computed when it is read.

    Its floating-point tensors are fp32, or fp64 where an operand is. A merge of merges therefore
    rounds once, at the end, where a `CastSource` gives it the output's dtype. Tensors that are not
    floating-point are the reference's (the base's, or the first expert's).
    """

    infos: Mapping[str, TensorInfo]

    @property
    def function(self) -> Callable[[Piece], torch.Tensor]:
        """The kernel's `merge`."""
        return self.kernel.merge

    def read(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Merge a range of a tensor, which must be one that `cut` gives."""
        return self.read_rounded(name, start, stop, self.infos[name].dtype)[0]

    def read_rounded(
        self, name: str, start: int, stop: int, dtype: torch.dtype
    ) -> tuple[torch.Tensor, bool]:
        """Merge a range, and round it if a compiled function has not done so."""
        info = self.infos[name]
        reference = self.operands.reference
        if not is_merged(info):
            return reference.read_rounded(name, start, stop, dtype)
        if not self.computes(name):
            values = reference.read(name, start, stop)
            if self.operands.finite:
                check_finite(values, name, reference.describe())
            return values.to(info.dtype).to(dtype), False
        stored_dtype = None if dtype is info.dtype else dtype
        merged = self.compute(self.function, (name, start, stop), stored_dtype=stored_dtype)
        is_rounded = merged.dtype is stored_dtype
        if not is_rounded:
            merged = merged.to(info.dtype).to(dtype)
        return merged.reshape(-1).cpu(), is_rounded

    def ranges(self, name: str) -> Iterator[tuple[int, int]]:
        """Yield the ranges of `cut`, or larger ones if a compiled function takes them."""
        info = self.infos[name]
        if not is_merged(info):
            return self.cut.ranges(info)
        first = Piece(self.operands, info, next(self.cut.ranges(info)), self.cut)
        return self.cut.ranges(info, blocks_at_once(self.function, first))

    def computes(self, name: str) -> bool:
        """Tell whether the kernel computes a tensor: a sum of zeros is the base."""
        if not is_merged(self.infos[name]):
            return False
        return self.kernel.constant_coefficients(name) is None or not self.is_unchanged(name)

    def low_rank(self, name: str) -> LowRank | None:
        """Join the experts' factors, if the merge is a weighted sum of task vectors."""
        if not is_merged(self.infos[name]):
            has_base = self.operands.base is not None
            return LowRank.unchanged(self.infos[name].shape) if has_base else None
        coefficients = self.kernel.constant_coefficients(name)
        parts = self.operands.low_rank(name)
        if coefficients is None or parts is None:
            return None
        pairs = zip(coefficients, parts, strict=True)
        scaled = [(factor, part) for factor, part in pairs if part.rank and factor]
        if not scaled:
            return LowRank.unchanged(self.infos[name].shape)

        def read() -> tuple[torch.Tensor, torch.Tensor]:
            factors = [(factor, *part.read()) for factor, part in scaled]
            left = torch.cat([left * factor for factor, left, _ in factors], dim=1)
            return left, torch.cat([right for *_, right in factors])

        return LowRank(sum(part.rank for _, part in scaled), read)

    @property
    def sources(self) -> tuple[WeightSource, ...]:
        """The operands."""
        return self.operands.sources

    def prepare(self, executor: Executor, name: str | None = None) -> None:
        """Prepare the operands, then make the survey that the kernel's scope asks for."""
        super().prepare(executor, name)
        self.make_surveys(executor, name)

    def describe(self) -> str:
        """Name the method."""
        return f"merge by {self.method}"


class CastSource(WeightSource):
    """A source with other dtypes: it rounds a merge to the dtypes in which it is stored."""

    def __init__(
        self, source: WeightSource, infos: Mapping[str, TensorInfo], *, finite: bool
    ) -> None:
        """Give the tensors the dtypes of `infos`; `finite` refuses overflow."""
        self._source = source
        self._finite = finite
        self.infos = infos
        self.cut = source.cut

    def read(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Read and round."""
        info = self.infos[name]
        values, is_checked = self._source.read_rounded(name, start, stop, info.dtype)
        if self._finite and not is_checked and info.dtype.is_floating_point:
            check_finite(values, name, f"{self.describe()} in {info.dtype}")
        return values

    def ranges(self, name: str) -> Iterator[tuple[int, int]]:
        """Yield the ranges of the source."""
        return self._source.ranges(name)

    def low_rank(self, name: str) -> LowRank | None:
        """Return the factors before rounding."""
        return self._source.low_rank(name)

    @property
    def sources(self) -> tuple[WeightSource, ...]:
        """The source before rounding."""
        return (self._source,)

    def describe(self) -> str:
        """Name the source."""
        return self._source.describe()
