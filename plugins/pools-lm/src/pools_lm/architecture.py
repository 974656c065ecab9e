"""Live models of transformers, made of a configuration and weights under any of their spellings."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any

import torch
import transformers

from fusion_core.errors import CheckpointError
from fusion_core.weights import RenamedSource, same_tensors

if TYPE_CHECKING:
    from collections.abc import Mapping

    from transformers import PreTrainedConfig, PreTrainedModel

    from fusion_core.weights import WeightSource

#: Buffers that old files hold and no model of today has.
_OLD_BUFFERS = (r"rotary_emb\.inv_freq$",)


@dataclass(frozen=True)
class Architecture:
    """A class of transformers, found by an Auto class and the text of a `config.json`."""

    auto: str
    config: str

    def construct(self) -> PreTrainedModel:
        """Return a model with initial weights, fp32.

        No code but the installed transformers' runs. Raises `CheckpointError` for a configuration
        that it does not know, or cannot make such a model of.
        """
        return self._constructed(self._fields)

    @cached_property
    def tensors(self) -> dict[str, torch.Tensor]:
        """The parameters and buffers of such a model on the meta device; tied under each name."""
        return _tensors(self._on_meta)

    def named(self, source: WeightSource) -> RenamedSource:
        """Return weights by the live model's names, without what transformers ignores."""
        live = {there: here for here, there in same_tensors(self.tensors, source.infos).items()}
        known = (name for name in source.infos if name in live or not self._is_ignored(name))
        return RenamedSource(source, {live.get(name, name): name for name in known})

    def _is_ignored(self, name: str) -> bool:
        own = self._on_meta._keys_to_ignore_on_load_unexpected or ()  # noqa: SLF001 - its own rule
        return any(re.search(pattern, name) for pattern in (*own, *_OLD_BUFFERS))

    @property
    def _fields(self) -> dict[str, Any]:
        fields: dict[str, Any] = json.loads(self.config)
        return fields

    @cached_property
    def _on_meta(self) -> PreTrainedModel:
        with torch.device("meta"):
            return self._constructed(self._fields)

    def _constructed(self, fields: dict[str, Any]) -> PreTrainedModel:
        kind = getattr(transformers, self.auto)
        try:
            model: PreTrainedModel = kind.from_config(_configured(fields), dtype=torch.float32)
        except Exception as error:  # whatever the configuration's and the model's classes raise
            raise CheckpointError(
                f"transformers {transformers.__version__} makes no {self.auto} of this "
                f"config.json ({fields.get('model_type')}): {error}",
                hint="Use the pool of the model's kind: fuse list pools; 'checkpoints' merges any.",
            ) from error
        return model


@lru_cache(maxsize=8)
def architecture(auto: str, config: str) -> Architecture:
    """Return the architecture, the same for the same text: what it has found is found once."""
    return Architecture(auto, config)


def _configured(fields: Mapping[str, Any]) -> PreTrainedConfig:
    kind = fields.get("model_type")
    if not isinstance(kind, str):
        raise TypeError("it names no model_type")
    own = {key: value for key, value in fields.items() if key != "model_type"}
    return transformers.AutoConfig.for_model(kind, **own)


def _tensors(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    return {
        **dict(model.named_parameters(remove_duplicate=False)),
        **dict(model.named_buffers(remove_duplicate=False)),
    }
