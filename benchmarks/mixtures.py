"""Measure how merging the routers of a mixture of experts affects its tasks.

    python benchmarks/mixtures.py --seeds 0 1 2
    python benchmarks/mixtures.py --seeds 0 --write DIRECTORY

A small Mixtral (2 layers, 8 experts, 2 per token, 225,088 parameters) learns to copy, reverse, sort
and shift words, and training stops before it can do all. Three experts are fine-tuned from it, each
on one task. Each method merges them under each policy for routers. The score is the accuracy of
letters, given the letters before.
`--write` keeps the models of the first seed as directories: base, reverse, sort, shift.
"""

from __future__ import annotations

import argparse
import copy
import statistics
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import MixtralConfig, MixtralForCausalLM

from fusion_core import (
    AdaptiveTask,
    Batch,
    ComponentConfig,
    RunOptions,
    Split,
    TaskPool,
    run_fusion,
)
from pools_checkpoints import CheckpointsConfig, CheckpointsPool

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from torch import Tensor, nn

    from fusion_core import MetricValues

LETTERS, LENGTH, FIRST, EQUALS = 12, 6, 4, 3
BATCH = 64
#: Steps, and the highest learning rate.
BASE_TRAINING, EXPERT_TRAINING = (90, 2e-3), (250, 5e-4)
POLICIES = "merge", "base", "average"
#: The tasks by their marker: the first token of every line.
TASKS: dict[str, tuple[int, Callable[[Tensor], Tensor]]] = {
    "copy": (FIRST + LETTERS, lambda words: words),
    "reverse": (FIRST + LETTERS + 1, lambda words: words.flip(1)),
    "sort": (FIRST + LETTERS + 2, lambda words: words.sort(1).values),
    "shift": (FIRST + LETTERS + 3, lambda words: (words + 1) % LETTERS),
}
EXPERTS = "reverse", "sort", "shift"
METHODS: dict[str, Any] = {
    "simple-average": "simple-average",
    "task-arithmetic": {"name": "task-arithmetic", "scale": 0.4},
    "ties": "ties",
    "tsv-m": "tsv-m",
    "strong": "strong",
}


def lines(task: str, count: int, seed: int) -> Tensor:
    """Return lines of tokens: a marker, a word, `=` and the answer; shape (count, 14)."""
    marker, answer = TASKS[task]
    draw = torch.Generator().manual_seed(seed)
    words = torch.randint(LETTERS, (count, LENGTH), generator=draw)
    ends = torch.full((count, 1), marker), torch.full((count, 1), EQUALS)
    return torch.cat([ends[0], words + FIRST, ends[1], answer(words) + FIRST], dim=1)


def train(model: nn.Module, tasks: Sequence[str], steps: int, rate: float, seed: int) -> nn.Module:
    """Train a model on the answers of tasks, in place."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps)
    model.train()
    for step in range(steps):
        key = seed * 10**6 + step
        tokens = torch.cat([lines(task, BATCH // len(tasks), key) for task in tasks])
        labels = tokens.clone()
        labels[:, : LENGTH + 2] = -100
        loss = model(input_ids=tokens, labels=labels, output_router_logits=True).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    return model.eval()


def make_models(seed: int) -> dict[str, nn.Module]:
    """Return `base` and the experts by task."""
    torch.manual_seed(seed)
    config = MixtralConfig(
        vocab_size=FIRST + LETTERS + len(TASKS),
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_local_experts=8,
        num_experts_per_tok=2,
        max_position_embeddings=32,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    base = train(MixtralForCausalLM(config), list(TASKS), *BASE_TRAINING, seed)
    models = {"base": base}
    for number, task in enumerate(EXPERTS, start=1):
        expert = copy.deepcopy(base)
        models[task] = train(expert, [task], *EXPERT_TRAINING, 100 * seed + number)
    return models


class Words(AdaptiveTask):
    """The next letter of an answer, at a position that the batch says."""

    def __init__(self, name: str) -> None:
        self.name = name

    def batch(self, step: int, *, size: int, split: Split, seed: int) -> Batch:
        """Return unlabeled lines that no model was trained on, up to the letter to predict."""
        del split
        key = 10**12 + 10**6 * seed + step
        draw = torch.Generator().manual_seed(key)
        positions = torch.randint(LENGTH + 1, 2 * LENGTH + 1, (size,), generator=draw)
        tokens = lines(self.name, size, key)[:, :-1]
        return Batch({"input_ids": tokens, "position": positions})

    def logits(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the scores of all tokens at each line's position."""
        rows = torch.arange(len(batch.tensors["position"]))
        scores: Tensor = model(input_ids=batch.tensors["input_ids"]).logits
        return scores[rows, batch.tensors["position"]]

    def evaluate(self, model: nn.Module) -> MetricValues:
        """Return the accuracy of letters."""
        return {"accuracy": accuracy(model, self.name)}


