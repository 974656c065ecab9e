"""Groups of similar tensors, and how the merge treats each of them, found from headers."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fusion_core.planning.packed_tensors import describe_slots, star_numbers
from fusion_core.weights.merging.piece import is_merged
from fusion_core.weights.merging.singular import is_matrix

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from fusion_core.contracts.treatments import Treatment
    from fusion_core.planning.parts import Part
    from fusion_core.weights import TensorInfo
    from fusion_core.weights.packing import Layout


@dataclass(frozen=True, slots=True)
class TensorGroup:
    """Tensors of one kind that the merge treats alike."""

    #: their name, with `*` for every number in it
    tensors: str
    count: int
    #: the shape of one tensor, or the matrices in it, such as "8 matrices of 64 x 32"
    holds: str
    #: their share of all parameters, between 0 and 1
    share: float
    #: their share of all parameters in matrices that the merge's method is applied to
    in_matrices: float
    #: "merged", or how they are treated instead
    treatment: str


def group_tensors(
    parts: Sequence[Part],
    infos: Mapping[str, TensorInfo],
    layout: Layout,
    treatments: Mapping[str, Treatment],
) -> Iterator[TensorGroup]:
    """Yield every tensor of the reference in exactly one group, in the order of the models.

    `parts` are those of the merge stage.
    """
    total = max(sum(info.numel for info in infos.values()), 1)
    counts: Counter[tuple[str, str, str]] = Counter()
    elements: Counter[tuple[str, str, str]] = Counter()
    in_matrices: Counter[tuple[str, str, str]] = Counter()
    for name, info in infos.items():
        treatment, reached = _treat(info, parts, layout, treatments)
        slots = layout.slots.get(name)
        holds = describe_slots(slots) if slots else " x ".join(map(str, info.shape)) or "a number"
        key = star_numbers(name), holds, treatment
        counts[key] += 1
        elements[key] += info.numel
        in_matrices[key] += reached
    for key, count in counts.items():
        pattern, holds, treatment = key
        shares = elements[key] / total, in_matrices[key] / total
        yield TensorGroup(pattern, count, holds, *shares, treatment)


def _treat(
    info: TensorInfo,
    parts: Sequence[Part],
    layout: Layout,
    treatments: Mapping[str, Treatment],
) -> tuple[str, int]:
    """Return a tensor's treatment in words, and the elements that are merged as matrices."""
    if info.name in treatments:
        return treatments[info.name].description, 0
    part = next((part for part in parts if part.names is None or info.name in part.names), None)
    if part is None:
        return "copied (only, skip)", 0
    if not is_merged(info):
        return f"copied ({str(info.dtype).removeprefix('torch.')})", 0
    matrices = part.algorithm.matrices_of(info, layout)
    fallbacks = [part.algorithm.fallback(matrix) for matrix in matrices]
    reached = sum(
        matrix.numel
        for matrix, fallback in zip(matrices, fallbacks, strict=True)
        if fallback is None and is_matrix(matrix.shape)
    )
    words = dict.fromkeys("merged" if fallback is None else fallback for fallback in fallbacks)
    return ", ".join(words), reached
