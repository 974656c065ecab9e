"""The pool `checkpoints`: weights of any architecture, with no knowledge of their model class.

Models are paths or names on the hub, of full models or of adapters. From Python, live modules and
state dicts are accepted wherever a path is. The pool never modifies them.
"""

from __future__ import annotations

import copy
import logging
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch
from torch import nn

from fusion_core import RecipeSource, Treatment, build_model, find_model
from fusion_core.errors import CheckpointError, FusionError, RecipeError
from fusion_core.weights import RenamedSource, change_config, parse_config, vocabulary_size
from pools_checkpoints.card import read_card
from pools_checkpoints.config import CheckpointsConfig
from pools_checkpoints.described import DescribedPool
from pools_checkpoints.files import (
    CONFIG,
    check_side_files,
    resize_vocabulary,
    select_tokenizer_files,
)
from pools_checkpoints.live import find_ties
from pools_checkpoints.model import PoolModel
from pools_checkpoints.orientation import swap_axes
from pools_checkpoints.packing import Packing
from pools_checkpoints.parts import complete_models, describe_part, rename_by_patterns
from pools_checkpoints.routers import treat_routers
from pools_checkpoints.tied import drop_tied_heads

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from fusion_core import WeightSource
    from fusion_core.weights import Files, Matrices

_LOG = logging.getLogger(__name__)


