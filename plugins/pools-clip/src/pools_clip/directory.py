"""A CLIP model's directory: where it is, what architecture it says it has, how it wants its images.

Where that is, `pools_clip.origin` knows. Configurations are read as JSON, and
only the fields that describe an architecture or pixels are used: nothing in a file picks code to
run.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from fusion_core.errors import CheckpointError
from fusion_core.weights import read_config
from pools_clip.origin import find

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from fusion_core import WeightSource
    from pools_clip.origin import Origin

CONFIG = "config.json"
PREPROCESSOR = "preprocessor_config.json"
_PROCESSOR = "processor_config.json"
_MODEL_TYPES = ("clip", "clip_vision_model")
#: The fields of a tower's configuration that decide what it computes, the text tower's included.
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
#: The fields of an image processor's settings that decide which pixels it makes.
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

    origin: Origin
    #: the whole `config.json`
    config: Mapping[str, Any]

    @classmethod
    def open(cls, given: str, option: str) -> Self:
        """Find a model's directory and read its configuration; `option` names it in errors.

        Raises `CheckpointError` if directory or configuration is missing, or is not CLIP's.
        """
        origin = find(given, option)
        path = origin.path
        if not (path / CONFIG).is_file():
            raise CheckpointError(
                f"{option}: {path} has no {CONFIG}", hint="Save the model with save_pretrained."
            )
        config = read_config(path / CONFIG)
        if config.get("model_type") not in _MODEL_TYPES:
            raise CheckpointError(
                f"{option}: {path / CONFIG} says {config.get('model_type')!r}, not CLIP",
                hint="The pool 'checkpoints' merges models of any kind.",
            )
        return cls(origin, config)

    @property
    def path(self) -> Path:
        """Where the files beside the weights are."""
        return self.origin.path

    def weights(self) -> WeightSource:
        """Open the weights."""
        return self.origin.weights()

    @property
    def is_whole(self) -> bool:
        """Whether this is a CLIPModel, with a text tower and projections."""
        return bool(self.config["model_type"] == "clip")

    @property
    def vision(self) -> dict[str, Any]:
        """The vision tower's architecture, as far as the configuration spells it out."""
        vision = self.config.get("vision_config", {}) if self.is_whole else self.config
        return _only(_TOWER_FIELDS, vision)

    @property
    def text(self) -> dict[str, Any]:
        """The text tower's architecture; empty for a CLIPVisionModel."""
        return _only(_TOWER_FIELDS, self.config.get("text_config", {}) if self.is_whole else {})

    @property
    def dtype(self) -> str | None:
        """The dtype that the model asks to be loaded in, if it says."""
        return self.config.get("dtype") or self.config.get("torch_dtype")

    @property
    def preprocessor(self) -> dict[str, Any] | None:
        """The image processor's settings, from either file that holds them; None without one."""
        if (self.path / PREPROCESSOR).is_file():
            return _only(_IMAGE_FIELDS, read_config(self.path / PREPROCESSOR))
        if (self.path / _PROCESSOR).is_file():
            settings = read_config(self.path / _PROCESSOR).get("image_processor")
            return None if settings is None else _only(_IMAGE_FIELDS, settings)
        return None


def _only(fields: frozenset[str], config: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in config.items() if name in fields}
