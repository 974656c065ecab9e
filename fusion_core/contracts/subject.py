"""What is measured: a model, by where it is committed, by its weights, or live."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import torch
    from torch import nn

    from fusion_core.weights import WeightSource


@dataclass(frozen=True, eq=False)
class Subject:
    """A model to be measured; the live one is built when it is first asked for.

    `Subject.of(model)` is a live model that is there already.
    """

    #: returns the live model, in evaluation mode, on the device that it is measured on
    build: Callable[[], nn.Module]
    #: what it is built from; None for a model that came alive
    weights: WeightSource | None = None
    #: the directory that holds it and loads as it is; None if there is none
    path: Path | None = None
    #: what it is measured on; None for a model that came alive, which is there already
    device: torch.device | None = None

    @classmethod
    def of(cls, model: nn.Module) -> Self:
        """Return a live model as what is measured."""
        return cls(lambda: model)

    @cached_property
    def model(self) -> nn.Module:
        """The live model."""
        return self.build()