class CheckpointsPool(DescribedPool[CheckpointsConfig]):
    """Checkpoints by path or hub id, adapters, and live models, whose class is unknown.

    For models on the hub, the constructor reads headers. Weights are read on demand.
    """

    config_class = CheckpointsConfig
    #: patterns of side files that models of this pool have in addition to the usual ones
    more_files: ClassVar[tuple[str, ...]] = ()
    #: the tensors that only the model of the option `rest` has
    _rest: Sequence[str] = ()

    def __init__(self, config: CheckpointsConfig) -> None:
        super().__init__(config)
        self._given = config  # a subclass may set `config` to its own options
        self._side_directory: Path | None = None
        if config.side_files is not None:
            self._side_directory = check_side_files(
                config.side_files, "model_pool.side_files", *self.more_files
            )
        self._base = None if config.base is None else self._find(config.base, "base", "base")
        self._models = {
            name: self._find(given, name, f"models.{name}") for name, given in config.models.items()
        }
        if self._base is not None and self._base.located and self._base.is_delta:
            located = self._base.located
            raise CheckpointError(
                "model_pool.base: expected a full model, found an adapter "
                f"({located.format.spec.name}): {located.location.name}",
                hint="Name the model that the adapter was trained on as the base, and the adapter "
                "under models.",
            )
        self.base = None if self._base is None else self._base.source(None)
        self.experts = {name: model.source(self.base) for name, model in self._models.items()}
        self._swap_axes()
        self._drop_tied_heads()
        self._select_parts()
        self._sources = {**({} if self.base is None else {"": self.base}), **self.experts}

    def _swap_axes(self) -> None:
        """Transpose packed experts that the first model stores the other way round."""
        if not self.experts or any(isinstance(m, RecipeSource) for m in self.by_name.values()):
            return
        first = self.reference.infos
        infos = (info for expert in self.experts.values() for info in expert.infos.values())
        is_alike = all(first.get(info.name, info).shape == info.shape for info in infos)
        packing = None if is_alike else self._packing
        if packing is not None:
            names = filter(packing.may_be_transposed, first)
            shapes = {name: first[name].shape for name in names}
            self.experts = {name: swap_axes(one, shapes) for name, one in self.experts.items()}

    def _drop_tied_heads(self) -> None:
        """Leave out heads that models store as copies of the embeddings."""
        if not self.experts or not all(model.located for model in self._all):
            return
        models = {**({} if self.base is None else {"": self.base}), **self.experts}
        models = dict(drop_tied_heads(models, self._config))
        self.base, self.experts = models.pop("", None), models

    def _select_parts(self) -> None:
        """Rename tensors by the option `map`, and complete models by the option `rest`."""
        is_ambiguous = self.base is not None and "base" in self.experts  # alignment refuses it
        if is_ambiguous or (self._given.rest is None and not self._given.map):
            return
        models = dict(self.by_name)
        self._check_parts(models)
        for name, patterns in self._given.map.items():
            models[name] = rename_by_patterns(models[name], patterns, f"model_pool.map.{name}")
        if self._given.rest is not None:
            models, self._rest = complete_models(models, self._given.rest)
        if self.base is not None:
            self.base = models.pop("base")
        self.experts = models

    def _check_parts(self, models: Mapping[str, WeightSource]) -> None:
        """Raise `RecipeError` for options on unknown models, and on merges of nested recipes."""
        rest = self._given.rest
        named = {} if rest is None else {rest: "rest"}
        named |= dict.fromkeys(self._given.map, "map")
        for name, option in named.items():
            if name not in models:
                raise RecipeError(
                    f"model_pool.{option}: unknown model {name!r}",
                    hint=f"The models are: {', '.join(models)}.",
                )
        changed = named if rest is None else dict.fromkeys(models, "rest")
        for name, option in changed.items():
            if isinstance(models[name], RecipeSource):  # replaced by its merge only as it is
                raise RecipeError(
                    f"model_pool.{option}: {name} is a nested recipe, which is not merged yet",
                    hint="Merge it in a run of its own, and name the output here.",
                )

    @property
    def treatments(self) -> Mapping[str, Treatment]:
        """The routers under the option `router`, and the tensors outside of the merged part."""
        names, has_base = self.reference.infos, self.base is not None
        rest = Treatment("copy", f"copied from {self._given.rest} (rest)")
        routers = treat_routers(self._given.router, names, has_base=has_base)
        return {**routers, **dict.fromkeys(self._rest, rest)}

    def matrices(self, name: str, shape: tuple[int, ...]) -> Matrices:
        """Return the matrices in a tensor, as the first model's configuration says."""
        declared = self._packing and self._packing.matrices(name, shape)
        return declared or super().matrices(name, shape)

    @cached_property
    def _packing(self) -> Packing | None:
        """The rules for models of transformers, if the first model has a configuration."""
        return Packing.of(self._config)

    @cached_property
    def _config(self) -> Mapping[str, Any]:
        """The configuration of the first model."""
        first = self._first_model
        return parse_config(first.side_files, CONFIG, first.name) or {}

    def _find(self, given: Any, name: str, option: str) -> PoolModel:  # noqa: ANN401 - the configuration checked
        if not isinstance(given, str):
            return PoolModel(name, live=given)
        preferred = self.config.format
        located = find_model(given, f"model_pool.{option}", *self.more_files, preferred=preferred)
        return PoolModel(name, None, located, self._side_directory, self.more_files)

    @property
    def _all(self) -> list[PoolModel]:
        return [*([] if self._base is None else [self._base]), *self._models.values()]

    def with_sources(self, sources: Mapping[str, WeightSource]) -> Self:
        """Return this pool with other weights for some models. Adapters move to the new base."""
        clone = super().with_sources(sources)
        if clone.base is not None:
            clone.experts = {
                name: expert.with_base(clone.base) for name, expert in clone.experts.items()
            }
        return clone

    def build(
        self,
        weights: WeightSource,
        *,
        dtype: torch.dtype | None = torch.float32,
        device: torch.device | str = "cpu",
    ) -> nn.Module:
        """Return a copy of the pool's first live module with these weights.

        Parameters that are tied in all models stay tied. They have the values under their first
        name. A warning names those whose values differ, because of random numbers or because
        options are for one of the names alone.

        Raises `FusionError` if the pool has only files or state dicts, whose class is unknown, and
        `AlignmentError` for weights with other tensors than the module.
        """
        module = self._module()
        construct = partial(_copy_without_values, module)
        ties = find_ties(model.live for model in self._all)
        if not weights.is_delta and not ties.keys().isdisjoint(weights.infos):
            _warn_of_untied(weights, ties)
            weights = RenamedSource(weights, {n: n for n in weights.infos if n not in ties})
        return build_model(construct, weights, base=self.base, dtype=dtype, device=device)

    def check_builds(self) -> None:
        """Raise `FusionError` if the pool has no live module."""
        self._module()

    def _module(self) -> nn.Module:
        for given in (self.config.base, *self.config.models.values()):
            if isinstance(given, nn.Module):
                return given
        raise FusionError(
            "the pool 'checkpoints' does not know the class of its models, so it can merge them, "
            "but neither evaluate nor adapt them on tasks",
            hint="Leave the tasks out, or use the pool of the models' family; see: fuse list pools"
            "\nAny library that loads the models can measure the merged directory.",
        )

    def assets(self, *, dtype: torch.dtype | None = None) -> Mapping[str, bytes | Path]:
        """Return the configuration, tokenizer and processor files of the base or first expert.

        After padding of embeddings, the configuration names the new vocabulary size, and the
        tokenizer is that of a model with all tokens.
        """
        first = self._first_model
        if isinstance(first.live, RecipeSource):
            dtype = dtype or _stored_dtype(self.reference)
        files = first.assets(dtype)
        size = vocabulary_size(self.reference)
        original_size = self._vocabulary_size(first)
        if size == original_size:
            return files
        files = resize_vocabulary(files, original_size, size)
        for model in self._all:
            if self._vocabulary_size(model) == size:
                return {**files, **select_tokenizer_files(model.assets())}
        return files

    def _vocabulary_size(self, model: PoolModel) -> int:
        """Return the number of tokens that a model had before padding."""
        return vocabulary_size(self._sources["" if model is self._base else model.name])

    @property
    def _first_model(self) -> PoolModel:
        """The model whose side files the output has."""
        if self._given.rest in self._models:
            return self._models[self._given.rest]
        return self._all[0]

    def files_of(self, model: str) -> Files:
        """Return the side files of a model by its name, as they may be copied.

        An adapter's are those of its trainer, perhaps with a tokenizer.
        """
        models = {known.name: known for known in self._all}
        return models[model].assets()

    def side_files(self) -> Mapping[str, Files]:
        """Return each model's side files. A nested recipe has those of its result.

        Under the option `rest`, a configuration is that of the part which all models have.
        """
        files = {model.name: model.side_files for model in self._all}
        if self._given.rest is None:
            return files
        return {model: change_config(known, describe_part) for model, known in files.items()}

    def cards(self) -> Mapping[str, Mapping[str, Any]]:
        """Return what each model's card states."""
        return {
            model.name: read_card(model.location.directory)
            for model in self._all
            if model.location is not None
        }


def _copy_without_values(module: nn.Module) -> nn.Module:
    """Copy a module with its buffers. The copied parameters have no values."""
    empty = {
        id(parameter): nn.Parameter(
            parameter.detach().to("meta"), requires_grad=parameter.requires_grad
        )
        for parameter in module.parameters()
    }
    return copy.deepcopy(module, dict(empty))


def _warn_of_untied(weights: WeightSource, ties: Mapping[str, str]) -> None:
    """Warn of tied names under which weights have different values."""
    for name, first in ties.items():
        is_known = {name, first} <= weights.infos.keys()
        if is_known and not torch.equal(weights.tensor(name), weights.tensor(first)):
            _LOG.warning(
                "%s and %s are one tensor of the module, and were merged to different values; the "
                "live model has those of %s. Give options for both names",
                first,
                name,
                first,
            )


def _stored_dtype(source: WeightSource) -> torch.dtype | None:
    """Return the dtype of a source's first floating-point tensor."""
    dtypes = (info.dtype for info in source.infos.values())
    return next((dtype for dtype in dtypes if dtype.is_floating_point), None)
