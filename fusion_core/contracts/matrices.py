"""The matrices inside of a pool's tensors: what names and shapes alone say, and what a pool says.

The rules are for what torch and transformers store together under any configuration. Which rows of
a fused `qkv` are whose, or whether a mixture is stored transposed, only the configuration says: a
pool that knows it has rules of its own.
"""

from __future__ import annotations

import re
from collections import Counter
from typing import TYPE_CHECKING

from fusion_core.errors import BrokenPluginError
from fusion_core.weights.matrices import Columns, Matrices, Rows, Stacked, slots_of
from fusion_core.weights.merging.piece import is_merged
from fusion_core.weights.packing import Layout

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from fusion_core.weights.matrices import Slot
    from fusion_core.weights.source import TensorInfo

    Shape = Sequence[int]

#: The experts of a mixture in one tensor: `experts.down_proj`, `experts.down_proj_bias`.
_EXPERTS = re.compile(r"((?:.*\.)?experts\.)([^.]+?)(?:[._](weight|bias))?")
#: The gate and the projection beside it in one linear layer.
_GATE_UP = re.compile(r"((?:.*\.)?)gate_up_proj\.(weight|bias)")
#: Query, key and value in one linear layer, as the vision towers of transformers have them.
_QKV = re.compile(r"((?:.*\.)?qkv\.)(weight)")
#: The rank from which on a weight is a convolution's, and that from which on its name says so.
_CONVOLUTION, _NAMED_CONVOLUTION = 4, 3


def matrices_by_name(name: str, shape: Shape) -> Matrices:
    """Return the matrices of a tensor as far as its name and its shape say them.

    `experts.*` of three dimensions is a batch of matrices, and a bias of two a batch of vectors.
    `gate_up_proj` of a linear layer holds two halves, `qkv` of shape (3 d, d) three thirds. A
    weight of four dimensions or more is a convolution, and so is one of three if its name says so.
    Everything else is as it is stored: torch's `in_proj_weight`, too, which published results of
    spectral methods take for one matrix.
    """
    if not all(shape):
        return Matrices()
    rules: dict[re.Pattern[str], Callable[[re.Match[str], Shape], Matrices | None]] = {
        _EXPERTS: _experts,
        _GATE_UP: _gate_up,
        _QKV: _qkv,
    }
    for pattern, rule in rules.items():
        matched = pattern.fullmatch(name)
        declared = None if matched is None else rule(matched, shape)
        if declared is not None:
            return declared
    convolves = ("conv" in name and len(shape) >= _NAMED_CONVOLUTION) or len(shape) >= _CONVOLUTION
    is_weight = name.rpartition(".")[2] == "weight"
    return Matrices.convolution(shape) if convolves and is_weight else Matrices()


def _experts(matched: re.Match[str], shape: Shape) -> Matrices | None:
    before, projection, kind = matched.groups()
    name = f"{before}{{index}}.{projection}.{kind or 'weight'}"
    if kind == "bias":
        return Matrices((Stacked(shape[0]), Rows(shape[1])), name) if len(shape) == 2 else None  # noqa: PLR2004
    if len(shape) != 3:  # noqa: PLR2004 - experts, rows, columns
        return None
    return Matrices((Stacked(shape[0]), Rows(shape[1]), Columns(shape[2])), name)


def _gate_up(matched: re.Match[str], shape: Shape) -> Matrices | None:
    half, rest = divmod(shape[0], 2)
    return None if rest else _below(matched, shape, gate_proj=half, up_proj=half)


def _qkv(matched: re.Match[str], shape: Shape) -> Matrices | None:
    third = shape[-1]
    is_fused = shape[0] == 3 * third
    return _below(matched, shape, q=third, k=third, v=third) if is_fused else None


def _below(matched: re.Match[str], shape: Shape, **rows: int) -> Matrices | None:
    """Return matrices one below the other, or vectors one after the other."""
    before, kind = matched.groups()
    if len(shape) != (2 if kind == "weight" else 1):
        return None
    columns = [Columns(size) for size in shape[1:]]
    return Matrices((Rows(**rows), *columns), f"{before}{{part}}.{kind}")


def layout_of(
    infos: Mapping[str, TensorInfo],
    declare: Callable[[str, tuple[int, ...]], Matrices],
    pool: str,
) -> Layout:
    """Return where matrices lie in the tensors that are not merged as they are stored.

    `declare` is a pool's `matrices`. Raises `BrokenPluginError`, which names the pool, for what
    does not fit the tensors.
    """
    slots: dict[str, tuple[Slot, ...]] = {}
    for name, info in infos.items():
        if not is_merged(info):
            continue
        try:
            declared = slots_of(info, declare(name, info.shape))
        except ValueError as error:
            raise BrokenPluginError(
                f"the model pool {pool} declares matrices that do not fit the tensor {name!r} of "
                f"shape {list(info.shape)}: {error}",
                hint="Its `matrices` names the tensor's axes in the order in which it is stored.",
            ) from error
        if declared:
            slots[name] = declared
    layout = Layout(slots, {name: infos[name].shape for name in slots})
    if slots:
        _check_names(infos.values(), layout, pool)
    return layout


def _check_names(infos: Iterable[TensorInfo], layout: Layout, pool: str) -> None:
    """Raise `BrokenPluginError` where two matrices have one name."""
    counts = Counter(matrix.name for info in infos for matrix in layout.infos_of(info))
    name, count = counts.most_common(1)[0]
    if count > 1:
        raise BrokenPluginError(
            f"the model pool {pool} declares {count} matrices called {name!r}",
            hint="Its `matrices` gives every matrix a name that no other tensor has.",
        )
