"""The outline of a merge, known from headers: its tensors and its `config.json`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fusion_core.weights.reading.assets import change_config

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from fusion_core.weights import TensorInfo
    from fusion_core.weights.reading.assets import Files


@dataclass(frozen=True)
class Outline:
    """The tensors and the configuration that a merge will have.

    Return one from `Algorithm.outline` if the result has other tensors than the models. Example::

        Outline(infos, configure=lambda config: {**config, "num_hidden_layers": 48})
    """

    #: the merge's tensors by name, in the dtypes that the models have them in
    infos: Mapping[str, TensorInfo]
    #: maps the models' `config.json` to the merge's; None if they are equal
    configure: Callable[[dict[str, Any]], Mapping[str, Any]] | None = None
    #: whether tensors hold values that other tensors of the models have, as layers in another order
    is_rearranged: bool = False

    def is_like(self, infos: Mapping[str, TensorInfo]) -> bool:
        """Tell whether a model with these tensors has the merge's names and shapes."""
        return self.infos.keys() == infos.keys() and all(
            info.shape == infos[name].shape for name, info in self.infos.items()
        )

    def files(self, given: Files) -> Files:
        """Return the merge's side files, derived from the models'."""
        return given if self.configure is None else change_config(given, self.configure)
