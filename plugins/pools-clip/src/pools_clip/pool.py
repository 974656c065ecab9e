"""The pool `clip`: what is fused is the vision tower of CLIP models."""

from __future__ import annotations

import json
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from fusion_core import ComponentConfig, ModelPool, build_model
from fusion_core.errors import AlignmentError
from fusion_core.weights import layers_of, licence_of
from pools_clip.config import ClipConfig
from pools_clip.directory import CONFIG, PREPROCESSOR, ClipDirectory
from pools_clip.vision import PREFIX, VisionTower, architecture, canonical

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch import nn
    from transformers import CLIPVisionConfig

    from fusion_core.weights import WeightSource

#: What a tower computes depends on these, and no tensor's shape shows them.
_UNSEEN = ("hidden_act", "layer_norm_eps", "num_attention_heads")


class ClipPool(ModelPool[ComponentConfig]):
    """Vision towers of a base and its experts, by the names of the hub's files: `vision_model.…`.

    The text tower, the projections and the logit scale are not fused: they make the heads of
    `clip-classification`. A pool that brings its own models passes a `ClipConfig` to this
    constructor and then sets `config` to its own options, which are what a recipe records.

    Raises `CheckpointError` for a missing directory or a model that is not CLIP, `AlignmentError`
    for experts of another architecture.
    """

    config_class: ClassVar[type[ComponentConfig]] = ClipConfig
    builds_any_depth = True

    def __init__(self, config: ClipConfig) -> None:
        super().__init__(config)
        self._directory = ClipDirectory.open(config.base, "model_pool.base")
        self._licences = {"base": licence_of(self._directory.path)}
        self._processors = {"base": self._directory.preprocessor}
        self.base: WeightSource = VisionTower(self._directory.weights())
        self.experts = {name: self._expert(name, given) for name, given in config.models.items()}

    def build(
        self,
        weights: WeightSource,
        *,
        dtype: torch.dtype | None = torch.float32,
        device: torch.device | str = "cpu",
    ) -> nn.Module:
        """Return a CLIPVisionModel of the weights' depth; either spelling of names will do."""
        from transformers import CLIPVisionModel  # 3 seconds, which a merge alone does not need

        return build_model(
            partial(CLIPVisionModel, self._architecture_of(weights)),
            weights,
            base=self.base,
            rename=lambda name: name.removeprefix(PREFIX),
            dtype=dtype,
            device=device,
        )

    def parameters(self, module: nn.Module) -> Mapping[str, nn.Parameter]:
        """Map `vision_model.…` to the live parameters of a model that `build` returned."""
        return {canonical(name): value for name, value in module.named_parameters()}

    def assets(self, *, dtype: torch.dtype | None = None) -> Mapping[str, bytes | Path]:
        """Return what makes a CLIPVisionModel directory: configuration and preprocessor, if any."""
        named = self._directory.dtype if dtype is None else str(dtype).removeprefix("torch.")
        config = {
            "architectures": ["CLIPVisionModel"],
            "model_type": "clip_vision_model",
            **self._directory.vision,
            "num_hidden_layers": self._architecture.num_hidden_layers,
            **({"dtype": named} if named else {}),
        }
        settings = self._directory.preprocessor
        if settings is None:
            return {CONFIG: _json(config)}
        processor = {"image_processor_type": "CLIPImageProcessor", **settings}
        return {CONFIG: _json(config), PREPROCESSOR: _json(processor)}

    def beside(self) -> Mapping[str, Mapping[str, bytes | Path]]:
        """Return how each model's images become pixels; architectures are compared when opened."""
        return {
            name: {} if settings is None else {PREPROCESSOR: _json(settings)}
            for name, settings in self._processors.items()
        }

    def identity(self) -> Mapping[str, Any]:
        """Say that towers depend on nothing but their weights and their configuration."""
        return {}

    def licences(self) -> Mapping[str, str | None]:
        """Return each model's licence, as the card beside it names it."""
        return self._licences

    @cached_property
    def _architecture(self) -> CLIPVisionConfig:
        return architecture(self._directory.vision, str(self._directory.path))

    def _architecture_of(self, weights: WeightSource) -> CLIPVisionConfig:
        names = self.base.infos if weights.is_delta else weights.infos
        numbers = {number for layers in layers_of(names).values() for number in layers}
        depth = {"num_hidden_layers": max(numbers, default=-1) + 1}
        return architecture({**self._directory.vision, **depth}, str(self._directory.path))

    def _expert(self, name: str, given: str) -> VisionTower:
        directory = ClipDirectory.open(given, f"model_pool.models.{name}")
        theirs = architecture(directory.vision, str(directory.path))
        for field in _UNSEEN:
            ours, other = getattr(self._architecture, field), getattr(theirs, field)
            if ours != other:
                raise AlignmentError(
                    f"expert {name!r} has {field} {other!r}, the base {ours!r}",
                    hint="Merge only models that were fine-tuned from the base.",
                )
        self._licences[name] = licence_of(directory.path)
        self._processors[name] = directory.preprocessor
        return VisionTower(directory.weights())


def _json(content: Mapping[str, Any]) -> bytes:
    return json.dumps(content, indent=2, ensure_ascii=False).encode() + b"\n"
