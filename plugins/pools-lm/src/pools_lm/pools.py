"""The pools of language models: checkpoints whose class transformers finds by their head."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch

from fusion_core import CheckpointsPool, build_model
from fusion_core.errors import CheckpointError
from fusion_core.weights import as_weights, safe_config, tokenizer_of
from pools_lm.beside import OF_ENCODERS, has_chat_template, left_out, with_own_modules
from pools_lm.config import LanguageConfig

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from torch import nn

    from fusion_core import AlignmentPolicy, WeightSource
    from pools_lm.architecture import Architecture


class LanguagePool(CheckpointsPool):
    """Models that an Auto class of transformers knows: directories, hub ids, LoRA adapters."""

    config_class: ClassVar[Any] = LanguageConfig
    #: the class of transformers that finds a model's own
    auto: ClassVar[str]

    def build(
        self,
        weights: WeightSource,
        *,
        dtype: torch.dtype | None = torch.float32,
        device: torch.device | str = "cpu",
    ) -> nn.Module:
        """Return a live model of transformers with these weights.

        Raises `CheckpointError` without a configuration that transformers knows, `AlignmentError`
        for weights that do not fit it.
        """
        own = self._architecture
        named = own.named(as_weights(weights, self.base))
        return build_model(own.construct, named, dtype=dtype, device=device)

    def check_builds(self) -> None:
        """Raise `CheckpointError` if transformers makes no model of the configuration."""
        _ = self._architecture.tensors

    def parameters(self, module: nn.Module) -> Mapping[str, nn.Parameter]:
        """Map the sources' names to the live parameters; tied ones go by what is stored."""
        live = dict(module.named_parameters(remove_duplicate=False))
        names = self._architecture.named(self.reference).names
        return {name: live[here] for here, name in names.items() if here in live}

    def aligned(self, policy: AlignmentPolicy) -> Self:
        """Return this pool with models that fit, and say what lies beside the base in vain."""
        clone = super().aligned(policy)
        clone.warnings = (*clone.warnings, *self._said())
        return clone

    @property
    def _architecture(self) -> Architecture:
        from pools_lm.architecture import architecture  # transformers: seconds

        fields = safe_config({**self.beside()[self._first], **self.assets()}, self._first)
        if fields is None:
            raise CheckpointError(
                f"{self.reference.describe()} has no config.json beside it",
                hint="Name the directory that save_pretrained wrote; 'checkpoints' merges any.",
            )
        return architecture(self.auto, json.dumps(fields))

    @property
    def _first(self) -> str:
        return next(iter(self.by_name))

    def _said(self) -> Iterator[str]:
        """Say what an output will not have that the base, or an expert, has."""
        first, taken = self._all[0], self.assets()
        if first.location is None or not taken:
            return
        if lost := left_out(first.location.names(), taken):
            yield f"beside {first.name}, and not copied (code never is): {', '.join(lost)}"
        if not tokenizer_of(taken):
            yield f"{first.name} has no tokenizer, and so the output has none"
        if not has_chat_template(taken):
            for name in self.experts:
                if has_chat_template(self.files_of(name)):
                    yield f"{name} has a chat template; {first.name}, and so the output, has none"


class CausalPool(LanguagePool):
    """Models that go on with a text."""

    auto = "AutoModelForCausalLM"


class Seq2SeqPool(LanguagePool):
    """Models that answer a text with another."""

    auto = "AutoModelForSeq2SeqLM"


class ClassificationPool(LanguagePool):
    """Models that put a text into a class."""

    auto = "AutoModelForSequenceClassification"


class EncoderPool(LanguagePool):
    """Encoders of texts; of a SentenceTransformer, its other modules are the base's."""

    auto = "AutoModel"
    more_files = OF_ENCODERS

    def assets(self, *, dtype: torch.dtype | None = None) -> Mapping[str, bytes | Path]:
        """Return an encoder's files, those of its modules included."""
        return with_own_modules(super().assets(dtype=dtype))
