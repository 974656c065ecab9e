"""Log-likelihoods of tokens, computed in padded batches."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Any

import torch

from fusion_adapting import map_batches, most_likely
from pools_lm.tasks.reading import check_causal, check_ids

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor, nn

    from pools_lm.tasks.prompts import Pair

#: The names of inputs that hold an encoder-decoder's answers, and the marks that `Batch` counts.
ANSWERS, PREDICTED = "answers", "predicted"
#: Maximum number of scores in memory at once, unless a single text has more.
_MAX_SCORES = 2**26
#: Number of rows per log-softmax, few enough for memory that is used again at once.
_ROWS = 32


def pad_rows(
    rows: Sequence[Sequence[int]], *, value: int = 0, left: bool = False, length: int = 0
) -> dict[str, Tensor]:
    """Return `input_ids` and `attention_mask`, each of shape (rows, at least `length` tokens)."""
    length = max(length, *map(len, rows))

    def pad(row: Sequence[int], value: int) -> list[int]:
        padding = [value] * (length - len(row))
        return [*padding, *row] if left else [*row, *padding]

    ids = torch.tensor([pad(row, value) for row in rows])
    mask = torch.tensor([pad([1] * len(row), 0) for row in rows])
    return {"input_ids": ids, "attention_mask": mask}


def next_token_scores(model: nn.Module, inputs: Mapping[str, Tensor]) -> Tensor:
    """Return the scores of the token after each text, shape (texts, vocabulary).

    If the inputs mark positions as `predicted`, they are those of the token after each of these,
    text by text: shape (positions, vocabulary). For an encoder-decoder, they are those of the first
    token of the answer, or of the tokens marked in `answers`; both have the shape (texts, 1,
    tokens). A decoder's head multiplies no other position, if the model's class can select.
    """
    check_ids(model, inputs["input_ids"].tolist())
    texts = dict(inputs)
    predicted, answers = texts.pop(PREDICTED, None), texts.pop(ANSWERS, None)
    if _is_seq2seq(model):
        start = texts["input_ids"].new_tensor(answer_start(model))
        given = start.expand(len(texts["input_ids"]), -1)
        if predicted is None or answers is None:
            predicted = torch.ones_like(given[:, None, :1], dtype=torch.bool)
        else:
            given = torch.cat([given, answers[:, 0, :-1]], dim=1)
        answer_scores: Tensor = model(**texts, decoder_input_ids=given).logits
        return answer_scores[:, len(start) - 1 :][predicted[:, 0]]
    if predicted is None:
        mask = texts["attention_mask"]
        predicted = mask.cumsum(dim=1) * mask == mask.sum(dim=1, keepdim=True)
    return _scores_after(model, texts, predicted)


def log_likelihoods(
    model: nn.Module, pairs: Sequence[Pair], *, batch_size: int, label: str
) -> list[float]:
    """Return the log-likelihood of every continuation, in nats.

    `label` names the texts in progress notes.
    """
    device = next(model.parameters()).device

    def score(batch: Sequence[Pair]) -> list[float]:
        with torch.inference_mode():
            return _score_batch(model, batch, device)

    size = _limit_batch(model, pairs, batch_size)
    return map_batches(score, pairs, model, batch_size=size, label=label)


def greedy_tokens(
    model: nn.Module, pairs: Sequence[Pair], *, batch_size: int, label: str
) -> list[list[int]]:
    """Return the most likely token at each position of every continuation, or `UNDEFINED`.

    The model reads the continuation's tokens before the position, not its own predictions. `label`
    names the texts in progress notes.
    """
    device = next(model.parameters()).device

    def choose(batch: Sequence[Pair]) -> list[list[int]]:
        with torch.inference_mode():
            tokens = most_likely(_continuation_scores(model, batch, device)).cpu()
        remaining = iter(tokens.tolist())
        return [list(islice(remaining, len(pair.continuation))) for pair in batch]

    size = _limit_batch(model, pairs, batch_size)
    return map_batches(choose, pairs, model, batch_size=size, label=label)


def _limit_batch(model: nn.Module, pairs: Sequence[Pair], batch_size: int) -> int:
    """Return the number of pairs whose scores fit into memory, at most `batch_size`.

    Padding follows the texts, so a causal decoder does not see it. Raises `FusionError` for a
    decoder that is not causal.
    """
    check_ids(model, (text for pair in pairs for text in (pair.context, pair.continuation)))
    config: Any = model.config
    device = next(model.parameters()).device
    longest = max(len(pair.continuation) for pair in pairs)
    scores = max(1, longest * int(config.get_text_config().vocab_size))
    size = max(1, min(batch_size, _MAX_SCORES // scores))
    if not _is_seq2seq(model):
        check_causal(model, lambda texts: _first_scores(model, texts.to(device)))
    return size


def _first_scores(model: nn.Module, texts: Tensor) -> Tensor:
    """Return the scores after the first token of each text, shape (texts, vocabulary)."""
    everywhere = torch.ones_like(texts)
    inputs = {"input_ids": texts, "attention_mask": everywhere}
    return _scores_after(model, inputs, everywhere.cumsum(dim=1) == 1)


def _score_batch(model: nn.Module, pairs: Sequence[Pair], device: torch.device) -> list[float]:
    """Return the summed log-probabilities of each continuation's tokens."""
    owners = torch.tensor([n for n, pair in enumerate(pairs) for _ in pair.continuation])
    targets = torch.tensor([token for pair in pairs for token in pair.continuation])
    scores = torch.split(_continuation_scores(model, pairs, device), _ROWS)
    chunks = zip(scores, torch.split(targets.to(device), _ROWS), strict=True)
    logs = torch.cat([_log_probabilities(*chunk) for chunk in chunks]).double().cpu()
    sums = torch.zeros(len(pairs), dtype=torch.float64).index_add(0, owners, logs)
    return list(sums.tolist())


