"""The parts of `lm_step.py` that need torch, as separate programs with their own peaks."""

from __future__ import annotations

import json
import random
import statistics
import string
import sys
import threading
import time
from collections import defaultdict
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from llama import SMOLLM2_135M, TINYLLAMA_1_1B
from lm_children import adapters, save_tokenizer

from fusion_core import Progress, RunContext, RunOptions, plan
from fusion_core.planning.pipeline import apply_stages

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from fusion_core.planning.plan import Plan
    from fusion_core.progress import Advance

SHAPES = {"smollm2-135m": SMOLLM2_135M, "tinyllama-1.1b": TINYLLAMA_1_1B}
_PAGE = 4096
_LETTERS = 200  # about two per token


def make(directory: str, shape: str, experts: str, prompts: str) -> None:
    """Write a base with its tokenizer, adapters, and one file of prompts per task."""
    from transformers import LlamaConfig, LlamaForCausalLM

    names = [f"task-{number}" for number in range(int(experts))]
    torch.manual_seed(0)
    sizes = SHAPES[shape]
    config = LlamaConfig(**{**sizes.config, "tie_word_embeddings": sizes is SMOLLM2_135M})
    LlamaForCausalLM(config).bfloat16().save_pretrained(Path(directory, "base"))
    save_tokenizer(Path(directory, "base"), sizes.vocabulary)
    adapters(directory, json.dumps(list(vars(sizes).values())), *names)
    for name in names:
        draw = random.Random(name)
        lines = [
            json.dumps({"prompt": "".join(draw.choices(string.ascii_letters, k=_LETTERS))})
            for _ in range(int(prompts))
        ]
        Path(directory, f"{name}.jsonl").write_text("\n".join(lines))


def bare(directory: str, positions: str, steps: str, batch_size: str) -> None:
    """Run forward and backward of the same batches, and nothing else; print times and peaks."""
    from fusion_adapting import Batches, build_live

    planned = _plan(directory, {})
    assert planned.tasks is not None
    adaptive = map(planned.tasks.adaptive, planned.tasks.names)
    tasks = [task.with_all_predictions() for task in adaptive]
    memory = Memory()
    memory.phase = "read"
    model: Any = build_live(planned.pool, planned.pool.reference, "cpu")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("_proj" in name)
    batches, times = Batches(int(batch_size), seed=0), []
    memory.phase = "adapt"
    for step in range(int(steps) + 1):
        started = time.perf_counter()
        for task in tasks:
            batch = batches.of(task, step)
            if positions == "all":
                texts = {k: v for k, v in batch.tensors.items() if k != "predicted"}
                logits = model(**texts).logits.flatten(0, 1)
            else:
                logits = task.logits(model, batch)
            (logits.logsumexp(-1) - logits.mean(-1)).mean().backward()
        model.zero_grad()
        times.append(time.perf_counter() - started)
    _print(planned, times, memory)


def ours(directory: str, form: str, steps: str, batch_size: str) -> None:
    """Run the pipeline `strong`; a step lasts from one report to the next."""
    reports: list[float] = []
    storage, _, precision = form.partition(", ")
    options = {"steps": int(steps) + 2, "batch_size": int(batch_size), "task_vectors": storage}
    planned = _plan(directory, {**options, "precision": precision or "fp32"})
    memory = Memory()
    context = RunContext(
        tasks=planned.tasks,
        progress=Phases(memory),
        on_metrics=lambda *_: reports.append(time.perf_counter()),
    )
    memory.phase = "read"
    apply_stages(planned.stages, planned.aligned, context)
    _print(planned, [after - before for before, after in pairwise(reports)], memory)


class Memory:
    """The peak of resident memory by phase, above that at the start."""

    def __init__(self) -> None:
        self.phase = ""
        self.peaks: dict[str, int] = defaultdict(int)
        self._start = self._resident()
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        while True:
            phase = self.phase
            self.peaks[phase] = max(self.peaks[phase], self._resident() - self._start)
            time.sleep(0.005)

    @staticmethod
    def _resident() -> int:
        return _PAGE * int(Path("/proc/self/statm").read_text().split()[1])


class Phases(Progress):
    """Progress bars, whose labels name the phases of memory."""

    def __init__(self, memory: Memory) -> None:
        self._memory = memory

    @contextmanager
    def track(self, label: str, *, total: int, unit: str = "") -> Iterator[Advance]:
        """Name the phase."""
        before, self._memory.phase = self._memory.phase, label
        with super().track(label, total=total, unit=unit) as advance:
            yield advance
        self._memory.phase = "end" if label == "adapt" else before


def _plan(directory: str, options: dict[str, Any]) -> Plan:
    files = sorted(Path(directory).glob("*.jsonl"))
    model_pool = {
        "name": "causal-lm",
        "base": f"{directory}/base",
        "models": {file.stem: f"{directory}/{file.stem}" for file in files},
    }
    datasets = {
        file.stem: {"kind": "generate", "test": str(file), "unlabeled": str(file)} for file in files
    }
    strong = {"name": "adamerging", "preset": "strong", "init": 1, **options}
    return plan(
        {
            "algorithm": [{"name": "orthogonalise"}, strong],
            "model_pool": model_pool,
            "task_pool": {"name": "lm-tasks", "datasets": datasets},
        },
        RunOptions(),
    )


def _print(planned: Plan, times: list[float], memory: Memory) -> None:
    infos = planned.pool.reference.infos.values()
    model = sum(info.numel for info in infos) * torch.float32.itemsize
    step = statistics.median(times[1:] or times)
    print(json.dumps({"step": step, "peaks": memory.peaks, "model": model}))


if __name__ == "__main__":
    children: dict[str, Callable[..., None]] = {
        function.__name__: function for function in (make, bare, ours)
    }
    children[sys.argv[1]](*sys.argv[2:])
