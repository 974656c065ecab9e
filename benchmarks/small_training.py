"""Training of the study's small models, which begin with nothing."""

from __future__ import annotations

import random
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from tokenizers import processors
from torch import nn
from torch.nn.utils.rnn import pad_sequence

sys.path.append(str(Path(__file__).parents[1] / "plugins" / "pools-lm" / "build"))

import pretrain
from model import END

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    Line = Mapping[str, Any]
    Batch = Mapping[str, torch.Tensor]
    #: the parts of one step, and the weights of their losses
    Parts = Sequence[tuple[float, Batch]]


@dataclass(frozen=True)
class Recipe:
    """How an expert is trained."""

    steps: int
    rate: float
    #: lines per step
    size: int
    seed: int


def train(
    model: Any,  # noqa: ANN401 - transformers' class
    optimiser: torch.optim.Optimizer,
    batches: Iterator[Parts],
    steps: int,
) -> None:
    """Train a model with an optimiser, whose rates are the peaks of a schedule."""
    peaks = [group["lr"] for group in optimiser.param_groups]
    learned = [parameter for group in optimiser.param_groups for parameter in group["params"]]
    for step in range(steps):
        for group, peak in zip(optimiser.param_groups, peaks, strict=True):
            group["lr"] = pretrain.rate(peak, step, steps)
        optimiser.zero_grad()
        total = 0.0
        for weight, batch in next(batches):
            with torch.autocast("cpu", torch.bfloat16):
                loss = weight * model(**batch).loss
            loss.backward()
            total += float(loss.detach())
        nn.utils.clip_grad_norm_(learned, 1.0)
        optimiser.step()
        if step % 100 == 99:
            print(f"step {step + 1}: loss {total:.3f}", file=sys.stderr, flush=True)


def tune_matrices(
    model: Any,  # noqa: ANN401 - transformers' class
    lines: Sequence[Line],
    make_batch: Callable[[Sequence[Line]], Batch],
    recipe: Recipe,
) -> None:
    """Train a model's matrices and heads on a task's lines; embeddings and norms stay."""
    matrices = {part for part, module in model.named_modules() if isinstance(module, nn.Linear)}
    learned = []
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.rpartition(".")[0] in matrices)
        learned += [parameter] if parameter.requires_grad else []
    optimiser = torch.optim.AdamW(learned, lr=recipe.rate, weight_decay=0.0, fused=True)
    draw = random.Random(recipe.seed)

    def batches() -> Iterator[Parts]:
        while True:
            mixed = draw.sample(lines, len(lines))
            for start in range(0, len(mixed) - recipe.size + 1, recipe.size):
                yield [(1.0, make_batch(mixed[start : start + recipe.size]))]

    train(model, optimiser, batches(), recipe.steps)


def end_texts(tokenizer: Any) -> None:  # noqa: ANN401 - transformers' class
    """Let every text end with the end token, and begin with none."""
    ends = [(END, tokenizer.convert_tokens_to_ids(END))]
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        f"$A {END}", special_tokens=ends
    )


def padded(rows: Sequence[Sequence[int]], pad: int) -> Batch:
    """Return token ids and their mask."""
    ids = pad_rows(rows, pad)
    return {"input_ids": ids, "attention_mask": (ids != pad).long()}


def pad_rows(rows: Sequence[Sequence[int]], value: int) -> torch.Tensor:
    """Return rows of one length, filled up at their ends."""
    tensors = [torch.tensor(row) for row in rows]
    return pad_sequence(tensors, batch_first=True, padding_value=value)
