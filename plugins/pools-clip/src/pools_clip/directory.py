"""A CLIP model's directory: its architecture, and the settings of its image processor.

Configurations are read as JSON. Only the fields that describe an architecture or pixels are used,
so no file can select code to run.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from fusion_core.errors import CheckpointError
from fusion_core.weights import read_config
from pools_clip.model_origin import find_origin

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from fusion_core import WeightSource
    from pools_clip.model_origin import ModelOrigin

CONFIG = "config.json"
PREPROCESSOR = "preprocessor_config.json"
_PROCESSOR = "processor_config.json"
_MODEL_TYPES = ("clip", "clip_vision_model")
#: Fields of a vision or text tower's configuration that affect its computation.
_TOWER_FIELDS = frozenset(
    {
        "hidden_size",
        "intermediate_size",
        "projection_dim",
        "num_hidden_layers",
        "num_attention_heads",
        "num_channels",
        "image_size",
        "patch_size",
        "hidden_act",
        "layer_norm_eps",
        "attention_dropout",
        "vocab_size",
        "max_position_embeddings",
        "bos_token_id",
        "eos_token_id",
        "pad_token_id",
    }
)
#: Fields of an image processor's settings that affect its pixels.
_IMAGE_FIELDS = frozenset(
    {
        "do_convert_rgb",
        "do_resize",
        "size",
        "resample",
        "do_center_crop",
        "crop_size",
        "do_rescale",
        "rescale_factor",
        "do_normalize",
        "image_mean",
        "image_std",
    }
)


@dataclass(frozen=True)
class ClipDirectory:
    """A directory, or a commit on the hub, with a CLIPModel or a CLIPVisionModel."""

    origin: ModelOrigin
    #: the whole `config.json`
    config: Mapping[str, Any]

    @classmethod
    def open(cls, name: str, option: str) -> Self:
        """Find a model and read its configuration; `option` identifies it in errors.

        Raises `CheckpointError` if the directory or the configuration is missing, or if the model
        is not CLIP.
        """
        origin = find_origin(name, option)
        path = origin.path
        if not (path / CONFIG).is_file():
            raise CheckpointError(
                f"{option}: missing {CONFIG} in {path}", hint="Save the model with save_pretrained."
            )
        config = read_config(path / CONFIG)
        if config.get("model_type") not in _MODEL_TYPES:
            raise CheckpointError(
                f"{option}: expected a CLIP model, got model_type {config.get('model_type')!r} in "
                f"{path / CONFIG}",
                hint="Use the pool 'checkpoints', which merges models of any kind.",
            )
        return cls(origin, config)

    @property
    def path(self) -> Path:
        """The directory of the side files."""
        return self.origin.path

    def weights(self) -> WeightSource:
        """Open the weights."""
        return self.origin.weights()

    @property
    def has_text(self) -> bool:
        """Whether this is a CLIPModel, with a text tower and projections."""
        return bool(self.config["model_type"] == "clip")

    @property
    def vision(self) -> dict[str, Any]:
        """The vision tower's fields in the configuration."""
        vision = self.config.get("vision_config", {}) if self.has_text else self.config
        return _select(_TOWER_FIELDS, vision)

    @property
    def text(self) -> dict[str, Any]:
        """The text tower's fields in the configuration; empty for a CLIPVisionModel."""
        return _select(_TOWER_FIELDS, self.config.get("text_config", {}) if self.has_text else {})

    @property
    def dtype(self) -> str | None:
        """The dtype in the configuration; None if it has none."""
        return self.config.get("dtype") or self.config.get("torch_dtype")

    @property
    def preprocessor(self) -> dict[str, Any] | None:
        """The image processor's settings, from either of two files; None without one."""
        if (self.path / PREPROCESSOR).is_file():
            return _select(_IMAGE_FIELDS, read_config(self.path / PREPROCESSOR))
        if (self.path / _PROCESSOR).is_file():
            settings = read_config(self.path / _PROCESSOR).get("image_processor")
            return None if settings is None else _select(_IMAGE_FIELDS, settings)
        return None


def _select(fields: frozenset[str], config: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in config.items() if name in fields}
