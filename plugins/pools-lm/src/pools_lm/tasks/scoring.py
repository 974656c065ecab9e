"""What models predict of tokens: batches padded on the right, scores where they are wanted."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import torch

from fusion_adapting import on_cores
from fusion_core import evaluation_mode, note

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence, Sized

    from torch import Tensor, nn

    from pools_lm.tasks.prompts import Pair


def padded(
    rows: Sequence[Sequence[int]], *, filler: int = 0, left: bool = False
) -> dict[str, Tensor]:
    """Return `input_ids` and `attention_mask`, each of shape (rows, tokens)."""
    length = max(map(len, rows))

    def filled(row: Sequence[int], value: int) -> list[int]:
        more = [value] * (length - len(row))
        return [*more, *row] if left else [*row, *more]

    ids = torch.tensor([filled(row, filler) for row in rows])
    mask = torch.tensor([filled([1] * len(row), 0) for row in rows])
    return {"input_ids": ids, "attention_mask": mask}


def next_scores(model: nn.Module, inputs: Mapping[str, Tensor]) -> Tensor:
    """Return the scores of the token after each text, or of a decoder's first: (texts, tokens)."""
    if _is_seq2seq(model):
        starts = torch.full_like(inputs["input_ids"][:, :1], _start(model))
        found: Tensor = model(**inputs, decoder_input_ids=starts).logits[:, 0]
        return found
    last = inputs["attention_mask"].sum(dim=1, keepdim=True) - 1
    made: Tensor = model(**inputs, logits_to_keep=last).logits[:, 0]
    return made


#: Scores that are made at once, where a text alone has no more of them.
_SCORES = 2**26
#: Rows of scores of which logarithms are taken at once.
_ROWS = 256


def log_likelihoods(
    model: nn.Module, pairs: Sequence[Pair], *, batch_size: int, said: str
) -> list[float]:
    """Return the log-likelihood of every continuation, in nats.

    Texts of like lengths are read together, whatever their order, as many batches at once as there
    are cores. `said` is what progress is called.
    """
    device, config = next(model.parameters()).device, cast("Any", model.config)

    def scored(some: Sequence[Pair]) -> list[float]:
        with torch.inference_mode():
            return _of_batch(model, some, device)

    longest = max(len(pair.continuation) for pair in pairs)
    scores = max(1, longest * config.get_text_config().vocab_size)
    size = max(1, min(batch_size, _SCORES // scores))
    return by_length(scored, pairs, model, batch_size=size, said=said)


def by_length(
    function: Callable[[Any], Iterable[Any]],
    items: Sequence[Sized],
    model: nn.Module,
    *,
    batch_size: int,
    said: str,
) -> list[Any]:
    """Return what a function makes of batches of items, one result an item, in their order.

    Those of like lengths are together in a batch, and as many batches are read at once as there are
    cores. `said` is what progress is called.
    """
    order = sorted(range(len(items)), key=lambda n: len(items[n]))
    batches = [order[n : n + batch_size] for n in range(0, len(order), batch_size)]
    on_cpu = next(model.parameters()).device.type == "cpu"

    def of_batch(rows: Sequence[int]) -> Iterable[Any]:
        return function([items[row] for row in rows])

    found = dict[int, Any]()
    with evaluation_mode(model):
        made = on_cores(of_batch, batches) if on_cpu else map(of_batch, batches)
        for rows, values in zip(batches, made, strict=True):
            found.update(zip(rows, values, strict=True))
            note(f"{said}: {len(found):,} of {len(items):,} texts")
    return [found[row] for row in range(len(items))]


def _of_batch(model: nn.Module, pairs: Sequence[Pair], device: torch.device) -> list[float]:
    """Return the sums of log-probabilities of the tokens that are to follow."""
    owners = torch.tensor([n for n, each in enumerate(pairs) for _ in each.continuation])
    wanted = torch.tensor([token for pair in pairs for token in pair.continuation])
    scores = torch.split(_scores(model, pairs, device), _ROWS)
    rows = zip(scores, torch.split(wanted.to(device), _ROWS), strict=True)
    logs = torch.cat([_log_probabilities(*row) for row in rows]).double().cpu()
    sums = torch.zeros(len(pairs), dtype=torch.float64).index_add(0, owners, logs)
    return list(sums.tolist())


def _log_probabilities(scores: Tensor, tokens: Tensor) -> Tensor:
    """Return those of some tokens, one a row of scores, at least in fp32."""
    wide = scores.to(torch.promote_types(scores.dtype, torch.float32))
    return wide.log_softmax(dim=-1).gather(1, tokens[:, None])[:, 0]


def _scores(model: nn.Module, pairs: Sequence[Pair], device: torch.device) -> Tensor:
    """Return the scores of every token that is to follow: (those of all pairs, tokens)."""
    if _is_seq2seq(model):
        given = padded([pair.context for pair in pairs])
        begun = padded([[_start(model), *pair.continuation[:-1]] for pair in pairs])
        inputs = {**given, "decoder_input_ids": begun["input_ids"]}
        found: Tensor = model(**_on(device, inputs)).logits
        return found[begun["attention_mask"].bool().to(device)]
    given = padded([[*pair.context, *pair.continuation[:-1]] for pair in pairs])
    starts = torch.tensor([[len(pair.context) - 1] for pair in pairs])
    places = torch.arange(given["input_ids"].shape[1])
    follows = given["attention_mask"].bool() & (places >= starts)
    made: Tensor = model(**_on(device, {**given, "logits_to_keep": follows})).logits
    return made


def _on(device: torch.device, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: each.to(device) for name, each in inputs.items()}


def _is_seq2seq(model: nn.Module) -> bool:
    config: Any = model.config
    return bool(config.is_encoder_decoder)


def _start(model: nn.Module) -> int:
    config: Any = model.config
    return int(config.decoder_start_token_id)
