"""Live transformers models, built from a configuration and weights under old or current names."""

from __future__ import annotations

import inspect
import json
import re
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any

import torch
import transformers
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightRenaming

from fusion_core.errors import CheckpointError
from fusion_core.weights import RenamedSource, match_names
from pools_lm.stored_tensors import StoredTensors
from pools_lm.tokenizer_files import VOCABULARY_SIZES

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from transformers import PreTrainedConfig, PreTrainedModel

    from fusion_core.weights import WeightSource

#: Auto classes of models with a head on an encoder or decoder, most common first.
_WITH_HEADS = (
    "AutoModelForPreTraining",
    "AutoModelForMaskedLM",
    "AutoModelForSequenceClassification",
    "AutoModelForTokenClassification",
    "AutoModelForQuestionAnswering",
    "AutoModelForCausalLM",
)
#: A constant of GPT-2's files that current models do not have. No pattern of transformers names it.
_DROPPED = frozenset({"masked_bias"})


@contextmanager
def _without_values_on_meta() -> Iterator[None]:
    """Spare transformers the initial values of parameters on the meta device, which hold none.

    Drawing them there takes most of the time of constructing a small model.
    """

    def mark(_: nn.Module, __: str, parameter: nn.Parameter) -> None:
        if parameter.is_meta:
            parameter._is_hf_initialized = True  # type: ignore[attr-defined] # noqa: SLF001 - as transformers marks tensors that have their values

    hook = register_module_parameter_registration_hook(mark)
    try:
        yield
    finally:
        hook.remove()


