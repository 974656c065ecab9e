"""Factors of experts: PEFT adapts all experts of a layer as one parameter (`target_parameters`).

A base may store them packed, as (experts, rows, columns), or one by one. PEFT names the packed
parameter of the live model in both cases.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch

from fusion_lora.reading.experts import EXPERT_LAYOUTS, PARAMETERS
from fusion_lora.reading.factors import PREFIX
from pools_checkpoints import are_experts_transposed

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from torch import Tensor

    from fusion_core import TensorInfo
    from fusion_lora.factorise import Factors

_PACKED = re.compile(rf"(?P<module>.+\.experts)\.(?P<parameter>{'|'.join(PARAMETERS)})")
_SEPARATE = re.compile(r"(?P<module>.+\.experts)\.(?P<index>\d+)\.(?P<part>\w+)\.weight")
#: The packed parameter of each part, and the names of its parts from top to bottom.
_PARTS = {
    part: (parameter, parts)
    for _, parameters in EXPERT_LAYOUTS
    for parameter, parts in parameters.items()
    for part in parts
}
_RANK = 3


class Rows(NamedTuple):
    """Rows of a stored tensor, seen as a matrix."""

    tensor: str
    first: int
    last: int


@dataclass(frozen=True)
class ExpertGroup:
    """A parameter of all experts of a layer."""

    module: str
    parameter: str
    #: for each expert, the rows of tensors that make its matrix, from top to bottom
    experts: tuple[tuple[Rows, ...], ...]
    #: whether the matrices are stored as (inputs, outputs)
    transposed: bool

    @property
    def name(self) -> str:
        """The name in `target_parameters`."""
        return f"{self.module}.{self.parameter}"

    @property
    def tensors(self) -> frozenset[str]:
        """The stored tensors."""
        return frozenset(rows.tensor for expert in self.experts for rows in expert)

    def join(self, factors: Sequence[Factors]) -> tuple[Tensor, Tensor]:
        """Return PEFT's A (experts * rank, in) and B (out, rank * experts).

        Experts of a lower rank are filled up with zeros.
        """
        rank = max(factor.rank for factor in factors)
        lefts, rights = [], []
        for factor in factors:
            left, right = (
                (factor.left, factor.right)
                if not self.transposed
                else (factor.right.mT, factor.left.mT)
            )
            lefts.append(torch.nn.functional.pad(left, (0, rank - factor.rank)))
            rights.append(torch.nn.functional.pad(right, (0, 0, 0, rank - factor.rank)))
        b = torch.stack(lefts, dim=2)  # (out, rank, experts)
        return torch.cat(rights), b.reshape(len(b), -1)


def find_groups(infos: Mapping[str, TensorInfo]) -> list[ExpertGroup]:
    """Return the parameters of experts that a base stores."""
    return [*_find_packed(infos), *_find_separate(infos)]


def name_factors(
    group: ExpertGroup, groups: Iterable[ExpertGroup], a: Tensor, b: Tensor
) -> dict[str, Tensor]:
    """Return factors under PEFT's names; `groups` are all that the adapter changes."""
    outer = [
        other
        for other in groups
        if other.module == group.module
        and PARAMETERS.index(other.parameter) > PARAMETERS.index(group.parameter)
    ]
    key = f"{PREFIX}{group.module}{'.base_layer' * len(outer)}.lora_"
    return {f"{key}A.weight": a, f"{key}B.weight": b}


def _find_packed(infos: Mapping[str, TensorInfo]) -> Iterator[ExpertGroup]:
    for name, info in infos.items():
        match = _PACKED.fullmatch(name)
        if match is None or len(info.shape) != _RANK:
            continue
        gate, down = (infos.get(f"{match['module']}.{parameter}") for parameter in PARAMETERS)
        count, height, _ = info.shape
        experts = tuple((Rows(name, n * height, (n + 1) * height),) for n in range(count))
        yield ExpertGroup(
            match["module"], match["parameter"], experts, are_experts_transposed(gate, down)
        )


def _find_separate(infos: Mapping[str, TensorInfo]) -> Iterator[ExpertGroup]:
    """Yield the parameters whose experts are numbered without gaps and have all their parts."""
    groups: dict[tuple[str, tuple[str, tuple[str, ...]]], dict[int, dict[str, Rows]]] = {}
    for name, info in infos.items():
        match = _SEPARATE.fullmatch(name)
        if match is None or match["part"] not in _PARTS or len(info.shape) != _RANK - 1:
            continue
        module = match["module"]
        experts = groups.setdefault((module, _PARTS[match["part"]]), {})
        experts.setdefault(int(match["index"]), {})[match["part"]] = Rows(name, 0, info.shape[0])
    for (module, (parameter, parts)), experts in groups.items():
        is_complete = all(rows.keys() == {*parts} for rows in experts.values())
        if is_complete and sorted(experts) == list(range(len(experts))):
            matrices = (experts[index] for index in range(len(experts)))
            stacked = tuple(tuple(rows[part] for part in parts) for rows in matrices)
            yield ExpertGroup(module, parameter, stacked, transposed=False)
