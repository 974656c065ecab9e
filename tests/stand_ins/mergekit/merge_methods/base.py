"""What a group kernel is given."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor


class BasePolicy(Enum):
    REQUIRED = "required"


@dataclass(frozen=True)
class InputContract:
    base: BasePolicy
    min_non_base: int = 0


@dataclass(frozen=True)
class TensorEntry:
    id: str
    tensor: Tensor


@dataclass(frozen=True)
class TensorGroup:
    base: TensorEntry
    non_base: tuple[TensorEntry, ...]

    @classmethod
    def of(cls, base: Tensor, others: Mapping[str, Tensor]) -> TensorGroup:
        entries = tuple(TensorEntry(name, tensor) for name, tensor in others.items())
        return cls(TensorEntry("base", base), entries)
