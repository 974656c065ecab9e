"""Weights as named tensors that can be read one range at a time.

A checkpoint on disk is a `WeightSource`, a state dict in memory is one, and a merge of sources is
one again (`fusion_core.weights.merging`). An `Origin` records where the values came from.
"""

from __future__ import annotations

import ctypes
import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import torch

from fusion_core.errors import BrokenPluginError, WeightsError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from concurrent.futures import Executor

    from fusion_core.weights.origin import Origin

#: The end of names of variances, in batch norms.
_VARIANCES = "running_var"
#: Elements in one block. Pieces and partial statistics start and end at multiples of it for any
#: number of workers, so that results are the same to the last bit. Smaller ones cost more time in
#: Python; the operands of larger ones do not fit into one core's share of the cache.
BLOCK = 2**19

ModelT = TypeVar("ModelT")


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """The description of a tensor without its values."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def numel(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return self.numel * self.dtype.itemsize


class Cut(Enum):
    """How finely a tensor may be cut before it is merged."""

    ELEMENT = "element"
    ROW = "row"
    TENSOR = "tensor"

    def ranges(self, info: TensorInfo, blocks: int = 1) -> Iterator[tuple[int, int]]:
        """Cut a tensor into ranges of about `BLOCK` elements, as far as the cut allows.

        Between elements, ranges of several blocks are allowed too.
        """
        if self is Cut.ELEMENT:
            step = BLOCK * blocks
        elif self is Cut.TENSOR or len(info.shape) < 2:  # noqa: PLR2004 - a vector is one row
            step = max(info.numel, 1)
        else:
            row = max(math.prod(info.shape[1:]), 1)
            step = max(1, BLOCK // row) * row
        for start in range(0, max(info.numel, 1), step):
            yield start, min(start + step, info.numel)

    def coarser(self, other: Cut) -> Cut:
        """Return the coarser of two cuts."""
        return max(self, other, key=list(Cut).index)


@dataclass(frozen=True, slots=True)
class LowRank:
    """A tensor's difference from the base as a product of factors, which `read` returns.

    The factors have the shapes (m, rank) and (rank, n). The rank is known without reading. Rank 0
    says that the tensor equals the base's, whatever its shape.
    """

    rank: int
    read: Callable[[], tuple[torch.Tensor, torch.Tensor]]

    @classmethod
    def unchanged(cls, shape: Sequence[int]) -> LowRank:
        """Return the difference of a tensor that equals the base's."""
        height, width = (*shape, 1, 1)[:2]
        return cls(0, lambda: (torch.zeros(height, 0), torch.zeros(0, width)))


class Contradiction(NamedTuple):
    """A statement in a model's files that its tensors, or its base, contradict."""

    #: the file, and the key in it
    subject: str
    problem: str
    #: whether it makes a merge meaningless, not only doubtful
    is_serious: bool


