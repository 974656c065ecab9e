"""The pool `clip`, which merges the vision towers of CLIP models."""

from __future__ import annotations

import json
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from fusion_core import ComponentConfig, build_model
from fusion_core.errors import AlignmentError
from fusion_core.weights import layers_of
from pools_checkpoints import DescribedPool, read_card
from pools_clip.config import ClipConfig
from pools_clip.directory import CONFIG, PREPROCESSOR, ClipDirectory
from pools_clip.vision import PREFIX, VisionTower, canonical_name, vision_config

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch import nn
    from transformers import CLIPVisionConfig

    from fusion_core.weights import WeightSource

#: Fields that affect the computation, but no tensor's shape.
_SHAPELESS_FIELDS = ("hidden_act", "layer_norm_eps", "num_attention_heads")


class ClipPool(DescribedPool[ComponentConfig]):
    """Vision towers of a base and its experts, under the names of the hub's files.

    The text tower, the projections and the logit scale are not merged. They define the heads of
    `clip-classification`. A pool that brings its own models passes a `ClipConfig` to this
    constructor. It then sets `config` to its own options, which a recipe records.

    Raises `CheckpointError` for a missing directory or a model that is not CLIP, `AlignmentError`
    for experts with another architecture.
    """

    config_class: ClassVar[type[ComponentConfig]] = ClipConfig
    builds_any_depth = True

    def __init__(self, config: ClipConfig) -> None:
        super().__init__(config)
        self._directory = ClipDirectory.open(config.base, "model_pool.base")
        self._cards = {"base": read_card(self._directory.path)}
        self._processors = {"base": self._directory.preprocessor}
        self.base: WeightSource = VisionTower(self._directory.weights())
        self.experts = {name: self._open_expert(name, path) for name, path in config.models.items()}

    def build(
        self,
        weights: WeightSource,
        *,
        dtype: torch.dtype | None = torch.float32,
        device: torch.device | str = "cpu",
    ) -> nn.Module:
        """Return a CLIPVisionModel with the depth of the weights, or of a CLIPModel's tower.

        Names may lack the prefix.
        """
        from transformers import CLIPVisionModel  # takes 3 seconds to import

        if any(canonical_name(name) not in self.base.infos for name in weights.infos):
            weights = VisionTower(weights)
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
        return {canonical_name(name): value for name, value in module.named_parameters()}

    def assets(self, *, dtype: torch.dtype | None = None) -> Mapping[str, bytes | Path]:
        """Return the side files of a CLIPVisionModel: the configuration and any preprocessor."""
        dtype_name = self._directory.dtype if dtype is None else str(dtype).removeprefix("torch.")
        config = {
            "architectures": ["CLIPVisionModel"],
            "model_type": "clip_vision_model",
            **self._directory.vision,
            "num_hidden_layers": self._architecture.num_hidden_layers,
            **({"dtype": dtype_name} if dtype_name else {}),
        }
        settings = self._directory.preprocessor
        if settings is None:
            return {CONFIG: _json(config)}
        processor = {"image_processor_type": "CLIPImageProcessor", **settings}
        return {CONFIG: _json(config), PREPROCESSOR: _json(processor)}

    def side_files(self) -> Mapping[str, Mapping[str, bytes | Path]]:
        """Return each model's preprocessor settings. Architectures were compared on opening."""
        return {
            name: {} if settings is None else {PREPROCESSOR: _json(settings)}
            for name, settings in self._processors.items()
        }

    def identity(self) -> Mapping[str, Any]:
        """Return an empty identity: weights and configuration determine a tower."""
        return {}

    def cards(self) -> Mapping[str, Mapping[str, Any]]:
        """Return what each model's card states."""
        return self._cards

    @cached_property
    def _architecture(self) -> CLIPVisionConfig:
        return vision_config(self._directory.vision, str(self._directory.path))

    def _architecture_of(self, weights: WeightSource) -> CLIPVisionConfig:
        names = self.base.infos if weights.is_delta else weights.infos
        numbers = {number for layers in layers_of(names).values() for number in layers}
        depth = {"num_hidden_layers": max(numbers, default=-1) + 1}
        return vision_config({**self._directory.vision, **depth}, str(self._directory.path))

    def _open_expert(self, name: str, path: str) -> VisionTower:
        directory = ClipDirectory.open(path, f"model_pool.models.{name}")
        expert_config = vision_config(directory.vision, str(directory.path))
        for field in _SHAPELESS_FIELDS:
            base_value, value = (
                getattr(config, field) for config in (self._architecture, expert_config)
            )
            if value != base_value:
                raise AlignmentError(
                    f"conflicting {field}: expert {name!r} has {value!r}, "
                    f"the base has {base_value!r}",
                    hint="Merge only models that were fine-tuned from the base.",
                )
        self._cards[name] = read_card(directory.path)
        self._processors[name] = directory.preprocessor
        return VisionTower(directory.weights())


def _json(content: Mapping[str, Any]) -> bytes:
    return json.dumps(content, indent=2, ensure_ascii=False).encode() + b"\n"
