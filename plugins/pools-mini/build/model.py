"""The tiny CLIP: its configuration, its word-level tokenizer, features and zero-shot heads."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from glyphs import SIZE
from tasks import TEMPLATES, Task
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import Tensor
from torch.nn import functional
from transformers import CLIPConfig, CLIPModel, PreTrainedTokenizerFast

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

MEAN, STD = 0.35, 0.33
PROMPT_LENGTH = 24
_PAD, _BEGIN, _UNKNOWN = "<pad>", "<bos>", "<unk>"
_END = "<eos>"  # last, and never id 2: CLIP reads an eos id of 2 as "take the largest id"

State = dict[str, Tensor]


@dataclass(frozen=True)
class Shape:
    """The configurable sizes of the model."""

    width: int = 128
    layers: int = 4
    heads: int = 4
    patch: int = 7
    projection: int = 128
    text_width: int = 64
    text_layers: int = 2


def tokenizer(captions: Iterable[str], nonce_words: list[str]) -> PreTrainedTokenizerFast:
    """Return a word-level tokenizer: words of captions and templates, then nonce words."""
    words = {
        word
        for text in [*captions, *(t.replace("{}", "") for t in TEMPLATES)]
        for word in text.split()
    }
    entries = [_PAD, _BEGIN, _UNKNOWN, *sorted(words), *nonce_words, _END]
    vocabulary = {word: index for index, word in enumerate(entries)}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token=_UNKNOWN))
    backend.normalizer = normalizers.Lowercase()
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.post_processor = processors.TemplateProcessing(
        single=f"{_BEGIN} $A {_END}",
        special_tokens=[(_BEGIN, vocabulary[_BEGIN]), (_END, vocabulary[_END])],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=_BEGIN,
        eos_token=_END,
        pad_token=_PAD,
        unk_token=_UNKNOWN,
        model_max_length=PROMPT_LENGTH,
        model_input_names=["input_ids", "attention_mask"],
    )


def create(shape: Shape, words: PreTrainedTokenizerFast) -> CLIPModel:
    """Return a model with random weights and eager attention, which is fastest under autocast."""
    text = {
        "vocab_size": len(words),
        "hidden_size": shape.text_width,
        "intermediate_size": 4 * shape.text_width,
        "num_hidden_layers": shape.text_layers,
        "num_attention_heads": 4,
        "max_position_embeddings": PROMPT_LENGTH,
        "bos_token_id": words.bos_token_id,
        "eos_token_id": words.eos_token_id,
        "pad_token_id": words.pad_token_id,
    }
    vision = {
        "hidden_size": shape.width,
        "intermediate_size": 4 * shape.width,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "image_size": SIZE,
        "patch_size": shape.patch,
        "num_channels": 1,
    }
    common = {"hidden_act": "gelu", "projection_dim": shape.projection}
    config = CLIPConfig(
        text_config=text | common, vision_config=vision | common, projection_dim=shape.projection
    )
    return CLIPModel._from_config(config, attn_implementation="eager")  # noqa: SLF001


def autocast() -> torch.autocast:
    """Return a bfloat16 autocast context, for training only."""
    return torch.autocast("cpu", torch.bfloat16)


def pixels(images: Tensor) -> Tensor:
    """Convert uint8 ``[n, 28, 28]`` to normalized ``[n, 1, 28, 28]``, like the image processor."""
    return (images.float()[:, None] / 255 - MEAN) / STD


def image_features(
    model: CLIPModel, images: Tensor, weights: Mapping[str, Tensor] | None = None
) -> Tensor:
    """Return unit vectors of images; ``weights`` replace the vision tower's own."""
    tower, inputs = model.vision_model, pixels(images)
    output = (
        tower(inputs)
        if weights is None
        else torch.func.functional_call(tower, dict(weights), (inputs,))
    )
    return functional.normalize(model.visual_projection(output.pooler_output).float(), dim=-1)


def text_features(
    model: CLIPModel,
    words: PreTrainedTokenizerFast,
    texts: list[str],
    embeddings: Tensor | None = None,
) -> Tensor:
    """Return unit vectors of texts; ``embeddings`` replaces the token embeddings."""
    tokens = dict(words(texts, padding=True, return_tensors="pt"))
    swap = {} if embeddings is None else {"embeddings.token_embedding.weight": embeddings}
    output = torch.func.functional_call(model.text_model, swap, (), tokens)
    return functional.normalize(model.text_projection(output.pooler_output).float(), dim=-1)


@torch.no_grad()
def head(model: CLIPModel, words: PreTrainedTokenizerFast, classnames: list[str]) -> Tensor:
    """Return CLIP's unscaled zero-shot head, the normalized mean over templates, ``[c, d]``."""
    rows = [
        text_features(model, words, [template.format(name) for template in TEMPLATES]).mean(0)
        for name in classnames
    ]
    return functional.normalize(torch.stack(rows), dim=-1)


def heads(model: CLIPModel, words: PreTrainedTokenizerFast, tasks: list[Task]) -> dict[str, Tensor]:
    """Return the scaled head of each task, as the framework computes it."""
    scale = model.logit_scale.exp().item()
    return {task.name: scale * head(model, words, task.classnames) for task in tasks}


def set_scale(model: CLIPModel, scale: float) -> None:
    """Set the temperature of heads. The base ships the value from fine-tuning."""
    with torch.no_grad():
        model.logit_scale.fill_(math.log(scale))


def round_to_shipped(model: CLIPModel) -> None:
    """Round all parameters to fp16, so that heads and experts match the files."""
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(weight.half().float())


def tower_state(model: CLIPModel) -> State:
    """Return a copy of the vision tower's parameters."""
    return {name: weight.detach().clone() for name, weight in model.vision_model.named_parameters()}


def as_shipped(state: Mapping[str, Tensor]) -> State:
    """Return weights rounded to fp16, in fp32, as read from the files."""
    return {name: weight.half().float() for name, weight in state.items()}


@torch.no_grad()
def accuracy(
    model: CLIPModel,
    heads: Mapping[str, Tensor],
    task: Task,
    weights: Mapping[str, Tensor] | None = None,
    *,
    part: str = "test",
) -> float:
    """Return the accuracy on a split of a task in per cent, computed in fp32."""
    split = getattr(task, part)
    blocks = [
        image_features(model, block, weights) @ heads[task.name].T
        for block in split.images.split(400)
    ]
    return (torch.cat(blocks).argmax(1) == split.labels).float().mean().item() * 100
