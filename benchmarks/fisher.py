"""What `fisher` takes per example, beside one backward pass of the same example.

    python benchmarks/fisher.py --examples 16 --classes 20

The model is a BERT of 22 M parameters (6 layers, 384 wide) with random weights, on one core.
"""

from __future__ import annotations

import argparse
import time
from typing import TYPE_CHECKING

import torch
from transformers import BertConfig, BertModel

from fusion_adapting import compute_squared_gradients
from fusion_core import AdaptiveTask, Batch, Split

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor, nn

    from fusion_core import MetricValues

_WIDTH, _LENGTH, _WORDS = 384, 64, 30_000


class RandomTexts(AdaptiveTask):
    """Texts of random tokens, and a random head on the mean over tokens."""

    name = "random"

    def __init__(self, classes: int) -> None:
        self.weight = torch.randn(_WIDTH, classes)

    def batch(self, step: int, *, size: int, split: Split, seed: int) -> Batch:
        """Return random tokens."""
        del split
        draw = torch.Generator().manual_seed(1000 * seed + step)
        return Batch({"input_ids": torch.randint(_WORDS, (size, _LENGTH), generator=draw)})

    def logits(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the head's scores."""
        states: Tensor = model(**batch.tensors).last_hidden_state
        return states.mean(1) @ self.weight

    def evaluate(self, model: nn.Module) -> MetricValues:
        """Measure nothing."""
        raise NotImplementedError


def main() -> None:
    """Measure both in turns, and print the best of each and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--examples", type=int, default=16)
    parser.add_argument("--classes", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    config = BertConfig(
        num_hidden_layers=6, hidden_size=_WIDTH, num_attention_heads=12, intermediate_size=1_536
    )
    model, task = BertModel(config).eval(), RandomTexts(arguments.classes)
    parameters = dict(model.named_parameters())
    batch = task.batch(0, size=arguments.examples, split=Split.UNLABELED, seed=0)

    def passes() -> None:
        for row in range(len(batch)):
            logs = task.logits(model, batch.part(row, row + 1)).log_softmax(-1)
            torch.autograd.grad(logs[0, 0], list(parameters.values()), allow_unused=True)

    def squares(exact_up_to: int) -> None:
        compute_squared_gradients(model, parameters, task, [batch], exact_up_to=exact_up_to)

    works = {
        "one backward pass": passes,
        "labels: sampled": lambda: squares(0),
        "labels: exact": lambda: squares(arguments.classes),
    }
    taken = {label: _best(work, arguments.repeats) / len(batch) for label, work in works.items()}
    for label, seconds in taken.items():
        ratio = seconds / taken["one backward pass"]
        print(f"{label:18} {seconds:.3f} s per example, {ratio:.2f} of a backward pass")


def _best(work: Callable[[], None], repeats: int) -> float:
    """Return the least processor time."""
    found = []
    for _ in range(repeats):
        started = time.process_time()
        work()
        found.append(time.process_time() - started)
    return min(found)


if __name__ == "__main__":
    main()
