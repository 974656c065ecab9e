"""The parts of a CLIP model that are not merged: projections, zero-shot heads, preprocessor."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, cached_property, partial
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional

from fusion_adapting import map_on_cores, use_fast_linear_layers
from fusion_core.errors import CheckpointError
from fusion_core.files import file_stamps
from fusion_core.weights import Origin, collect_origins
from pools_clip.cache import cached_directory, write_file
from pools_clip.preprocessor import Preprocessor
from pools_clip.tokens import tokenize
from pools_clip.vision import build_text, image_shape, vision_config

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from torch import Tensor

    from fusion_core import WeightSource
    from fusion_core.hub import FileRequest
    from pools_clip.directory import ClipDirectory

#: Texts per batch of the text tower.
_TEXTS = 128
_CLASSES = "classes.float32"

#: The prompts of each class of a task, in the order of its labels.
Prompts = list[list[str]]
#: Token ids and attention mask, each of shape (texts, tokens).
Tokens = tuple["Tensor", "Tensor"]


@dataclass(frozen=True)
class Heads:
    """CLIP's classifiers: the scaled cosine similarity of images and class embeddings."""

    #: the visual projection, shape (embedding, width)
    projection: Tensor
    #: exp(logit_scale)
    scale: float
    #: each task's class embeddings, unit vectors of shape (classes, embedding)
    classes: Mapping[str, Tensor]

    def logits(self, pooled: Tensor, task: str) -> Tensor:
        """Return (images, classes) for a vision tower's pooled output, shape (images, width)."""
        projection, classes = (
            tensor.to(pooled.device) for tensor in (self.projection, self.classes[task])
        )
        features = functional.normalize(functional.linear(pooled, projection), dim=-1)
        return self.scale * features @ classes.T


class FrozenClip:
    """The parts of a CLIPModel that tasks share, read at first use."""

    def __init__(self, directory: ClipDirectory, prompts: Mapping[str, Prompts]) -> None:
        self._directory = directory
        self._prompts = prompts

    @cached_property
    def preprocessor(self) -> Preprocessor:
        """The image processor; raises `CheckpointError` if the model has none."""
        settings, path = self._directory.preprocessor, self._directory.path
        if settings is None:
            raise CheckpointError(
                f"missing preprocessor_config.json in {path}",
                hint="Save the model's CLIPImageProcessor there too.",
            )
        vision = vision_config(self._directory.vision, str(path))
        return Preprocessor(settings, image_shape(vision), str(path))

    @cached_property
    def heads(self) -> Heads:
        """The heads of all tasks, in fp32. The text tower is freed afterwards.

        Raises `CheckpointError` for a model without a text tower, projections or a tokenizer.
        """
        checkpoint = self._directory.weights()
        with torch.inference_mode(mode=False):  # autograd cannot use inference tensors
            projection = _read_tensor(checkpoint, "visual_projection.weight")
            return Heads(
                projection=projection,
                scale=_read_tensor(checkpoint, "logit_scale").exp().item(),
                classes=self._classes(checkpoint, len(projection)),
            )

    @cached_property
    def identity(self) -> Mapping[str, Any]:
        """The identity of the model's files, which determine heads and pixels.

        A commit identifies its weights, so they are not downloaded for this.
        """
        pinned, path = self._directory.origin.pinned, self._directory.path
        weights = self._directory.weights()
        origin = Origin() if pinned else weights.origin or Origin()
        return {
            "model": str(pinned or path),
            "weights": [weights.describe(), *origin.changed_ns],
            "files": dict(origin.files),
            "beside": file_stamps(sorted(map(str, path.glob("*.json")))),
            "preprocessor": self.preprocessor.identity,
        }

    def downloads(self) -> Iterator[FileRequest]:
        """Yield the files that are read from the hub."""
        if self._directory.origin.pinned is None:
            return
        for origin in collect_origins(self._directory.weights()):
            if origin.wanted is not None:
                yield origin.wanted

    def _classes(self, checkpoint: WeightSource, width: int) -> dict[str, Tensor]:
        """Return the class embeddings. Those of a commit are computed once and cached."""
        pinned = self._directory.origin.pinned
        if pinned is None:
            return self._encode(_TextEncoder(self._directory, checkpoint), self._prompts)
        encoder = cache(lambda: _TextEncoder(self._directory, checkpoint))

        def write(name: str, directory: Path) -> None:
            embeddings = self._encode(encoder(), {name: self._prompts[name]})[name]
            write_file(directory / _CLASSES, embeddings.numpy().tobytes())

        classes = {}
        for name, prompts in self._prompts.items():
            key = {"model": str(pinned), "weights": checkpoint.describe(), "prompts": prompts}
            path = cached_directory("heads", key, partial(write, name)) / _CLASSES
            size = len(prompts) * width
            flat = torch.from_file(str(path), shared=False, size=size, dtype=torch.float32)
            classes[name] = flat.reshape(len(prompts), width)
        return classes

    def _encode(self, encoder: _TextEncoder, prompts: Mapping[str, Prompts]) -> dict[str, Tensor]:
        # one child process tokenizes all prompts, ahead of the text tower
        tokens = ((encoder.tokens(prompt), list(map(len, prompt))) for prompt in prompts.values())
        embeddings = map_on_cores(lambda task: _class_embeddings(encoder(task[0]), task[1]), tokens)
        return dict(zip(prompts, embeddings, strict=True))


class _TextEncoder:
    """Tokenizer, text tower and text projection: from texts to unit vectors."""

    def __init__(self, directory: ClipDirectory, checkpoint: WeightSource) -> None:
        self._path = str(directory.path)
        self._tower = use_fast_linear_layers(build_text(directory.text, checkpoint))
        self._projection = _read_tensor(checkpoint, "text_projection.weight")

    def tokens(self, prompts: Prompts) -> Tokens:
        """Tokenize the prompts of all classes, concatenated."""
        texts = [text for prompt in prompts for text in prompt]
        tokens = tokenize(self._path, texts, self._tower.config.max_position_embeddings)
        return torch.tensor(tokens.input_ids), torch.tensor(tokens.attention_mask)

    @torch.no_grad()
    def __call__(self, tokens: Tokens) -> Tensor:
        """Return unit vectors, shape (texts, embedding)."""
        parts = zip(*(torch.split(token, _TEXTS) for token in tokens), strict=True)
        pooled = torch.cat([self._tower(ids, mask).pooler_output for ids, mask in parts])
        return functional.normalize(functional.linear(pooled, self._projection), dim=-1)


def _class_embeddings(texts: Tensor, counts: list[int]) -> Tensor:
    """Return one unit vector per class: the normalized mean over its texts."""
    means = [part.mean(dim=0) for part in torch.split(texts, counts)]
    return functional.normalize(torch.stack(means), dim=-1)


def _read_tensor(checkpoint: WeightSource, name: str) -> Tensor:
    if name not in checkpoint.infos:
        raise CheckpointError(
            f"{checkpoint.describe()}: missing tensor {name!r}",
            hint="Zero-shot heads need a full CLIPModel.",
        )
    return checkpoint.tensor(name).float()