@dataclass(frozen=True)
class Architecture:
    """A model class of transformers, selected by an Auto class and the text of a `config.json`."""

    auto: str
    config: str
    #: False for an encoder without the pooling layer that its class has by default
    is_pooled: bool = True

    def construct(self) -> PreTrainedModel:
        """Return a model with initial weights in fp32.

        Only code of the installed transformers runs. Raises `CheckpointError` for a configuration
        that transformers does not know or cannot build with this Auto class.
        """
        return self._construct(self._read_config())

    def check(self) -> None:
        """Raise `CheckpointError` if `construct` would."""
        _ = self._on_meta

    @cached_property
    def tensors(self) -> dict[str, torch.Tensor]:
        """The state dict, on the meta device. A tied tensor appears under all its names."""
        return self._on_meta.state_dict(keep_vars=True)

    @cached_property
    def files(self) -> StoredTensors:
        """How files may store the tensors."""
        return StoredTensors.of(self._on_meta, self.tensors, self.tied)

    @property
    def can_omit_pooler(self) -> bool:
        """Whether the class has a pooling layer that it can be built without."""
        options = inspect.signature(type(self._on_meta).__init__).parameters
        return "add_pooling_layer" in options and has_pooler(self.tensors)

    @cached_property
    def reserved_positions(self) -> int:
        """The number of rows of the position table that no token of a text uses.

        RoBERTa and its relatives count positions from `padding_idx` + 1.
        """
        positions = getattr(self._on_meta.config, "max_position_embeddings", None)
        indices = [
            module.padding_idx
            for name, module in self._on_meta.named_modules()
            if "position" in name.rpartition(".")[2]
            and isinstance(module, nn.Embedding)
            and module.padding_idx is not None
            and module.num_embeddings == positions
        ]
        return max(indices, default=-1) + 1

    @property
    def version(self) -> str:
        """The installed version of transformers."""
        return str(transformers.__version__)

    @property
    def class_name(self) -> str:
        """The name of the model class."""
        return type(self._on_meta).__name__

    @cached_property
    def tied(self) -> dict[str, str]:
        """Each tensor's first name. Tied tensors share one first name."""
        names = {id(tensor): name for name, tensor in reversed(self.tensors.items())}
        return {name: names[id(tensor)] for name, tensor in self.tensors.items()}

    @cached_property
    def vocabulary_axes(self) -> dict[str, int]:
        """The tensors with one row per token, and the dimension of their tokens.

        A tensor is one of them if its shape changes with `vocab_size`, or with
        `vocab_size_per_layer_input` (Gemma 3n), whatever its name.
        """
        config = self._read_config()
        text_config = config.get_text_config()
        for field in VOCABULARY_SIZES:
            if size := getattr(text_config, field, 0):
                setattr(text_config, field, size + 1)
        with torch.device("meta"):
            larger = self._construct(config).state_dict(keep_vars=True)
        return {
            name: axis
            for name, tensor in self.tensors.items()
            for axis, sizes in enumerate(zip(tensor.shape, larger[name].shape, strict=True))
            if sizes[0] != sizes[1]
        }

    def rename_to_live(self, source: WeightSource) -> RenamedSource:
        """Return weights under the live model's names, without tensors that transformers ignores.

        Names in old files are converted as transformers does on loading. Tensors that transformers
        joins or divides stay as they are stored, under the names in `files`.
        """
        stored = {self.modernize_name(name): name for name in source.infos}
        live = {
            name: live_name for live_name, name in match_names(self.files.shapes, stored).items()
        }
        names = [name for name in stored if name in live or not self._is_ignored(name)]
        return RenamedSource(source, {live.get(name, name): stored[name] for name in names})

    def modernize_name(self, name: str) -> str:
        """Return the current name in transformers of a tensor from an old file.

        Patterns for old names may also match current ones (`norm` of DeepSeek-V4).
        """
        if name in self.tensors:
            return name
        for renaming in self._renamings:
            name, _ = renaming.rename_source_key(name)
        return name

    def has_in_head(self, name: str) -> bool:
        """Tell whether a head class of transformers for this configuration has such a tensor."""
        for auto in _WITH_HEADS:
            with suppress(CheckpointError):  # this architecture has no head of this kind
                if name in load_architecture(auto, self.config).tensors:
                    return True
        return False

    @cached_property
    def _renamings(self) -> list[WeightRenaming]:
        conversions = get_model_conversion_mapping(self._on_meta)
        return [renaming for renaming in conversions if isinstance(renaming, WeightRenaming)]

    def _is_ignored(self, name: str) -> bool:
        model = self._on_meta
        patterns = model._keys_to_ignore_on_load_unexpected or ()  # noqa: SLF001 - the only source
        return self.computes(name) or any(re.search(pattern, name) for pattern in patterns)

    def computes(self, name: str) -> bool:
        """Tell whether a live model computes or lacks this buffer, which old files may contain."""
        return name not in self.tensors and name.rpartition(".")[2] in self._computed

    @cached_property
    def _computed(self) -> frozenset[str]:
        """The last parts of the names of buffers that the model does not store."""
        buffers = {name for name, _ in self._on_meta.named_buffers()}
        return _DROPPED | {name.rpartition(".")[2] for name in buffers - self.tensors.keys()}

    @cached_property
    def _on_meta(self) -> PreTrainedModel:
        with torch.device("meta"):
            return self.construct()

    def _construct(self, config: PreTrainedConfig) -> PreTrainedModel:
        auto_class = getattr(transformers, self.auto)
        options = {} if self.is_pooled else {"add_pooling_layer": False}
        try:
            with _without_values_on_meta():
                model: PreTrainedModel = auto_class.from_config(
                    config, dtype=torch.float32, **options
                )
        except Exception as error:  # model classes raise anything
            raise self._unsupported(error) from error
        if model.can_generate():  # from_config drops what config.json says of it
            forced = json.loads(self.config).get("forced_bos_token_id")
            model.generation_config.forced_bos_token_id = forced
        return model

    def _read_config(self) -> PreTrainedConfig:
        try:
            fields = json.loads(self.config, object_hook=_decode_number)
            model_type = fields.pop("model_type", None)
            return transformers.AutoConfig.for_model(model_type, **fields)
        except Exception as error:  # configuration classes raise anything
            raise self._unsupported(error) from error

    def _unsupported(self, error: Exception) -> CheckpointError:
        model_type = json.loads(self.config).get("model_type")
        reason = str(error).partition("\n")[0]  # transformers goes on to list all its models
        return CheckpointError(
            f"transformers {transformers.__version__} cannot build an {self.auto} from config.json "
            f"with model_type {model_type!r}: {reason}",
            hint="Choose the pool for this kind of model (fuse list pools), or 'checkpoints', "
            "which merges any weights.",
        )


def has_pooler(names: Iterable[str]) -> bool:
    """Tell whether tensors with these names include those of an encoder's pooling layer."""
    return any(".pooler." in f".{name}" for name in names)


def _decode_number(content: dict[str, Any]) -> Any:  # noqa: ANN401 - any value of JSON
    """Return an object of JSON, or the infinity or NaN that transformers writes as an object."""
    return float(content["__float__"]) if content.keys() == {"__float__"} else content


@lru_cache(maxsize=16)
def load_architecture(auto: str, config: str, *, is_pooled: bool = True) -> Architecture:
    """Return one shared architecture per configuration, which caches its properties."""
    return Architecture(auto, config, is_pooled)
