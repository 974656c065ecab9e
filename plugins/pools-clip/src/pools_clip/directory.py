"""A CLIP model's directory: where it is, what architecture it says it has, how it wants its images.

Everything that names a model comes through `local_directory`. Configurations are read as JSON, and
only the fields that describe an architecture are used: nothing in a file picks code to run.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from fusion_core.errors import CheckpointError
from fusion_core.weights.assets import read_config

if TYPE_CHECKING:
    from collections.abc import Mapping

_CONFIG = "config.json"
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


def local_directory(given: str, option: str) -> Path:
    """Return the directory that a model's name stands for; `option` names it in errors.

    Raises `CheckpointError` if there is none.
    """
    directory = Path(given)
    if not directory.is_dir():
        raise CheckpointError(
            f"{option}: {given} is no directory",
            hint="Give the directory that save_pretrained wrote.",
        )
    return directory


@dataclass(frozen=True)
class ClipDirectory:
    """A directory with a CLIPModel or a CLIPVisionModel."""

    path: Path
    #: the whole `config.json`
    config: Mapping[str, Any]

    @classmethod
    def open(cls, given: str, option: str) -> Self:
        """Find a model's directory and read its configuration; `option` names it in errors.

        Raises `CheckpointError` if directory or configuration is missing, or is not CLIP's.
        """
        path = local_directory(given, option)
        if not (path / _CONFIG).is_file():
            raise CheckpointError(
                f"{option}: {path} has no {_CONFIG}", hint="Save the model with save_pretrained."
            )
        config = read_config(path / _CONFIG)
        if config.get("model_type") not in _MODEL_TYPES:
            raise CheckpointError(
                f"{option}: {path / _CONFIG} says {config.get('model_type')!r}, not CLIP",
                hint="The pool 'checkpoints' merges models of any kind.",
            )
        return cls(path, config)

    @property
    def is_whole(self) -> bool:
        """Whether this is a CLIPModel, with a text tower and projections."""
        return self.config["model_type"] == "clip"

    @property
    def vision(self) -> dict[str, Any]:
        """The vision tower's architecture, as far as the configuration spells it out."""
        return _tower(self.config.get("vision_config", {}) if self.is_whole else self.config)

    @property
    def text(self) -> dict[str, Any]:
        """The text tower's architecture; empty for a CLIPVisionModel."""
        return _tower(self.config.get("text_config", {}) if self.is_whole else {})

    @property
    def dtype(self) -> str | None:
        """The dtype that the model asks to be loaded in, if it says."""
        return self.config.get("dtype") or self.config.get("torch_dtype")

    @property
    def preprocessor(self) -> dict[str, Any] | None:
        """The image processor's settings, from either file that holds them; None without one."""
        if (self.path / PREPROCESSOR).is_file():
            return read_config(self.path / PREPROCESSOR)
        if (self.path / _PROCESSOR).is_file():
            return read_config(self.path / _PROCESSOR).get("image_processor")
        return None


def _tower(config: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in config.items() if name in _TOWER_FIELDS}
