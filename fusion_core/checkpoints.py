"""The pool `checkpoints`: any safetensors files, without knowing what model they belong to.

From Python, live modules and state dicts are accepted wherever a path is, and never modified.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from fusion_core.checkpoints_config import CheckpointsConfig
from fusion_core.errors import AlignmentError, FusionError
from fusion_core.model_pool import ModelPool
from fusion_core.weights import CheckpointSource, StateDictSource, WeightSource
from fusion_core.weights.assets import assets_of

if TYPE_CHECKING:
    import torch


class CheckpointsPool(ModelPool[CheckpointsConfig]):
    """Checkpoints by path, or live models; nothing but their names and shapes is known."""

    config_class = CheckpointsConfig

    def __init__(self, config: CheckpointsConfig) -> None:
        super().__init__(config)
        self.base = None if config.base is None else _source(config.base, "base")
        self.experts = {name: _source(each, name) for name, each in config.models.items()}

    def build(self, weights: WeightSource) -> nn.Module:
        """Return a copy of the first live module of the pool with these weights.

        Raises `FusionError` if the pool has only files or state dicts: their class is not known,
        `AlignmentError` for weights with other tensors than the module.
        """
        given = [self.config.base, *self.config.models.values()]
        module = next((each for each in given if isinstance(each, nn.Module)), None)
        if module is None:
            raise FusionError(
                "the pool 'checkpoints' merges files without knowing which class they belong to",
                hint="Load the merged directory with its own library, e.g. from_pretrained.",
            )
        built = copy.deepcopy(module).cpu().eval()
        try:
            built.load_state_dict(weights.state_dict())
        except RuntimeError as error:
            raise AlignmentError(
                f"{weights.describe()} does not fit the pool's {type(module).__name__}: {error}",
                hint="Give weights with the module's tensors.",
            ) from error
        return built

    def assets(self, *, dtype: torch.dtype | None = None) -> Mapping[str, bytes | Path]:
        """Return the configuration, tokenizer and processor files of the base, or first expert."""
        first = next(iter(self.config.models.values()))
        origin = self.config.base if self.config.base is not None else first
        return assets_of(Path(origin), dtype=dtype) if isinstance(origin, str) else {}


def _source(given: Any, label: str) -> WeightSource:  # noqa: ANN401 - checked by the configuration
    if isinstance(given, str):
        return CheckpointSource(given)
    tensors = given if isinstance(given, Mapping) else given.state_dict()
    return StateDictSource(tensors, label=f"{label} (live)")
