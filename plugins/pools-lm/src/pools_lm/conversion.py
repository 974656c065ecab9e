"""Tensors that transformers joins or divides when it loads the files of a model.

Since transformers 5 a live mixture has one tensor per layer and projection for all experts, and
files may hold either layout. The conversion mapping of transformers says which tensors of a file
become one, and in which order. It also joins convolutions (Kimi-Linear), and divides a matrix of a
file into query, key and value (nomic-bert). It is asked for each model, so a model that a later
version of transformers packs needs no change here.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from typing import TYPE_CHECKING

from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    Chunk,
    Concatenate,
    MergeModulelist,
    Split,
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


def find_joined(model: PreTrainedModel, tensors: Mapping[str, Tensor]) -> Layout:
    """Return where live tensors hold several tensors of a file, such as a mixture's experts.

    The slots have the names of published files after transformers' renaming: a file's
    `block_sparse_moe` is already `mlp`. A tensor that transformers converts by any other operation
    is left out.
    """
    converters = [one for one in _converters(model) if _is_supported(one)]
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


def find_divided(model: PreTrainedModel, tensors: Mapping[str, Tensor]) -> Layout:
    """Return where tensors of a file, by their names after renaming, hold several live tensors."""
    parts: dict[tuple[str, int], list[tuple[int, str]]] = defaultdict(list)
    for converter in _converters(model):
        operations = converter.operations
        if len(operations) != 1 or not _is_division(operations[0]):
            continue
        reverse = converter.reverse_transform()
        for name in tensors:
            joined, matched = reverse.rename_source_key(name)
            if matched is not None:
                order = reverse.source_patterns.index(matched)
                parts[joined, len(converter.target_patterns)].append((order, name))
    slots, shapes = {}, {}
    for (joined, count), numbered in parts.items():
        names = [name for _, name in sorted(numbered)]
        if len(names) != count:
            continue
        sizes = {name: len(tensors[name]) for name in names}
        first = tensors[names[0]]
        shapes[joined] = (sum(sizes.values()), *first.shape[1:])
        slots[joined] = row_slots(TensorInfo(joined, shapes[joined], first.dtype), sizes)
    return Layout(slots, shapes)


def find_swapped(model: PreTrainedModel, tensors: Mapping[str, Tensor]) -> frozenset[str]:
    """Return the tensors whose last two axes transformers swaps if a file has their shape so."""
    converters = [
        one
        for one in _converters(model)
        if len(one.operations) == 1
        and isinstance(one.operations[0], Transpose)
        and one.operations[0].check_dims
        and {one.operations[0].dim0, one.operations[0].dim1} == {1, 2}
    ]
    return frozenset(
        name
        for name in tensors
        if any(one.reverse_transform().rename_source_key(name)[1] for one in converters)
    )


def _converters(model: PreTrainedModel) -> list[WeightConverter]:
    mapping = get_model_conversion_mapping(model)
    return [one for one in mapping if isinstance(one, WeightConverter)]


def _is_division(operation: object) -> bool:
    """Tell whether an operation divides a tensor's rows among tensors that its patterns name."""
    return (
        isinstance(operation, Chunk | Split)
        and operation.dim == 0
        and getattr(operation, "num_shards_attribute", None) is None
    )


def _is_supported(converter: WeightConverter) -> bool:
    """Tell whether a conversion joins tensors, and does nothing that axes cannot express."""
    operations = converter.operations
    joins_rows = [type(operation) for operation in operations] == [Concatenate]
    stacks = any(isinstance(operation, MergeModulelist) for operation in operations)
    return (stacks or joins_rows) and all(
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
    numbers = {pattern.count(_INDEX) for pattern in patterns}
    stacks = any(isinstance(operation, MergeModulelist) for operation in converter.operations)
    if matched is None or numbers != {int(stacks)}:
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
    if stacked is None:
        count, rest = divmod(info.shape[0], parts)
        if split != 0 or count == 0:
            return ()
        last = dict.fromkeys(templates[-1:], count + rest)
        return row_slots(info, {**dict.fromkeys(templates, count), **last})
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


def row_slots(info: TensorInfo, sizes: Mapping[str, int]) -> tuple[Slot, ...]:
    """Return the slots of parts with these names and numbers of rows, one below the other."""
    matrices = Matrices((Rows(**sizes), *map(Columns, info.shape[1:])), "{part}")
    rest = info.shape[1:]
    return tuple(replace(slot, shape=(sizes[slot.name], *rest)) for slot in matrices.slots(info))


def _fill(templates: Sequence[str], slot: Slot) -> str:
    index, part = slot.name.split()
    return templates[int(part)].replace(_INDEX, index)
