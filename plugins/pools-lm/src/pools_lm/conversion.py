"""The experts that published files store one by one and transformers holds in one tensor.

Since transformers 5 a live mixture has one tensor per layer and projection for all experts, and
files may hold either layout. The conversion mapping of transformers says which tensors of a file
become one, and in which order. It is asked for each model, so a model that a later version of
transformers packs needs no change here.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    Concatenate,
    MergeModulelist,
    Transpose,
    WeightConverter,
)

from fusion_core.weights import Columns, Layout, Matrices, Rows, Stacked, TensorInfo

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor
    from transformers import PreTrainedModel

    from fusion_core.weights import Slot

_SUPPORTED = MergeModulelist, Concatenate, Transpose
_INDEX = "*"
#: The most dimensions of one expert's tensor: a matrix.
_MATRIX = 2


def find_packed_experts(model: PreTrainedModel, tensors: Mapping[str, Tensor]) -> Layout:
    """Return where the live tensors of a mixture hold each expert's tensors.

    The slots have the names of published files after transformers' renaming: a file's
    `block_sparse_moe` is already `mlp`. A tensor that transformers converts by any other operation
    is left out.
    """
    converters = [
        converter
        for converter in get_model_conversion_mapping(model)
        if isinstance(converter, WeightConverter) and _is_supported(converter)
    ]
    slots: dict[str, tuple[Slot, ...]] = {}
    for name, tensor in tensors.items():
        for converter in converters:
            templates = _names_in_files(converter, name)
            if templates:
                info = TensorInfo(name, tuple(tensor.shape), tensor.dtype)
                slots[name] = _slots(converter, info, templates)
                break
    slots = {name: parts for name, parts in slots.items() if parts}
    return Layout(slots, {name: tuple(tensors[name].shape) for name in slots})


def _is_supported(converter: WeightConverter) -> bool:
    """Tell whether a conversion stacks experts, and does nothing that axes cannot express."""
    operations = converter.operations
    return any(isinstance(operation, MergeModulelist) for operation in operations) and all(
        isinstance(operation, _SUPPORTED)
        and not getattr(operation, "check_dims", False)
        and getattr(operation, "num_shards_attribute", None) is None
        for operation in operations
    )


def _names_in_files(converter: WeightConverter, name: str) -> list[str]:
    """Return the names in files of one live tensor's sources, with `*` for the expert's number."""
    reverse = converter.reverse_transform()
    first, matched = reverse.rename_source_key(name)
    patterns = reverse.target_patterns
    if matched is None or any(pattern.count(_INDEX) != 1 for pattern in patterns):
        return []
    return [first.replace(patterns[0], pattern, 1) for pattern in patterns]


def _slots(
    converter: WeightConverter, info: TensorInfo, templates: Sequence[str]
) -> tuple[Slot, ...]:
    """Return the slots of a live tensor, found by undoing the operations; () if they do not fit."""
    axes, stacked, split = list(range(len(info.shape))), None, None
    for operation in reversed(converter.operations):
        if isinstance(operation, Concatenate):
            split = axes[operation.dim]
        elif isinstance(operation, MergeModulelist):
            stacked = axes.pop(operation.dim)
        elif isinstance(operation, Transpose):
            one, other = operation.dim0, operation.dim1
            axes[one], axes[other] = axes[other], axes[one]
    parts = 1 if split is None else len(templates)
    fits = stacked == 0 and split != 0 and 0 < len(axes) <= _MATRIX and len(templates) == parts
    if not fits or (split is not None and info.shape[split] % parts):
        return ()
    declared: list[Rows | Columns] = []
    for axis in sorted(axes):
        kind = Rows if axis == axes[0] else Columns
        size = info.shape[axis]
        is_split = axis == split
        sizes = {str(part): size // parts for part in range(parts)}
        declared.append(kind(**sizes) if is_split else kind(size))
    name = "{index} {part}" if split is not None else "{index} 0"
    matrices = Matrices((Stacked(info.shape[0]), *declared), name)
    return tuple(replace(slot, name=_fill(templates, slot)) for slot in matrices.slots(info))


def _fill(templates: Sequence[str], slot: Slot) -> str:
    index, part = slot.name.split()
    return templates[int(part)].replace(_INDEX, index)
