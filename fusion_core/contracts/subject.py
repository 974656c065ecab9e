"""The subject of a measurement: a model as a directory, as weights, or live."""

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
    """A model to measure; the live model is built on first use.

    `Subject.of(model)` wraps a live model.
    """

    #: returns the live model in evaluation mode, on the device to measure it on
    build: Callable[[], nn.Module]
    #: the weights that it is built from; None for a live model
    weights: WeightSource | None = None
    #: the loadable directory that holds it; None without one
    path: Path | None = None
    #: the device to measure it on; None for a live model
    device: torch.device | None = None

    @classmethod
    def of(cls, model: nn.Module) -> Self:
        """Return a live model as a subject."""
        return cls(lambda: model)

    @cached_property
    def model(self) -> nn.Module:
        """The live model."""
        return self.build()
