"""Score a model on a task: bits per byte, or the fraction of right answers."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from model import IGNORED, Encoded, Encoder, batch, load
from torch import Tensor
from torch.nn import functional

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from model import State
    from tasks import Line, Task
    from transformers import LlamaForCausalLM

BATCH = 100
LONGEST = 24  # maximum number of tokens per answer


def score(
    model: LlamaForCausalLM, encoder: Encoder, task: Task, weights: State | None = None
) -> float:
    """Return bits per byte (lower is better) or a fraction, on the test lines."""
    if weights is not None:
        load(model, weights)
    kinds = {"perplexity": bits_per_byte, "choice": chosen_right, "generation": written_right}
    with torch.inference_mode():
        return kinds[task.kind](model, encoder, task.test)


def bits_per_byte(model: LlamaForCausalLM, encoder: Encoder, lines: Sequence[Line]) -> float:
    """Return the texts' negative log-likelihood per byte."""
    nats = sum(likelihoods(model, encoder, [encoder.text(line["text"]) for line in lines]))
    return -nats / math.log(2) / sum(len(line["text"].encode()) for line in lines)


def chosen_right(model: LlamaForCausalLM, encoder: Encoder, lines: Sequence[Line]) -> float:
    """Return how often the right choice has the highest likelihood per byte."""
    items = [
        encoder.exchange(line["question"], choice) for line in lines for choice in line["choices"]
    ]
    values = iter(likelihoods(model, encoder, items))
    right = 0
    for line in lines:
        scores = [next(values) / len(choice.encode()) for choice in line["choices"]]
        right += scores.index(max(scores)) == line["answer"]
    return right / len(lines)


def written_right(model: LlamaForCausalLM, encoder: Encoder, lines: Sequence[Line]) -> float:
    """Return how often the greedy answer is right."""
    written = answers(model, encoder, [line["prompt"] for line in lines])
    return sum(a.strip() == b["answer"] for a, b in zip(written, lines, strict=True)) / len(lines)


def likelihoods(model: LlamaForCausalLM, encoder: Encoder, items: Sequence[Encoded]) -> list[float]:
    """Return log-likelihoods of the items' learned tokens in nats, without the end token."""
    values = [0.0] * len(items)
    for rows in _alike([len(item.ids) for item in items]):
        ids, labels = batch([items[row] for row in rows], encoder.words.pad_token_id)
        labels[ids == encoder.end] = IGNORED
        logits = model(input_ids=ids, use_cache=False).logits[:, :-1].float()
        wanted = labels[:, 1:]
        losses = -functional.cross_entropy(
            logits.transpose(1, 2), wanted, ignore_index=IGNORED, reduction="none"
        )
        for row, value in zip(rows, losses.sum(1).tolist(), strict=True):
            values[row] = value
    return values


def answers(model: LlamaForCausalLM, encoder: Encoder, prompts: Sequence[str]) -> list[str]:
    """Return greedy answers. A batch has prompts of one length, so it needs no padding."""
    encoded = [encoder.prompt(prompt) for prompt in prompts]
    answers = [""] * len(prompts)
    for rows in _alike([len(ids) for ids in encoded], equal=True):
        tokens = _greedy(model, encoder, torch.tensor([encoded[row] for row in rows]))
        for row, ids in zip(rows, tokens.tolist(), strict=True):
            answer = ids[: ids.index(encoder.end)] if encoder.end in ids else ids
            answers[row] = encoder.words.decode(answer)
    return answers


def _greedy(model: LlamaForCausalLM, encoder: Encoder, ids: Tensor) -> Tensor:
    written, cache, ended = [], None, torch.zeros(len(ids), dtype=torch.bool)
    for _ in range(LONGEST):
        output = model(input_ids=ids, cache=cache, use_cache=True, logits_to_keep=1)
        ids, cache = output.logits[:, -1:].argmax(-1), output.cache
        written.append(ids)
        ended |= ids[:, 0] == encoder.end
        if ended.all():
            break
    return torch.cat(written, 1)


def _alike(lengths: Sequence[int], *, equal: bool = False) -> Iterator[list[int]]:
    """Yield batches of rows of similar length."""
    order = sorted(range(len(lengths)), key=lambda row: lengths[row])
    taken: list[int] = []
    for row in order:
        differs = equal and taken and lengths[taken[0]] != lengths[row]
        if taken and (len(taken) == BATCH or differs):
            yield taken
            taken = []
        taken.append(row)
    yield taken
