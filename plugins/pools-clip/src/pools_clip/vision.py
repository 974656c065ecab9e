"""CLIP's vision tower: its tensors under the hub's names, and as a live model.

The names are those of the hub's files, `vision_model.…`. transformers keeps the same tensors
without the prefix in memory, and writes a fresh CLIPVisionModel that way; both spellings are read.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from transformers import CLIPTextConfig, CLIPVisionConfig, PreTrainedConfig

from fusion_core import build_model
from fusion_core.errors import CheckpointError
from fusion_core.weights import RenamedSource

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from transformers import CLIPTextModel

    from fusion_core import WeightSource

PREFIX = "vision_model."
_PARTS = ("embeddings.", "pre_layrnorm.", "encoder.", "post_layernorm.")
#: Without the prefix a text tower's tensors look alike, but for its patches.
_PATCHES = "embeddings.patch_embedding.weight"
_POSITIONS = "position_ids"
#: The same bits on every run on any device: on CUDA the gradients of "sdpa" are not. Nor does it
#: cost anything here: within 1 % of "sdpa" on CPU, for ViT-B/32 and for 17 tokens.
_ATTENTION = "eager"

ConfigT = TypeVar("ConfigT", bound=PreTrainedConfig)


class VisionTower(RenamedSource):
    """The vision tower of a checkpoint of a CLIPModel or CLIPVisionModel, by canonical names.

    Left out: text tower, projections, logit scale, and `position_ids`, which old files store.
    Raises `CheckpointError` for a checkpoint without a vision tower.
    """

    def __init__(self, checkpoint: WeightSource) -> None:
        names = {
            canonical(name): name
            for name in _vision_names(checkpoint)
            if not name.endswith(_POSITIONS)
        }
        super().__init__(checkpoint, names)


def canonical(name: str) -> str:
    """Return a vision tensor's name with the prefix that the hub's files have."""
    return name if name.startswith(PREFIX) else PREFIX + name


def architecture(fields: Mapping[str, Any], origin: str) -> CLIPVisionConfig:
    """Return a vision tower's configuration; raises `CheckpointError` naming `origin`."""
    return _configured(CLIPVisionConfig, fields, origin)


def image_shape(config: CLIPVisionConfig) -> tuple[int, int, int]:
    """Return the shape of one image as the tower takes it: (channels, height, width)."""
    size = config.image_size
    if not isinstance(size, int):
        raise CheckpointError(f"image_size is {size}: CLIP takes square images, one number")
    return config.num_channels, size, size


def build_text(fields: Mapping[str, Any], checkpoint: WeightSource) -> CLIPTextModel:
    """Return the text tower of a CLIPModel checkpoint, fp32, in evaluation mode, on the CPU."""
    from transformers import CLIPTextModel  # 3 seconds, which a merge alone does not need

    prefix = "text_model."
    tower = {
        name.removeprefix(prefix): name for name in checkpoint.infos if name.startswith(prefix)
    }
    config = _configured(CLIPTextConfig, fields, checkpoint.describe())
    return build_model(partial(CLIPTextModel, config), RenamedSource(checkpoint, tower))


def _vision_names(checkpoint: WeightSource) -> list[str]:
    prefixed = [name for name in checkpoint.infos if name.startswith(PREFIX)]
    if prefixed:
        return prefixed
    if _PATCHES in checkpoint.infos:
        return [name for name in checkpoint.infos if name.startswith(_PARTS)]
    raise CheckpointError(
        f"{checkpoint.describe()} has no CLIP vision tower: none of its {len(checkpoint.infos)} "
        f"tensors is called {PREFIX}...",
        hint="Give a CLIPModel or CLIPVisionModel; the pool 'checkpoints' merges any models.",
    )


def _configured(kind: Callable[..., ConfigT], fields: Mapping[str, Any], origin: str) -> ConfigT:
    try:
        return kind(**fields, attn_implementation=_ATTENTION)
    except Exception as error:  # the hub library's own classes among others
        raise CheckpointError(f"{origin}: impossible configuration: {error}") from error
