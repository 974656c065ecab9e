"""What a CLIP model's `preprocessor_config.json` asks for, in two halves.

Conversion, resizing and cropping are transformers' own, by PIL, once an image: they give bytes.
Rescaling and normalising are arithmetic, done on a batch where it is used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from fusion_core.errors import CheckpointError, FusionError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from PIL.Image import Image


class Preprocessor:
    """A CLIP model's image processor.

    `shape` is that of one image as the model takes it: (channels, height, width). Raises
    `CheckpointError` for settings that are not an image processor's.
    """

    def __init__(
        self, settings: Mapping[str, Any], shape: tuple[int, int, int], origin: str
    ) -> None:
        self.shape = shape
        #: what decides which bytes an image becomes
        self.identity = {"settings": dict(settings), "shape": list(shape)}
        self._processor = _processor(settings, origin)
        self._factor = self._processor.rescale_factor if self._processor.do_rescale else 1.0
        normalise = self._processor.do_normalize
        self._mean = _column(self._processor.image_mean if normalise else 0.0)
        self._std = _column(self._processor.image_std if normalise else 1.0)

    def fitted(self, images: Sequence[Image], place: str, first: int) -> torch.Tensor:
        """Convert, resize and crop: uint8 of shape (images, *shape).

        Raises `FusionError` for an image that does not come out in the model's shape; `place` and
        the number from `first` on say which one.
        """
        if not self._processor.do_convert_rgb:
            images = [image.convert("L" if self.shape[0] == 1 else "RGB") for image in images]
        arrays = self._processor(list(images), do_rescale=False, do_normalize=False).pixel_values
        for number, array in enumerate(arrays, first):
            if array.shape != self.shape:
                raise FusionError(
                    f"{place} {number}: preprocessing gives the shape {list(array.shape)}, the "
                    f"model takes {list(self.shape)}",
                    hint="Check the model's preprocessor_config.json, or resize the images.",
                )
        return torch.stack([torch.from_numpy(array) for array in arrays])

    def scaled(self, pixels: torch.Tensor) -> torch.Tensor:
        """Rescale and normalise bytes: fp32, on the device of `pixels`."""
        mean, std = self._mean.to(pixels.device), self._std.to(pixels.device)
        return (pixels.float() * self._factor - mean) / std


def _processor(settings: Mapping[str, Any], origin: str) -> Any:  # noqa: ANN401 - transformers'
    from transformers import CLIPImageProcessorPil

    try:
        return CLIPImageProcessorPil(**settings)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{origin}: impossible preprocessor: {error}") from error


def _column(values: float | Sequence[float]) -> torch.Tensor:
    """Shape one value, or one a channel, so that it broadcasts over (channels, height, width)."""
    return torch.tensor(values, dtype=torch.float32).reshape(-1, 1, 1)
