"""The likelihood of a text in bits per byte, which compares models of different tokenizers.

This is the only module that needs transformers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from importlib.resources import files
from typing import TYPE_CHECKING, Any

import torch

from fusion_core.commands import import_optional
from fusion_core.errors import CheckpointError, RecipeError

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from fusion_tokenizer.vocabulary import Vocabulary

#: The most tokens in a window, the start token included.
_WINDOW = 1024
_LARGEST_TEXT = 10_000_000


@dataclass(frozen=True)
class Perplexity:
    """How well a model predicts a text."""

    bits_per_byte: float
    tokens: int
    bytes_per_token: float

    @property
    def per_byte(self) -> float:
        """The perplexity per byte."""
        return float(2**self.bits_per_byte)


def read_text(path: Path | None) -> str:
    """Return the text to measure on: a file in UTF-8, or the text of this package.

    Raises `RecipeError` for a file that is missing, empty, too large or not text.
    """
    if path is None:
        return files("fusion_tokenizer").joinpath("data/text.txt").read_text(encoding="utf-8")
    try:
        if path.stat().st_size > _LARGEST_TEXT:
            raise RecipeError(f"--text {path}: expected at most {_LARGEST_TEXT:,} bytes")
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise RecipeError(f"--text {path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise RecipeError(f"--text {path}: expected a text in UTF-8") from error
    if not text.strip():
        raise RecipeError(f"--text {path}: the file has no text")
    return text


def measure(directory: Path, vocabulary: Vocabulary, text: str) -> Perplexity:
    """Return the likelihood of a text under the model in a directory, in its own dtype.

    The text is cut into windows, each after the start token. Raises `CheckpointError` for a model
    that transformers cannot load, and for a text that its tokenizer cannot represent.
    """
    transformers = import_optional("transformers", "measuring a model", "fusion-tokenizer[measure]")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        model = transformers.AutoModelForCausalLM.from_pretrained(
            directory, dtype="auto", local_files_only=True, trust_remote_code=False
        )
    except Exception as error:
        raise CheckpointError(
            f"{vocabulary.model}: transformers cannot load it: {str(error)[:300]}",
            hint="Transplant without --measure and --text.",
        ) from error
    (ids,) = vocabulary.encode([text])
    _check_known(vocabulary, ids)
    size = getattr(model.config, "max_position_embeddings", None) or _WINDOW
    nats = _negative_log_likelihood(model, ids, _start(vocabulary), min(size, _WINDOW))
    count = len(text.encode())
    return Perplexity(nats / math.log(2) / count, len(ids), count / len(ids))


def _start(vocabulary: Vocabulary) -> int:
    """Return the id of the token in front of a text."""
    for role in ("bos", "eos"):
        if role in vocabulary.roles:
            return vocabulary.ids[vocabulary.roles[role]]
    raise CheckpointError(
        f"{vocabulary.model}: the tokenizer names no start token, which a measurement needs",
        hint="Set bos_token in tokenizer_config.json.",
    )


def _check_known(vocabulary: Vocabulary, ids: list[int]) -> None:
    count = sum(number == vocabulary.unknown for number in ids)
    if count or not ids:
        raise CheckpointError(
            f"{vocabulary.model}: the tokenizer cannot represent the text: {count} unknown tokens",
            hint="Choose another text with --text.",
        )


def _negative_log_likelihood(model: Any, ids: list[int], start: int, window: int) -> float:  # noqa: ANN401
    """Return the sum of -log p over all tokens of a text, in nats."""
    total = 0.0
    with torch.inference_mode():
        for first in range(0, len(ids), window - 1):
            part = torch.tensor([start, *ids[first : first + window - 1]])
            logits: Tensor = model(input_ids=part[None, :-1]).logits[0]
            losses = torch.nn.functional.cross_entropy(logits.float(), part[1:], reduction="none")
            total += float(losses.double().sum())
    return total
