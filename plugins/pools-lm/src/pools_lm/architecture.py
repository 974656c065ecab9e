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

from fusion_core.errors import AlignmentError, CheckpointError
from fusion_core.weights import Layout, RenamedSource, match_names
from pools_lm.conversion import find_divided, find_joined
from pools_lm.tokenizer_files import VOCABULARY_SIZES

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping

    from transformers import PreTrainedConfig, PreTrainedModel

    from fusion_core.weights import TensorInfo, WeightSource

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
    def joined(self) -> Layout:
        """The live tensors that hold several of a file's, such as a mixture's experts."""
        return find_joined(self._on_meta, self.tensors)

    @cached_property
    def divided(self) -> Layout:
        """The tensors of files that hold several live ones, such as query, key and value."""
        return find_divided(self._on_meta, self.tensors)

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

    def find_misfit(self, weights: WeightSource) -> str | None:
        """Describe the first missing, unexpected or misshapen tensor; None if all fit."""
        for name in self.divided.slots_in(weights):
            if (shape := weights.infos[name].shape) != (expected := self._shapes[name]):
                return f"{name!r} has shape {list(shape)}, expected {list(expected)}"
        infos = self.divided.unpack(weights).infos
        stored = {self.tied[name] for name in self.tensors.keys() & infos.keys()}
        for name in self.tensors:
            if self.tied[name] not in stored and not self._holds_any(name, infos):
                return f"{name!r} is missing"
        for name in infos:
            if name not in self._shapes:
                return f"{name!r} is unexpected"
        for name, info in infos.items():
            if info.shape != (shape := self._shapes[name]):
                return f"{name!r} has shape {list(info.shape)}, expected {list(shape)}"
        return self._find_incomplete(infos)

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
        joins or divides stay as they are stored, under the names in `joined` and `divided`.
        """
        stored = {self.modernize_name(name): name for name in source.infos}
        live = {name: live_name for live_name, name in match_names(self._shapes, stored).items()}
        names = [name for name in stored if name in live or not self._is_ignored(name)]
        return RenamedSource(source, {live.get(name, name): stored[name] for name in names})

    def pack(self, source: WeightSource) -> WeightSource:
        """Return weights under live names with tensors joined and divided as in the live model.

        Raises `AlignmentError` for tensors that are missing or have other shapes.
        """
        return self._pack(self._divide(source, self.divided.slots), self.joined.slots)

    def pack_like(self, source: WeightSource, names: Collection[str]) -> WeightSource:
        """Return weights under live names with tensors joined and divided as in `names`.

        Raises `AlignmentError` for tensors that are missing or have other shapes.
        """
        names = set(names)
        whole = self.divided.slots
        source = self._divide(source, whole.keys() - names)
        stored = {n: s for n, s in whole.items() if n in names and n not in source.infos}
        source = Layout(stored, self.divided.shapes).pack(source)
        slots, shapes = self.joined.slots, self.joined.shapes
        separate = [n for n in slots if n in source.infos and self._holds_any(n, names)]
        for name in separate:
            if source.infos[name].shape != shapes[name]:
                shape, expected = list(source.infos[name].shape), list(shapes[name])
                raise self._misfit(source, f"{name!r} has shape {shape}, expected {expected}")
        source = self._part(separate).unpack(source)
        return self._pack(source, [name for name in slots if name in names])

    def _divide(self, source: WeightSource, tensors: Collection[str]) -> WeightSource:
        """Divide some of a file's tensors, as far as the source has them."""
        slots = {name: s for name, s in self.divided.slots_in(source).items() if name in tensors}
        for name in slots:
            shape, expected = list(source.infos[name].shape), list(self.divided.shapes[name])
            if shape != expected:
                raise self._misfit(source, f"{name!r} has shape {shape}, expected {expected}")
        return Layout(slots, self.divided.shapes).unpack(source)

    def _pack(self, source: WeightSource, tensors: Collection[str]) -> WeightSource:
        """Pack the experts of some live tensors, as far as the source has them one by one."""
        layout = self._part(name for name in tensors if self._holds_any(name, source.infos))
        problem = self._find_incomplete(source.infos) if layout.slots else None
        if problem is not None:
            raise self._misfit(source, problem)
        return layout.pack(source)

    def _misfit(self, source: WeightSource, problem: str) -> AlignmentError:
        return AlignmentError(
            f"{source.describe()} does not fit {self.class_name}: tensor {problem}",
            hint="Check that the models have one configuration, and that it belongs to them.",
        )

    def _part(self, tensors: Iterable[str]) -> Layout:
        """Return the layout of some tensors."""
        slots = {name: self.joined.slots[name] for name in tensors}
        return Layout(slots, self.joined.shapes)

    def _holds_any(self, tensor: str, names: Collection[str]) -> bool:
        """Tell whether a tensor holds matrices with any of these names."""
        return any(slot.name in names for slot in self.joined.slots.get(tensor, ()))

    def _find_incomplete(self, infos: Mapping[str, TensorInfo]) -> str | None:
        """Describe the first expert that does not fit the others that are packed with it."""
        for slots in self.joined.slots.values():
            stored = [infos[slot.name] for slot in slots if slot.name in infos]
            for slot in slots if stored else ():
                if slot.name not in infos:
                    return f"{slot.name!r} is missing"
                info = infos[slot.name]
                if info.shape != slot.shape:
                    return (
                        f"{slot.name!r} has shape {list(info.shape)}, expected {list(slot.shape)}"
                    )
                if info.dtype != stored[0].dtype:
                    return f"{slot.name!r} has dtype {info.dtype}, the others {stored[0].dtype}"
        return None

    @cached_property
    def _shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of every live tensor, and of every tensor that files store instead."""
        joined = self.joined.slots.values()
        return {
            **{name: tuple(tensor.shape) for name, tensor in self.tensors.items()},
            **{slot.name: slot.shape for slots in joined for slot in slots},
            **self.divided.shapes,
        }

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
