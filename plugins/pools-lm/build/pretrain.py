"""Pre-train the base on texts, and on chats that cover the tasks in other words."""

from __future__ import annotations

import math
import random
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from model import Encoder, batch, loss, new_model, packed
from tasks import exchange

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from corpus import Inputs
    from model import Encoded, Shape
    from tasks import Task
    from torch import Tensor
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast


@dataclass(frozen=True)
class Recipe:
    """Hyperparameters of pre-training."""

    steps: int = 1500
    rate: float = 3e-3
    rows: int = 24
    length: int = 96
    chats: int = 48
    scripture: float = 0.1  # fraction of the Bible's training chapters
    own_words: float = 0.03  # fraction of task chats with the tasks' own prompts
    late: float = 0.13  # last fraction of pre-training, which uses late_words
    late_words: float = 0.2  # fraction of task chats with the tasks' own prompts, late
    seed: int = 0


def texts(inputs: Inputs, tasks: Sequence[Task], recipe: Recipe) -> list[str]:
    """Return the training texts: dictionaries and some scripture, without test texts."""
    held = {
        line["question"].partition("? ")[2] for t in tasks if t.kind == "choice" for line in t.held
    }
    entries = [s.entry for s in inputs.synsets() if s.gloss not in held]
    scripture = [line["text"] for line in tasks[0].train]
    some = random.Random(5).sample(scripture, int(recipe.scripture * len(scripture)))
    return [*entries, *inputs.jargon(), *inputs.devil(), *some]


def pretrain(
    recipe: Recipe,
    shape: Shape,
    words: PreTrainedTokenizerFast,
    read: Sequence[str],
    tasks: Sequence[Task],
) -> LlamaForCausalLM:
    """Train and return a base model."""
    encoder, started = Encoder(words), time.time()
    rows = packed(read, encoder, recipe.length, recipe.seed)
    print(f"pre-training: {rows.numel()} tokens of text, packed in {time.time() - started:.0f} s")
    model = new_model(shape, words, recipe.seed)
    optimiser = torch.optim.AdamW(
        model.parameters(), lr=recipe.rate, betas=(0.9, 0.98), weight_decay=0.05, fused=True
    )
    chats, order = draw_chats(tasks, encoder, recipe), torch.Generator().manual_seed(recipe.seed)
    sums = torch.zeros(2)
    for step in range(recipe.steps):
        text = rows[torch.randint(0, len(rows), (recipe.rows,), generator=order)]
        ids, labels = batch([next(chats) for _ in range(recipe.chats)], words.pad_token_id)
        sums += _step(model, optimiser, text, ids, labels, rate(recipe.rate, step, recipe.steps))
        if step % 100 == 99:
            shown = " ".join(f"{value:.3f}" for value in (sums / 100).tolist())
            print(
                f"  step {step + 1}: text and chats {shown}, {time.time() - started:.0f} s",
                flush=True,
            )
            sums.zero_()
    return model


def _step(model, optimiser, text: Tensor, ids: Tensor, labels: Tensor, at: float) -> Tensor:  # noqa: ANN001
    for group in optimiser.param_groups:
        group["lr"] = at
    optimiser.zero_grad()
    losses = loss(model, text, text), loss(model, ids, labels)
    sum(losses).backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimiser.step()
    return torch.stack([loss.detach() for loss in losses])


def rate(peak: float, step: int, steps: int) -> float:
    """Return the learning rate: warm-up in a twentieth of a cosine to a twentieth of the peak."""
    warm = min(1.0, (step + 1) / (0.05 * steps))
    return peak * warm * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * step / steps)))


# --- chats --------------------------------------------------------------------------------------


def draw_chats(tasks: Sequence[Task], encoder: Encoder, recipe: Recipe) -> Iterator[Encoded]:
    """Yield chats: half exercises on letters and words, half tasks, mostly in other words."""
    rng = random.Random(recipe.seed + 1)
    asked = [task for task in tasks if task.other]
    letters = [line["prompt"].partition(": ")[2].split() for line in tasks[3].train]
    for chat in range(recipe.steps * recipe.chats):
        if rng.random() < 0.5:
            yield encoder.exchange(*_exercise("".join(rng.choice(letters)), rng))
            continue
        task = rng.choice(asked)
        line = rng.choice(task.train)
        late = chat >= (1 - recipe.late) * recipe.steps * recipe.chats
        is_own = rng.random() < (recipe.late_words if late else recipe.own_words)
        yield encoder.exchange(*(exchange(line) if is_own else task.other(line, rng)))


def _exercise(word: str, rng: random.Random) -> tuple[str, str]:
    """Return an exercise in copying, spelling or counting, skills that the tasks need."""
    spelled, number = " ".join(word), str(rng.randint(1, 1999))
    return rng.choice(
        (
            (f"Say {word}", word),
            (f"Spell {word}", spelled),
            (f"Join {spelled}", word),
            (f"Copy {spelled}", spelled),
            (f"Repeat {number}", number),
            (f"First letter of {spelled}", word[0]),
            (f"Last letter of {spelled}", word[-1]),
            (f"Upper case of {word}", word.upper()),
            (f"How many letters: {spelled}", str(len(word))),
            (f"Add s to {word}", f"{word}s"),
            (f"Digits of {number}", " ".join(number)),
        )
    )
