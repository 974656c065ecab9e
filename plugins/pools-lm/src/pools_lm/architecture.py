"""Live models of transformers, made of a configuration and weights under any of their spellings."""

from __future__ import annotations

import json
import re
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any

import torch
import transformers
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightRenaming

from fusion_core.errors import CheckpointError
from fusion_core.weights import RenamedSource, same_tensors

if TYPE_CHECKING:
    from collections.abc import Iterator

    from transformers import PreTrainedConfig, PreTrainedModel

    from fusion_core.weights import WeightSource

#: Buffers that old files hold and no model of today has.
_OLD_BUFFERS = (r"rotary_emb\.inv_freq$",)
#: The classes of models with a head around an encoder or decoder, the likeliest first.
_WITH_HEADS = (
    "AutoModelForPreTraining",
    "AutoModelForMaskedLM",
    "AutoModelForSequenceClassification",
    "AutoModelForTokenClassification",
    "AutoModelForQuestionAnswering",
    "AutoModelForCausalLM",
)


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
        return self._constructed(self._configuration())

    @property
    def checked(self) -> Architecture:
        """This architecture, once such a model was made; raises as `construct` does."""
        _ = self._on_meta
        return self

    @cached_property
    def tensors(self) -> dict[str, torch.Tensor]:
        """The parameters and buffers of such a model on the meta device; tied under each name."""
        return _tensors(self._on_meta)

    def misfit(self, named: WeightSource) -> str | None:
        """Say which tensor such a model lacks, or has in another shape; None where all fit."""
        own, given = self.tensors, named.infos
        held = {self.tied[name] for name in own.keys() & given.keys()}
        lacking = [name for name in self._on_meta.state_dict() if self.tied[name] not in held]
        strange = [name for name in given if name not in own]
        if lacking or strange:
            problem = "missing" if lacking else "unexpected"
            return f"{(lacking or strange)[0]!r} is {problem}"
        for name, info in given.items():
            if info.shape != (shape := tuple(own[name].shape)):
                return f"{name!r} has shape {list(info.shape)}, where the model has {list(shape)}"
        return None

    @property
    def version(self) -> str:
        """The version of transformers that is installed."""
        return str(transformers.__version__)

    @property
    def kind(self) -> str:
        """The class of such a model."""
        return type(self._on_meta).__name__

    @cached_property
    def tied(self) -> dict[str, str]:
        """Every parameter's first name: tensors of one first name are one."""
        names = {id(each): name for name, each in reversed(self.tensors.items())}
        return {name: names[id(each)] for name, each in self.tensors.items()}

    @cached_property
    def vocabulary(self) -> dict[str, int]:
        """The tensors with a row for each token, and the dimension that the tokens are.

        Those whose shape changes with the number of tokens, whatever they are called.
        """
        config = self._configuration()
        config.get_text_config().vocab_size += 1
        with torch.device("meta"):
            more = _tensors(self._constructed(config))
        return {
            name: axis
            for name, tensor in self.tensors.items()
            for axis, (one, other) in enumerate(zip(tensor.shape, more[name].shape, strict=True))
            if one != other
        }

    def named(self, source: WeightSource) -> RenamedSource:
        """Return weights by the live model's names, without what transformers ignores.

        Names of old files are renamed as transformers does when it loads them.
        """
        today = {self.renamed(name): name for name in source.infos}
        live = {there: here for here, there in same_tensors(self.tensors, today).items()}
        known = (name for name in today if name in live or not self._is_ignored(name))
        return RenamedSource(source, {live.get(name, name): today[name] for name in known})

    def renamed(self, name: str) -> str:
        """Return what transformers calls a tensor of an old file today."""
        for renaming in self._renamings:
            name, _ = renaming.rename_source_key(name)
        return name

    def has_in_head(self, name: str) -> bool:
        """Tell whether transformers puts a tensor of this name around models of this kind."""
        return any(name in each.tensors for each in self._with_heads())

    def _with_heads(self) -> Iterator[Architecture]:
        for auto in _WITH_HEADS:
            with suppress(CheckpointError):
                yield architecture(auto, self.config).checked

    @cached_property
    def _renamings(self) -> list[WeightRenaming]:
        found = get_model_conversion_mapping(self._on_meta)
        return [each for each in found if isinstance(each, WeightRenaming)]

    def _is_ignored(self, name: str) -> bool:
        own = self._on_meta._keys_to_ignore_on_load_unexpected or ()  # noqa: SLF001 - its own rule
        return any(re.search(pattern, name) for pattern in (*own, *_OLD_BUFFERS))

    @cached_property
    def _on_meta(self) -> PreTrainedModel:
        with torch.device("meta"):
            return self._constructed(self._configuration())

    def _constructed(self, config: PreTrainedConfig) -> PreTrainedModel:
        kind = getattr(transformers, self.auto)
        try:
            model: PreTrainedModel = kind.from_config(config, dtype=torch.float32)
        except Exception as error:  # whatever the model's class raises
            raise self._impossible(error) from error
        return model

    def _configuration(self) -> PreTrainedConfig:
        fields: dict[str, Any] = json.loads(self.config)
        kind = fields.pop("model_type", None)
        try:
            return transformers.AutoConfig.for_model(kind, **fields)
        except Exception as error:  # whatever the configuration's class raises
            raise self._impossible(error) from error

    def _impossible(self, error: Exception) -> CheckpointError:
        kind = json.loads(self.config).get("model_type")
        return CheckpointError(
            f"transformers {transformers.__version__} makes no {self.auto} of this config.json, "
            f"whose model_type is {kind!r}: {error}",
            hint="Use the pool of the model's kind: fuse list pools; 'checkpoints' merges any.",
        )


@lru_cache(maxsize=16)
def architecture(auto: str, config: str) -> Architecture:
    """Return the architecture, the same for the same text: what it has found is found once."""
    return Architecture(auto, config)


def _tensors(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    return {
        **dict(model.named_parameters(remove_duplicate=False)),
        **dict(model.named_buffers(remove_duplicate=False)),
    }
