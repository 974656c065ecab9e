"""What a merge will look like, known from headers: its tensors, and its `config.json`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fusion_core.weights.reading.assets import with_config

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from fusion_core.weights import TensorInfo
    from fusion_core.weights.reading.assets import Files


@dataclass(frozen=True)
class Outline:
    """What a merge will look like."""

    #: every tensor, in the dtype in which the models have what it is made of
    infos: Mapping[str, TensorInfo]
    #: makes the merge's `config.json` of the models'; None: it is the same
    configure: Callable[[dict[str, Any]], Mapping[str, Any]] | None = None

    def is_like(self, infos: Mapping[str, TensorInfo]) -> bool:
        """Tell whether a model with these tensors has the merge's names and shapes."""
        return _shapes(self.infos) == _shapes(infos)

    def files(self, given: Files) -> Files:
        """Return the merge's side files, made of those of the models."""
        return given if self.configure is None else with_config(given, self.configure)


def _shapes(infos: Mapping[str, TensorInfo]) -> dict[str, tuple[int, ...]]:
    return {name: info.shape for name, info in infos.items()}
