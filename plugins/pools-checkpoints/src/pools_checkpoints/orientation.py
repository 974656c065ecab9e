"""Whether weights are stored as (outputs, inputs), as in torch, or transposed, as in Conv1D."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from fusion_core.weights import Columns, Layout, Matrices, Rows, Stacked

if TYPE_CHECKING:
    from collections.abc import Mapping

    from fusion_core.weights import TensorInfo, WeightSource

_MATRIX, _PACKED = 2, 3


def are_experts_transposed(gate: TensorInfo | None, down: TensorInfo | None) -> bool:
    """Tell whether the packed experts of a layer are stored as (inputs, outputs), as in GPT-OSS.

    A square parameter does not show this, so both are compared: `gate_up_proj` has two outputs per
    input of `down_proj`. Without `down_proj`, a gate with more outputs than inputs is assumed.
    """
    if gate is None or len(gate.shape) != _PACKED:
        return False
    if down is None or len(down.shape) != _PACKED:
        return gate.shape[2] > gate.shape[1]
    return gate.shape[2] == 2 * down.shape[1] and gate.shape[1] == down.shape[2]


def are_neighbours_transposed(base: WeightSource, name: str) -> bool | None:
    """Tell whether the weights nearest to one are stored as (inputs, outputs), as in Conv1D.

    A square weight does not show its orientation, and PEFT saves for all modules what was right for
    the last one. The biases of other weights show it: a bias has one entry per output. Returns None
    if no bias shows it.
    """
    if not any(other.endswith(".bias") for other in base.infos):
        return None
    prefix = name.removesuffix(".weight")
    while prefix:
        prefix = prefix.rpartition(".")[0]
        orientations = {
            bias_shape == info.shape[1:]
            for weight, info in base.infos.items()
            if weight.startswith(f"{prefix}." if prefix else "")
            and (bias_shape := _bias_shape(base, weight)) in {info.shape[1:], info.shape[:1]}
            and len(info.shape) == _MATRIX
            and info.shape[0] != info.shape[1]
        }
        if orientations:
            return orientations.pop() if len(orientations) == 1 else None
    return None


def _bias_shape(base: WeightSource, weight: str) -> tuple[int, ...] | None:
    bias = base.infos.get(f"{weight.removesuffix('.weight')}.bias")
    return bias.shape if bias is not None and weight.endswith(".weight") else None


def swap_axes(source: WeightSource, shapes: Mapping[str, tuple[int, ...]]) -> WeightSource:
    """Return a model whose batches (count, m, n) have these shapes, transposed where it needs it.

    Tensors that have the shape already, or fit it neither way, stay as they are.
    """
    stored, swapped, new_shapes = {}, {}, {}
    for name in shapes.keys() & source.infos.keys():
        info, shape = source.infos[name], shapes[name]
        if info.shape == shape or info.shape[:1] + info.shape[:0:-1] != shape:
            continue
        count, height, width = info.shape
        columns = Matrices((Stacked(count), Columns(height), Rows(width)))
        rows = Matrices((Stacked(count), Rows(width), Columns(height)))
        stored[name] = columns.slots(info)
        swapped[name] = rows.slots(replace(info, shape=shape))
        new_shapes[name] = shape
    return Layout(swapped, new_shapes).pack(Layout(stored, {}).unpack(source))
