"""The pool `checkpoints`: any safetensors files, without knowing what model they belong to.

Models are paths, names on the hub, or LoRA adapters. From Python, live modules and state dicts are
accepted wherever a path is, and never modified.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch
from torch import nn

from fusion_core.builtin.checkpoints_config import CheckpointsConfig
from fusion_core.contracts.building import build_model
from fusion_core.contracts.model_pool import ModelPool
from fusion_core.errors import CheckpointError, FusionError
from fusion_core.planning.nested import RecipeSource
from fusion_core.plugins.formats import LocatedModel, find_model
from fusion_core.weights import LoraSource, StateDictSource, WeightSource
from fusion_core.weights.aligning.vocabulary import vocabulary_of
from fusion_core.weights.reading.assets import (
    CONFIG,
    assets_of,
    beside,
    licence_of,
    tokenizer_of,
    with_config,
    with_vocabulary,
    without_keys,
)
from fusion_core.weights.reading.location import ADAPTER_CONFIG, SINGLE
from fusion_core.weights.reading.lora import base_of
from fusion_core.weights.reading.quantised import QUANTISERS_FILES
from fusion_core.weights.source import base_or_first

if TYPE_CHECKING:
    from pathlib import Path

    from fusion_core.weights.reading.assets import Files
    from fusion_core.weights.reading.location import Location


@dataclass(frozen=True, slots=True)
class Model:
    """One model of the pool: where it is, or what the caller gave."""

    name: str
    live: Any = None
    located: LocatedModel | None = None

    @property
    def location(self) -> Location | None:
        """Where it is; None for what the caller gave."""
        return None if self.located is None else self.located.location

    @property
    def is_delta(self) -> bool:
        """Whether it is an adapter, which has a base but is not a model."""
        return self.located is not None and self.located.is_delta

    def assets(self, *more: str, dtype: torch.dtype | None = None) -> Files:
        """Return the files beside the weights that go where the weights go; of a recipe its own."""
        if isinstance(self.live, RecipeSource):
            return self.live.assets(dtype)
        if self.location is None or not self.location.path.is_dir():
            return {}
        return self._without_format(assets_of(self.location.path, *more, dtype=dtype))

    def beside(self, *more: str) -> Files:
        """Return what says which model this is; a file has some where it is a directory's model."""
        if self.location is not None:
            path, directory = self.location.path, self.location.directory
            if self.is_delta:  # trainers may put the base's own configuration there
                return {**beside(directory, ADAPTER_CONFIG, *more), CONFIG: b"{}"}
            is_whole = path.is_dir() or path.name == SINGLE
            quantisers = () if self._format_keys else QUANTISERS_FILES
            return self._without_format(beside(directory, *quantisers, *more)) if is_whole else {}
        if isinstance(self.live, RecipeSource):
            return self.live.assets(None)
        describe = getattr(getattr(self.live, "config", None), "to_dict", None)
        return {} if describe is None else {CONFIG: json.dumps(describe(), default=str).encode()}

    def source(self, base: WeightSource | None) -> WeightSource:
        """Return the weights; an adapter's are differences from the base."""
        if isinstance(self.live, WeightSource):
            return self.live
        if self.located is None:
            state = self.live if isinstance(self.live, Mapping) else self.live.state_dict()
            return StateDictSource(state, label=f"{self.name} (live)")
        if self.is_delta and base is None:
            location = self.located.location
            raise CheckpointError(
                f"{location.name} is an adapter, which is nothing without its base",
                hint=f"Name the base: model_pool.base={base_of(location) or '...'}",
            )
        return self.located.open(base)

    @property
    def _format_keys(self) -> tuple[str, ...]:
        return () if self.located is None else self.located.format.spec.config_keys

    def _without_format(self, files: Files) -> Files:
        """Leave out of the configuration how the files were written: the weights are plain now."""
        keys = self._format_keys
        return with_config(files, partial(without_keys, keys=keys)) if keys else files


