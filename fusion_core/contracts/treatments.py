"""Tensors that a pool keeps from the method: copied from one model, or averaged."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Treatment:
    """How a tensor gets its values if the pool keeps it from the method."""

    #: copied from the pool's reference, or the mean of all experts
    kind: Literal["copy", "average"]
    #: the treatment in words, for `fuse check`: "copied from base (router: base)"
    description: str