class WeightSource(ABC):
    """Named tensors, read by range of their elements in row-major order.

    `infos` describes every tensor, in the order in which reading is cheapest. Sources are
    immutable, and several threads may read them at once.
    """

    infos: Mapping[str, TensorInfo]
    #: the finest cut at which this source can be read
    cut: Cut = Cut.ELEMENT
    #: whether values are differences from the base of the pool
    is_delta: bool = False

    @abstractmethod
    def read(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Return the elements [start, stop) of a tensor, one-dimensional, in its own dtype.

        The caller must not write into the result, which may share memory with the source.
        """

    def read_rounded(
        self, name: str, start: int, stop: int, dtype: torch.dtype
    ) -> tuple[torch.Tensor, bool]:
        """Return what `read` returns, in another dtype, and whether it is known to be finite.

        Override it in a source that rounds while it computes.
        """
        values = self.read(name, start, stop)
        check_values(values, self.infos[name], (start, stop), self)
        return values.to(dtype), False

    def file_range(self, name: str, start: int) -> tuple[int, int] | None:
        """Return an open file's descriptor, and the offset in it of the element `start`.

        From there on, the file holds what `read` returns. None, the default, if no file does.
        Compiled functions read small parts of it, which stay in the processor's cache.
        """
        del name, start
        return None

    def ranges(self, name: str) -> Iterator[tuple[int, int]]:
        """Yield the ranges at which a tensor is read, in order; by default those of `cut`.

        A source that delegates `read` to another source delegates this too.
        """
        return self.cut.ranges(self.infos[name])

    def low_rank(self, name: str) -> LowRank | None:
        """Return a tensor's difference from the base as factors, or None if it has no factors.

        Adapters have them, and so have weighted sums of adapters, relative to the base of the sum.
        """
        del name
        return None

    def with_base(self, base: WeightSource) -> WeightSource:
        """Return the same differences from other weights of their base.

        Override it in a source of differences that reads its base. Default: the source itself.
        """
        del base
        return self

    def contradictions(self, base_config: Mapping[str, Any]) -> Iterator[Contradiction]:
        """Yield what the files say that their tensors, or the base, contradict.

        `base_config` is the `config.json` of the base, empty if it has none. `alignment.config`
        says whether serious ones are errors. Default: those of the sources that this one reads.
        """
        for source in self.sources:
            yield from source.contradictions(base_config)

    def tensor(self, name: str) -> torch.Tensor:
        """Return a whole tensor in its shape and dtype, in fresh memory.

        It is computed range by range, as the engine does.
        """
        return assemble(self, name).reshape(self.infos[name].shape)

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Return every tensor by name, in fresh memory."""
        return {name: self.tensor(name) for name in self.infos}

    @property
    def sources(self) -> tuple[WeightSource, ...]:
        """The sources that this one reads from; none if it holds its values itself."""
        return ()

    @property
    def kept_bytes(self) -> int:
        """The most bytes of decoded or gathered values that reading keeps for the next ranges."""
        return 0

    def prepare(self, executor: Executor, name: str | None = None) -> None:
        """Make the surveys that reading depends on: of the whole model, or of one tensor by name.

        The engine prepares the model once, then each tensor shortly before reading it. Without
        preparation, a source makes its surveys at the first read, on one core.
        """
        for source in self.sources:
            source.prepare(executor, name)

    def describe(self) -> str:
        """Return the name of this source for errors. Default: that of the first one it reads."""
        return self.sources[0].describe() if self.sources else type(self).__name__

    @property
    def origin(self) -> Origin | None:
        """Where this source's own values came from; None if it computed or was given them.

        The sources that it reads from have origins of their own: see `origins`.
        """
        return None


def walk(source: WeightSource) -> Iterator[WeightSource]:
    """Yield a source and all sources that it reads from, once each."""
    sources, waiting = {id(source): source}, [source]
    while waiting:
        operands = {id(operand): operand for operand in waiting.pop().sources}
        waiting += [operand for key, operand in operands.items() if key not in sources]
        sources |= operands
    yield from sources.values()


def collect_origins(source: WeightSource) -> list[Origin]:
    """Return the origins of a source and of all sources that it reads from."""
    inner = [origin for operand in source.sources for origin in collect_origins(operand)]
    outer = [] if source.origin is None else [source.origin]
    return list({id(origin): origin for origin in (*inner, *outer)}.values())


def check_unchanged(source: WeightSource) -> None:
    """Raise `IntegrityError` if a file that a source reads from changed since it was opened."""
    for origin in collect_origins(source):
        origin.check_unchanged()


def reference_model(base: ModelT | None, experts: Mapping[str, ModelT]) -> ModelT:
    """Return the model that sets names, shapes and dtypes: the base, or else the first expert."""
    return base if base is not None else next(iter(experts.values()))


def assemble(
    source: WeightSource,
    name: str,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
) -> torch.Tensor:
    """Read a whole tensor, flat, in the ranges of its source: the same bytes as the engine.

    `dtype` is the result's, by default the tensor's own. Ranges are read one at a time.
    """
    info = source.infos[name]
    whole = torch.empty(info.numel, dtype=dtype or info.dtype, device=device)
    for start, stop in source.ranges(name):
        values = source.read(name, start, stop)
        check_values(values, info, (start, stop), source)
        whole[start:stop] = values
    return whole


def are_equal(source: WeightSource, first: str, second: str) -> bool:
    """Tell whether two tensors of a source have the same shape, dtype and values."""
    one, other = source.infos[first], source.infos[second]
    return (one.shape, one.dtype) == (other.shape, other.dtype) and all(
        torch.equal(source.read(first, *span), source.read(second, *span))
        for span in source.ranges(first)
    )


def view_bytes(values: torch.Tensor) -> memoryview:
    """Return a contiguous tensor's own bytes, without numpy; the view keeps the tensor alive."""
    if not values.nbytes:
        return memoryview(b"")
    view = (ctypes.c_char * values.nbytes).from_address(values.data_ptr())
    view.owner = values  # type: ignore[attr-defined] # ctypes keeps no reference of its own
    return memoryview(view).cast("B")


def check_variances(values: torch.Tensor, info: TensorInfo, source: WeightSource) -> None:
    """Raise `WeightsError` for negative variances of a batch norm: a model with them gives NaN."""
    if not info.name.endswith(_VARIANCES) or not values.numel():
        return
    lowest = float(values.min())
    if lowest < 0:
        raise WeightsError(
            f"{source.describe()}: the merged variances {info.name!r} are negative, down to "
            f"{lowest:.3g}",
            hint="Merge the statistics of batch norms by a smaller scale, or take the base's: "
            "skip: '*.running_*'.",
        )


def check_values(
    values: object, info: TensorInfo, span: tuple[int, int], source: WeightSource
) -> None:
    """Raise `BrokenPluginError` unless values fit their tensor in number and kind."""
    start, stop = span
    if not isinstance(values, torch.Tensor):
        problem = f"a {type(values).__name__} instead"
    elif values.numel() != stop - start:
        problem = f"{values.numel()} elements"
    elif values.is_complex() or values.is_floating_point() != info.dtype.is_floating_point:
        problem = f"{values.dtype} elements"
    else:
        return
    raise BrokenPluginError(
        f"{source.describe()} gave {problem} of the {stop - start} from {start} on of "
        f"tensor {info.name!r}, which is {info.dtype}"
    )
