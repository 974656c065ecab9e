"""Model pools of language models. An Auto class of transformers builds each kind of model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fusion_core.weights import RenamedSource
from pools_lm.language_pool import LanguagePool
from pools_lm.side_files import ENCODER_FILES, drop_foreign_modules

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch

    from fusion_core import WeightSource
    from fusion_core.weights import Files
    from pools_lm.architecture import Architecture


class CausalPool(LanguagePool):
    """Decoders that continue a text."""

    auto = "AutoModelForCausalLM"


class VisionLanguagePool(LanguagePool):
    """Vision-language models. Text tasks measure them without images.

    Under the option `rest`, a part of one model is merged with language models, and the others are
    built with its remaining tensors.
    """

    auto = "AutoModelForImageTextToText"
    holds_parts = True


class Seq2SeqPool(LanguagePool):
    """Encoder-decoders that map one text to another."""

    auto = "AutoModelForSeq2SeqLM"


class ClassificationPool(LanguagePool):
    """Text classifiers."""

    auto = "AutoModelForSequenceClassification"


class EncoderPool(LanguagePool):
    """Text encoders. A SentenceTransformer keeps the base's other modules."""

    auto = "AutoModel"
    more_files = ENCODER_FILES

    def assets(self, *, dtype: torch.dtype | None = None) -> Files:
        """Return an encoder's side files, including those of its modules."""
        return drop_foreign_modules(super().assets(dtype=dtype))

    def _load_architecture(self, config: Mapping[str, Any], weights: WeightSource) -> Architecture:
        """Return the architecture of an encoder, without a pooling layer if the weights lack it.

        Embeddings do not use this layer, and many checkpoints with a head omit it.
        """
        from pools_lm.architecture import has_pooler, load_architecture

        architecture = super()._load_architecture(config, weights)
        if has_pooler(weights.infos) or not architecture.can_omit_pooler:
            return architecture
        return load_architecture(self.auto, architecture.config, is_pooled=False)

    def _rename_to_live(self, weights: WeightSource, architecture: Architecture) -> RenamedSource:
        """Return an encoder's weights without heads, which transformers drops as well."""
        names = super()._rename_to_live(weights, architecture).names
        without_heads = {
            name: stored
            for name, stored in names.items()
            if name in architecture.tensors or not architecture.has_in_head(name)
        }
        return RenamedSource(weights, without_heads)
