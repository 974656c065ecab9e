"""Checks of how a live model reads texts, made on a few of them before it is measured."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import torch

from fusion_core import evaluation_mode
from fusion_core.errors import FusionError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence, Sized

    from torch import Tensor, nn

_LOG = logging.getLogger(__name__)


def limit_padding(
    model: nn.Module, score: Callable[[Any], Tensor], texts: Sequence[Sized], batch_size: int
) -> int:
    """Return `batch_size`, or 1 with a warning if padding changes what the model computes.

    `score` returns one row of scores per text. It is asked for the shortest and the second longest
    text, alone and next to the longest. Some models ignore the attention mask (FNet, RWKV), apply
    it to a part of their layers (ConvBERT), or compress blocks of tokens (DeepSeek-V4).
    """
    by_length = {len(text): text for text in texts}
    *others, longest = [by_length[length] for length in sorted(by_length)]
    if batch_size == 1 or not others:
        return batch_size

    def changes(text: Sized) -> bool:
        return _differ(model, score([text])[0], score([text, longest])[0])

    with torch.no_grad(), evaluation_mode(model):
        if not (changes(others[0]) or changes(others[-1])):
            return batch_size
    _LOG.warning(
        "%s reads texts one by one, because padding changes its results", type(model).__name__
    )
    return 1


def check_ids(model: nn.Module, texts: Iterable[Sequence[int]]) -> None:
    """Raise `FusionError` if a text has a token that the model has no embedding of."""
    transformer: Any = model
    rows = len(transformer.get_input_embeddings().weight)
    largest = max((max(text, default=0) for text in texts), default=0)
    if largest >= rows:
        raise FusionError(
            f"the tokenizer gives the token {largest}, but the model has embeddings of {rows} "
            "tokens",
            hint="Give every model the embeddings of its tokenizer before the merge: "
            "resize_token_embeddings of transformers. Or name a tokenizer that fits the models.",
        )


def check_causal(model: nn.Module, score: Callable[[Tensor], Tensor]) -> None:
    """Raise `FusionError` if the scores after a token depend on the tokens that follow.

    `score` takes texts, shape (texts, tokens), and returns the scores after the first token of
    each.
    """
    texts = torch.tensor([[1, 1, 1, 1], [1, 2, 2, 2]])
    with torch.no_grad(), evaluation_mode(model):
        first, second = score(texts)
    if _differ(model, first, second):
        raise FusionError(
            f"{type(model).__name__} reads the tokens that it should predict, so its likelihoods "
            "mean nothing",
            hint="Use a causal language model. For an encoder such as BERT, use the pool encoder; "
            "if it is a decoder, set `is_decoder` in its config.json.",
        )


def _differ(model: nn.Module, first: Tensor, second: Tensor) -> bool:
    """Tell whether scores differ by more than the rounding of the model's numbers."""
    dtype = next(parameter.dtype for parameter in model.parameters())
    tolerance = max(torch.finfo(dtype).eps, torch.finfo(first.dtype).eps) ** 0.5
    return bool((first - second).abs().max() > tolerance * first.abs().max())