def _log_probabilities(scores: Tensor, tokens: Tensor) -> Tensor:
    """Return the log-probability of one token per row of scores, at least fp32."""
    wide = scores.to(torch.promote_types(scores.dtype, torch.float32))
    return wide.log_softmax(dim=-1).gather(1, tokens[:, None])[:, 0]


def _continuation_scores(model: nn.Module, pairs: Sequence[Pair], device: torch.device) -> Tensor:
    """Return scores for all continuations' tokens, shape (tokens of all pairs, vocabulary)."""
    if _is_seq2seq(model):
        contexts = pad_rows([pair.context for pair in pairs])
        start = answer_start(model)
        answers = pad_rows([[*start, *pair.continuation[:-1]] for pair in pairs])
        inputs = {**contexts, "decoder_input_ids": answers["input_ids"]}
        follows = answers["attention_mask"].bool()
        follows[:, : len(start) - 1] = False
        all_scores: Tensor = model(**_to_device(inputs, device)).logits
        return all_scores[follows.to(device)]
    texts = pad_rows([[*pair.context, *pair.continuation[:-1]] for pair in pairs])
    starts = torch.tensor([[len(pair.context) - 1] for pair in pairs])
    positions = torch.arange(texts["input_ids"].shape[1])
    follows = texts["attention_mask"].bool() & (positions >= starts)
    return _scores_after(model, _to_device(texts, device), follows.to(device))


def _scores_after(model: nn.Module, texts: Mapping[str, Tensor], positions: Tensor) -> Tensor:
    """Return the scores of the tokens after marked positions, shape (positions, vocabulary)."""
    scores: Tensor = model(**texts, logits_to_keep=positions).logits
    is_selected = scores.dim() == 2  # noqa: PLR2004 - otherwise the model's class ignores the option
    return scores if is_selected else scores[positions]


def _to_device(inputs: Mapping[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    return {name: tensor.to(device) for name, tensor in inputs.items()}


def _is_seq2seq(model: nn.Module) -> bool:
    config: Any = model.config
    return bool(config.is_encoder_decoder)


def answer_start(model: nn.Module) -> list[int]:
    """Return the tokens that a decoder reads before an answer: the start, and one it must write.

    BART writes its start token first, and a multilingual model the token of the language.
    """
    live: Any = model
    forced: int | None = live.generation_config.forced_bos_token_id
    return [int(live.config.decoder_start_token_id), *([] if forced is None else [forced])]