class AllWords(TaskPool[ComponentConfig]):
    """One task per expert."""

    names = EXPERTS

    def __init__(self) -> None:
        super().__init__(ComponentConfig())

    def __getitem__(self, name: str) -> AdaptiveTask:
        """Return a task."""
        return Words(name)


@torch.no_grad()
def accuracy(model: nn.Module, task: str) -> float:
    """Return the accuracy of letters on 1000 lines, given the letters before."""
    tokens = lines(task, 1000, 10**15)
    predicted = model(input_ids=tokens).logits[:, LENGTH + 1 : -1].argmax(-1)
    return float((predicted == tokens[:, LENGTH + 2 :]).float().mean())


@torch.no_grad()
def changed_routes(model: nn.Module, expert: nn.Module, task: str) -> float:
    """Return the share of an expert's choices (token, layer, rank) that the model lacks."""
    tokens = lines(task, 200, 10**15)
    chosen = [
        [layer.topk(2).indices for layer in m(input_ids=tokens, output_router_logits=True)[-1]]
        for m in (model, expert)
    ]
    same = [
        (a[:, :, None] == b[:, None]).any(1).float().mean() for a, b in zip(*chosen, strict=True)
    ]
    return 1 - float(torch.stack(same).mean())


def measure(models: dict[str, nn.Module]) -> Iterator[tuple[str, str, list[float], float]]:
    """Yield method, policy, accuracy per task, and the mean share of changed routes."""
    for name, model in models.items():
        scores = [accuracy(model, task) for task in EXPERTS]
        routes = [changed_routes(model, models[task], task) for task in EXPERTS]
        yield f"expert {name}" if name in EXPERTS else name, "", scores, statistics.mean(routes)
    for label, algorithm in METHODS.items():
        for policy in POLICIES:
            experts = {task: models[task] for task in EXPERTS}
            pool = CheckpointsPool(
                CheckpointsConfig(base=models["base"], models=experts, router=policy)
            )
            result = run_fusion(
                algorithm=algorithm,
                model_pool=pool,
                task_pool=AllWords(),
                options=RunOptions(evaluate=False),
            )
            merged = pool.build(result.weights)
            scores = [accuracy(merged, task) for task in EXPERTS]
            routes = [changed_routes(merged, models[task], task) for task in EXPERTS]
            yield label, policy, scores, statistics.mean(routes)


def print_table(rows: dict[tuple[str, str], list[tuple[list[float], float]]]) -> None:
    """Print means over seeds, and the range of the average."""
    print(f"| method | router | {' | '.join(EXPERTS)} | average | range | routes changed |")
    print(f"|---|---|{'---|' * (len(EXPERTS) + 3)}")
    for (method, policy), seeds in rows.items():
        tasks = [statistics.mean(column) for column in zip(*(s for s, _ in seeds), strict=True)]
        averages = [statistics.mean(scores) for scores, _ in seeds]
        routes = statistics.mean(share for _, share in seeds)
        cells = [f"{100 * value:.1f}" for value in (*tasks, statistics.mean(averages))]
        cells.append(f"{100 * min(averages):.1f} to {100 * max(averages):.1f}")
        print(f"| {method} | {policy} | {' | '.join(cells)} | {100 * routes:.0f} % |")


def main(arguments: Sequence[str] | None = None) -> None:
    """Train the mixtures and print one table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--write", type=Path, help="keep the first seed's models here")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    rows: dict[tuple[str, str], list[tuple[list[float], float]]] = {}
    for number, seed in enumerate(options.seeds):
        models = make_models(seed)
        if options.write and not number:
            for name, model in models.items():
                model.save_pretrained(options.write / name)  # type: ignore[operator]
        for method, policy, scores, routes in measure(models):
            rows.setdefault((method, policy), []).append((scores, routes))
            print(seed, method, policy, [round(score, 3) for score in scores], flush=True)
    print_table(rows)


if __name__ == "__main__":
    main()