class CheckpointsPool(ModelPool[CheckpointsConfig]):
    """Checkpoints by path or hub id, adapters, live models: only names and shapes are known.

    Of what is on the hub, headers are read when the pool is made, weights when they are needed.
    """

    config_class = CheckpointsConfig
    #: patterns of files that models of a kind have beside those that any has
    more_files: ClassVar[tuple[str, ...]] = ()

    def __init__(self, config: CheckpointsConfig) -> None:
        super().__init__(config)
        self._base = None if config.base is None else self._model(config.base, "base", "base")
        self._models = {
            name: self._model(each, name, f"models.{name}") for name, each in config.models.items()
        }
        if self._base is not None and self._base.location and self._base.is_delta:
            raise CheckpointError(
                f"model_pool.base: {self._base.location.name} is an adapter, no model",
                hint="Name the model that it was trained on, and the adapter under models.",
            )
        self.base = None if self._base is None else self._base.source(None)
        self.experts = {name: each.source(self.base) for name, each in self._models.items()}
        self._sources = {**({} if self.base is None else {"": self.base}), **self.experts}

    def with_sources(self, sources: Mapping[str, WeightSource]) -> Self:
        """Return this pool with other weights for some models; adapters are on the new base."""
        clone = super().with_sources(sources)
        if clone.base is not None:
            clone.experts = {
                name: expert.on(clone.base) if isinstance(expert, LoraSource) else expert
                for name, expert in clone.experts.items()
            }
        return clone

    def build(
        self,
        weights: WeightSource,
        *,
        dtype: torch.dtype | None = torch.float32,
        device: torch.device | str = "cpu",
    ) -> nn.Module:
        """Return a module like the first live one of the pool, with these weights.

        Raises `FusionError` if the pool has only files or state dicts: their class is not known,
        `AlignmentError` for weights with other tensors than the module.
        """
        module = self._module()
        construct = partial(_copy_without_values, module)
        return build_model(construct, weights, base=self.base, dtype=dtype, device=device)

    def check_builds(self) -> None:
        """Raise `FusionError` if the pool has no live module."""
        self._module()

    def _module(self) -> nn.Module:
        given = [self.config.base, *self.config.models.values()]
        module = next((each for each in given if isinstance(each, nn.Module)), None)
        if module is None:
            raise FusionError(
                "the pool 'checkpoints' merges files without knowing which class they belong to, "
                "so it can neither evaluate nor adapt on tasks",
                hint="Leave the tasks out, or use the pool of the models' family; see: "
                "fuse list pools\nTheir own library measures any merge: it loads the directory.",
            )
        return module

    def assets(self, *, dtype: torch.dtype | None = None) -> Mapping[str, bytes | Path]:
        """Return the configuration, tokenizer and processor files of the base, or first expert.

        Where embeddings were padded, the configuration names the new vocabulary's size, and the
        tokenizer is that of a model that has all of its tokens.
        """
        found, size = self._own_assets(dtype), vocabulary_of(self.reference)
        given = vocabulary_of(next(iter(self._sources.values())))
        if size == given:
            return found
        found = with_vocabulary(found, given, size)
        for name in self._models:
            if vocabulary_of(self._sources[name]) == size:
                return {**found, **tokenizer_of(self.files_of(name))}
        return found

    def _own_assets(self, dtype: torch.dtype | None) -> Files:
        """Return the files beside the base or first expert; a recipe says what dtype it has."""
        first = base_or_first(self._base, self._models)
        if isinstance(first.live, RecipeSource):
            dtype = dtype or _dtype(self.reference)
        return first.assets(*self.more_files, dtype=dtype)

    def files_of(self, model: str) -> Files:
        """Return the side files of a model by its name, as they may be copied.

        An adapter's are what its trainer put there: a tokenizer, perhaps.
        """
        named = {each.name: each for each in self._all}
        return named[model].assets(*self.more_files)

    def beside(self) -> Mapping[str, Files]:
        """Return the files beside each model; of a recipe, those that its result would have."""
        return {model.name: model.beside(*self.more_files) for model in self._all}

    def licences(self) -> Mapping[str, str | None]:
        """Return each model's licence, as the card beside it names it."""
        return {
            each.name: None if each.location is None else licence_of(each.location.directory)
            for each in self._all
        }

    @property
    def _all(self) -> list[Model]:
        return [*([] if self._base is None else [self._base]), *self._models.values()]

    def _model(self, given: Any, name: str, option: str) -> Model:  # noqa: ANN401 - the configuration checked
        if isinstance(given, str):
            option = f"model_pool.{option}"
            preferred = self.config.format
            located = find_model(given, option, *self.more_files, preferred=preferred)
            return Model(name, located=located)
        return Model(name, live=given)


def _copy_without_values(module: nn.Module) -> nn.Module:
    """Copy a module, its buffers included; its parameters are copied without their values."""
    empty = {
        id(parameter): nn.Parameter(
            parameter.detach().to("meta"), requires_grad=parameter.requires_grad
        )
        for parameter in module.parameters()
    }
    return copy.deepcopy(module, dict(empty))


def _dtype(source: WeightSource) -> torch.dtype | None:
    """Return what a source's numbers are stored in."""
    dtypes = (info.dtype for info in source.infos.values())
    return next((dtype for dtype in dtypes if dtype.is_floating_point), None)
