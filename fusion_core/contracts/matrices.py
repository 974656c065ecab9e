"""The matrices inside a pool's tensors, by default from names and shapes.

The rules cover what torch and transformers always store together. Some layouts depend on the
configuration, such as the order of rows in a fused `qkv` or a transposed mixture. A pool that
knows its configuration overrides `ModelPool.matrices`.
"""

from __future__ import annotations

import re
from collections import Counter
from typing import TYPE_CHECKING

from fusion_core.errors import BrokenPluginError
from fusion_core.weights.matrices import Columns, Matrices, Rows, Stacked, find_slots
from fusion_core.weights.merging.piece import is_merged
from fusion_core.weights.packing import Layout

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from fusion_core.weights.matrices import Slot
    from fusion_core.weights.source import TensorInfo

    Shape = Sequence[int]

#: All experts of a mixture in one tensor: `experts.down_proj`, `experts.down_proj_bias`.
_EXPERTS = re.compile(r"((?:.*\.)?experts\.)([^.]+?)(?:[._](weight|bias))?")
#: The gate and up projections in one linear layer.
_GATE_UP = re.compile(r"((?:.*\.)?)(?:gate_up|up_gate)_proj\.(weight|bias)")
#: Query, key and value in one linear layer, as in the vision towers of transformers.
_QKV = re.compile(r"((?:.*\.)?qkv\.)(weight)")
#: The rank from which a weight is a convolution, and from which its name may say so.
_CONVOLUTION, _NAMED_CONVOLUTION = 4, 3


def matrices_by_name(name: str, shape: Shape) -> Matrices:
    """Return the matrices of a tensor as far as its name and shape determine them.

    - `experts.*` with three dimensions is a batch of matrices, with two a batch of bias vectors.
    - `gate_up_proj` or `up_gate_proj` of a linear layer is two halves.
    - `qkv.weight` of shape (3 d, d) is three thirds.
    - A weight with four or more dimensions is a convolution, and with three if its name contains
      "conv".

    Any other tensor is one matrix as stored, including torch's `in_proj_weight`: published results
    of spectral methods treat that as one matrix, too.
    """
    if not all(shape):
        return Matrices()
    rules: dict[re.Pattern[str], Callable[[re.Match[str], Shape], Matrices | None]] = {
        _EXPERTS: _experts,
        _GATE_UP: _gate_up,
        _QKV: _qkv,
    }
    for pattern, rule in rules.items():
        match = pattern.fullmatch(name)
        matrices = None if match is None else rule(match, shape)
        if matrices is not None:
            return matrices
    convolves = ("conv" in name and len(shape) >= _NAMED_CONVOLUTION) or len(shape) >= _CONVOLUTION
    is_weight = name.rpartition(".")[2] == "weight"
    return Matrices.convolution(shape) if convolves and is_weight else Matrices()


def _experts(match: re.Match[str], shape: Shape) -> Matrices | None:
    prefix, projection, kind = match.groups()
    name = f"{prefix}{{index}}.{projection}.{kind or 'weight'}"
    if kind == "bias":
        return Matrices((Stacked(shape[0]), Rows(shape[1])), name) if len(shape) == 2 else None  # noqa: PLR2004
    if len(shape) != 3:  # noqa: PLR2004 - experts, rows, columns
        return None
    return Matrices((Stacked(shape[0]), Rows(shape[1]), Columns(shape[2])), name)


def _gate_up(match: re.Match[str], shape: Shape) -> Matrices | None:
    half, remainder = divmod(shape[0], 2)
    is_up_first = match[0].startswith("up", match.end(1))
    parts = ("up_proj", "gate_proj") if is_up_first else ("gate_proj", "up_proj")
    return None if remainder else _split_rows(match, shape, **dict.fromkeys(parts, half))


def _qkv(match: re.Match[str], shape: Shape) -> Matrices | None:
    third = shape[-1]
    is_fused = shape[0] == 3 * third
    return _split_rows(match, shape, q=third, k=third, v=third) if is_fused else None


def _split_rows(match: re.Match[str], shape: Shape, **rows: int) -> Matrices | None:
    """Split a weight of two dimensions, or a bias of one, into named blocks of rows."""
    prefix, kind = match.groups()
    if len(shape) != (2 if kind == "weight" else 1):
        return None
    columns = [Columns(size) for size in shape[1:]]
    return Matrices((Rows(**rows), *columns), f"{prefix}{{part}}.{kind}")


def layout_of(
    infos: Mapping[str, TensorInfo],
    declare: Callable[[str, tuple[int, ...]], Matrices],
    pool: str,
) -> Layout:
    """Return the positions of matrices in all tensors that are not merged as stored.

    `declare` is a pool's `matrices`, and `pool` its name for errors. Raises `BrokenPluginError` for
    declarations that do not fit the tensors, or that name two matrices alike.
    """
    slots: dict[str, tuple[Slot, ...]] = {}
    for name, info in infos.items():
        if not is_merged(info):
            continue
        try:
            declared = find_slots(info, declare(name, info.shape))
        except ValueError as error:
            raise BrokenPluginError(
                f"the model pool {pool} declares matrices that do not fit the tensor {name!r} of "
                f"shape {list(info.shape)}: {error}",
                hint="Its `matrices` must name the tensor's axes in the order of its shape.",
            ) from error
        if declared:
            slots[name] = declared
    layout = Layout(slots, {name: infos[name].shape for name in slots})
    if slots:
        counts = Counter(
            matrix.name for info in infos.values() for matrix in layout.describe_matrices(info)
        )
        name, count = counts.most_common(1)[0]
        if count > 1:
            raise BrokenPluginError(
                f"the model pool {pool} declares {count} matrices called {name!r}",
                hint="Its `matrices` must give every matrix a name that no other tensor has.",
            )
    return layout
