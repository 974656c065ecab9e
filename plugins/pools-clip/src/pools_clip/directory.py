"""A CLIP model's directory: where it is, what architecture it says it has, how it wants its images.

Everything that names a model comes through `local_directory`. Configurations are read as JSON, and
only the fields that describe an architecture are used: nothing in a file picks code to run.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fusion_core.errors import CheckpointError
from fusion_core.weights.assets import read_config

if TYPE_CHECKING:
    from collections.abc import Mapping

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

    @cached_property
    def config(self) -> dict[str, Any]:
        """The whole `config.json`; raises `CheckpointError` if it is missing or not CLIP's."""
        path = self.path / "config.json"
        if not path.is_file():
            raise CheckpointError(
                f"{self.path} has no config.json", hint="Save the model with save_pretrained."
            )
        config = read_config(path)
        if config.get("model_type") not in _MODEL_TYPES:
            raise CheckpointError(
                f"{path}: model_type is {config.get('model_type')!r}, not CLIP",
                hint="The pool 'checkpoints' merges models of any kind.",
            )
        return config

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
