"""One model of the pool `checkpoints`: located files, or an object of the caller's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

from torch import nn

from fusion_core import RecipeSource, WeightSource
from fusion_core.errors import CheckpointError
from fusion_core.weights import (
    QUANTISER_FILES,
    QUANTISER_KEYS,
    StateDictSource,
    change_config,
    find_config_value,
    list_side_files,
    parse_config,
)
from pools_checkpoints.adapter_files import refuse_factors
from pools_checkpoints.files import (
    CONFIG,
    collect_side_files,
    remove_keys,
    set_dtype,
)
from pools_checkpoints.live import describe_live, read_tensors

if TYPE_CHECKING:
    from pathlib import Path

    import torch

    from fusion_core import LocatedModel
    from fusion_core.weights import Files, Location

#: The file of a model that is one safetensors file, as save_pretrained names it.
_SINGLE = "model.safetensors"


@dataclass(frozen=True)
class PoolModel:
    """One model of the pool: located files, or an object of the caller's.

    Files next to the weights are listed once, as the headers of the weights are read once.
    """

    name: str
    live: Any = None
    located: LocatedModel | None = None
    #: the directory of side files, in place of the model's own
    side_directory: Path | None = None
    #: patterns of side files in addition to the usual ones
    more_files: tuple[str, ...] = ()

    @property
    def location(self) -> Location | None:
        """The location of the files; None for an object of the caller's."""
        return None if self.located is None else self.located.location

    @property
    def is_delta(self) -> bool:
        """Whether it is an adapter, which has a base but is not a full model."""
        return self.located is not None and self.located.is_delta

    def assets(self, dtype: torch.dtype | None = None) -> Files:
        """Return the files next to the weights that are copied with them.

        `dtype` replaces the one in `config.json`.
        """
        if isinstance(self.live, RecipeSource):
            return self.live.assets(dtype)
        return (
            self._assets
            if dtype is None
            else change_config(self._assets, partial(set_dtype, dtype=dtype))
        )

    @cached_property
    def _assets(self) -> Files:
        directory = self._side_directory
        if directory is None:
            return {}
        return self._without_format(collect_side_files(directory, *self.more_files))

    @cached_property
    def side_files(self) -> Files:
        """The files that identify the model, such as configuration and tokenizer."""
        if self.located is not None:
            location = self.located.location
            if self.is_delta:  # trainers may put the base's own configuration there
                listed = list_side_files(location.directory, *self.more_files)
                return {**listed, CONFIG: b"{}"}
            directory = self._side_directory
            if directory is None:
                return {}
            is_decoded = self.located.format.spec.config_keys or self.side_directory is not None
            quantisers = () if is_decoded else QUANTISER_FILES
            return self._without_format(list_side_files(directory, *quantisers, *self.more_files))
        if isinstance(self.live, RecipeSource):
            return self.live.assets(None)
        return describe_live(self.live) if isinstance(self.live, nn.Module) else {}

    def source(self, base: WeightSource | None) -> WeightSource:
        """Return the weights. An adapter's are differences from the base."""
        if isinstance(self.live, WeightSource):
            return self.live
        if self.located is None:
            state = self.live if isinstance(self.live, Mapping) else read_tensors(self.live)
            return StateDictSource(state, label=f"{self.name} (live)")
        if self.is_delta and base is None:
            raise CheckpointError(
                f"the adapter {self.located.location.name} needs its base, and the model pool has "
                "none",
                hint=f"Name the base: --set model_pool.base={self.located.base_name or 'PATH'}",
            )
        source = self.located.open(base)
        if not self.is_delta:
            refuse_factors(source, self.located.location)
        return source

    @property
    def _side_directory(self) -> Path | None:
        """The directory of the side files; an adapter's are its own.

        A single file has them only if it is the one model of its directory.
        """
        if self.location is None:
            return None
        if self.side_directory is not None and not self.is_delta:
            return self.side_directory
        path = self.location.path
        return self.location.directory if path.is_dir() or path.name == _SINGLE else None

    def _without_format(self, files: Files) -> Files:
        """Remove a quantised format from the configuration, because merged weights are plain.

        The option `side_files` may name a quantised model: how that one is stored says nothing
        about these weights, whose tensors show whether they are quantised.
        """
        keys = frozenset(() if self.located is None else self.located.format.spec.config_keys)
        if self.side_directory is not None:
            keys |= QUANTISER_KEYS
        config = (parse_config(files, CONFIG, self.name) or {}) if keys else {}
        if find_config_value(config, keys) is None:
            return files
        return change_config(files, partial(remove_keys, keys=keys))
