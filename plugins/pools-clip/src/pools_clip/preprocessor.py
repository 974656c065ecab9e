"""The image processor of a CLIP model, in two steps.

transformers converts, resizes and crops each image once, with PIL, and the result is bytes.
Rescaling and normalization are arithmetic on a batch, on the device that uses it.
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

    `shape` is the shape of one input image: (channels, height, width). Raises `CheckpointError` for
    invalid settings.
    """

    def __init__(
        self, settings: Mapping[str, Any], shape: tuple[int, int, int], origin: str
    ) -> None:
        self.shape = shape
        #: everything that determines the bytes of an image
        self.identity = {"settings": dict(settings), "shape": list(shape)}
        self._processor = _make_processor(settings, origin)
        self._factor = self._processor.rescale_factor if self._processor.do_rescale else 1.0
        normalizes = self._processor.do_normalize
        self._mean = _column(self._processor.image_mean if normalizes else 0.0)
        self._std = _column(self._processor.image_std if normalizes else 1.0)

    def resize(self, images: Sequence[Image], location: str, first: int) -> torch.Tensor:
        """Convert, resize and crop images: uint8 of shape (images, *shape).

        Raises `FusionError` for an image whose result does not have the model's shape. `location`
        and its number, counted from `first`, identify it.
        """
        if not self._processor.do_convert_rgb:
            images = [image.convert("L" if self.shape[0] == 1 else "RGB") for image in images]
        arrays = self._processor(list(images), do_rescale=False, do_normalize=False).pixel_values
        for number, array in enumerate(arrays, first):
            if array.shape != self.shape:
                raise FusionError(
                    f"{location} {number}: preprocessing gives the shape {list(array.shape)}, "
                    f"expected {list(self.shape)}",
                    hint="Check the model's preprocessor_config.json, or resize the images.",
                )
        return torch.stack([torch.from_numpy(array) for array in arrays])

    def normalize(self, pixels: torch.Tensor) -> torch.Tensor:
        """Rescale and normalize bytes: fp32, on the device of `pixels`."""
        mean, std = self._mean.to(pixels.device), self._std.to(pixels.device)
        return (pixels.float() * self._factor - mean) / std


def _make_processor(settings: Mapping[str, Any], origin: str) -> Any:  # noqa: ANN401 - transformers'
    from transformers import CLIPImageProcessorPil

    try:
        return CLIPImageProcessorPil(**settings)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{origin}: invalid preprocessor: {error}") from error


def _column(values: float | Sequence[float]) -> torch.Tensor:
    """Reshape one value, or one per channel, to broadcast over (channels, height, width)."""
    return torch.tensor(values, dtype=torch.float32).reshape(-1, 1, 1)
