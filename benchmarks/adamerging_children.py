"""Run one contender of benchmarks/adamerging.py, and print one line of JSON.

The Python of FusionBench's own environment runs `FusionBench`, so nothing of ours is imported
for it.
"""

from __future__ import annotations

import json
import resource
import statistics
import sys
import time
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from adamerging_givens import batch_of, config, head_of
from transformers import CLIPVisionModel


def main() -> None:
    """Run one child."""
    name, folder, *numbers = sys.argv[1:]
    tasks, images, steps = map(int, numbers)
    if name == "make":
        make(Path(folder), tasks)
        return
    times = RUNS[name](Path(folder), tasks, images, steps)
    peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(json.dumps({"step": statistics.median(times[1:]), "peak": peak}))


def make(folder: Path, experts: int) -> None:
    """Write a base and its experts."""
    model = CLIPVisionModel(config())
    model.save_pretrained(folder / "base")
    generator = torch.Generator().manual_seed(1)
    base = {name: value.clone() for name, value in model.state_dict().items()}
    for number in range(experts):
        for name, value in model.state_dict().items():
            if value.is_floating_point():
                noise = torch.randn(value.shape, generator=generator)
                value.copy_(base[name] + 0.001 * noise)
        model.save_pretrained(folder / f"expert-{number}")


def load(folder: Path) -> CLIPVisionModel:
    """Load one of the models, in evaluation mode."""
    return CLIPVisionModel.from_pretrained(folder).eval()


def entropy(logits: torch.Tensor) -> torch.Tensor:
    """Return the mean entropy of the predictions."""
    logs = logits.float().log_softmax(dim=-1)
    return -(logs.exp() * logs).sum(dim=-1).mean()


def bare(folder: Path, tasks: int, images: int, steps: int, *, bf16: bool = False) -> list[float]:
    """Run forward and backward of the same batches, and nothing else."""
    return _passes(load(folder / "base"), tasks, images, steps, bf16=bf16)


def bare_fast(folder: Path, tasks: int, images: int, steps: int) -> list[float]:
    """Run the same passes with the kernels that ours uses."""
    from fusion_core.machine.linear_kernels import use_fast_linear_layers

    return _passes(use_fast_linear_layers(load(folder / "base")), tasks, images, steps)


def _passes(
    model: torch.nn.Module, tasks: int, images: int, steps: int, *, bf16: bool = False
) -> list[float]:
    batches = [(batch_of(task, images), head_of(task)) for task in range(tasks)]
    times = []
    for _ in range(steps):
        started = time.perf_counter()
        for batch, head in batches:
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                features = model(batch).pooler_output
            entropy(features.float() @ head).backward()
        model.zero_grad()
        times.append(time.perf_counter() - started)
    return times


def ours(folder: Path, tasks: int, images: int, steps: int, **options: Any) -> list[float]:  # noqa: ANN401
    """Run AdaMerging as `fuse run` does. A step lasts from one report to the next."""
    from adamerging_pools import RandomTasks, Towers

    from fusion_adamerging.adamerging import AdaMerging
    from fusion_adamerging.config import AdaMergingConfig
    from fusion_core import RunContext

    reports: list[float] = []
    context = RunContext(
        tasks=RandomTasks(tasks), on_metrics=lambda *_: reports.append(time.perf_counter())
    )
    settings = AdaMergingConfig(batch_size=images, steps=steps + 1, **options)
    AdaMerging(settings).run(Towers(folder, tasks), context)
    return [after - before for before, after in pairwise(reports)]


def fusion_bench(folder: Path, tasks: int, images: int, steps: int) -> list[float]:
    """Run FusionBench's merged model in the loop of its LayerWiseAdaMergingAlgorithm."""
    from fusion_bench.models.wrappers.layer_wise_fusion import (
        LayerWiseMergedModel,
        get_layer_wise_weights,
    )

    experts = [load(folder / f"expert-{number}") for number in range(tasks)]
    base = load(folder / "base")
    count = sum(1 for parameter in base.parameters() if parameter.requires_grad)
    weights = get_layer_wise_weights(num_models=tasks, num_layers=count, init_values=0.3)
    module = LayerWiseMergedModel(
        layer_wise_weight=weights,
        pretrained_model=base,
        finetuned_models=experts,
        clamp_weights=False,
        tie_weights=True,
        strict=False,
    )
    optimiser = torch.optim.Adam([module.merge_weight], lr=1e-3)
    batches = [(batch_of(task, images), head_of(task)) for task in range(tasks)]
    module.train()
    module.merge_weights()
    times = []
    for _ in range(steps):
        started = time.perf_counter()
        for batch, head in batches:
            entropy(module(batch).pooler_output @ head).backward(retain_graph=True)
        optimiser.step()
        optimiser.zero_grad()
        module.merge_weights()
        times.append(time.perf_counter() - started)
    return times


RUNS: dict[str, Any] = {
    "bare": bare,
    "bare, our kernels": bare_fast,
    "bare bf16": lambda *arguments: bare(*arguments, bf16=True),
    "ours fp32": ours,
    "ours bf16": lambda *arguments: ours(*arguments, precision="bf16", task_vectors="bf16"),
    **{
        f"ours {granularity}": partial(ours, granularity=granularity)
        for granularity in ("row", "column", "row+column", "rank")
    },
    "ours disk": lambda *arguments: ours(*arguments, task_vectors="disk"),
    "FusionBench": fusion_bench,
}

if __name__ == "__main__":
    main()
