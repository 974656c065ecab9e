"""Measure mixtures from dense models: where routers send prompts, and the scores on tasks.

    python benchmarks/dense_mixtures.py

The models are the six experts of `lm-mini`. Each gate is made of 16 unlabeled prompts per expert. A
route is right if the first choice for a token is the expert of its task: on 24 test prompts per
task, without the token that begins a text, as the mean over tokens, prompts, tasks and layers.
Scores are in per cent of the experts', on average. A second table compares bases.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from fusion_core import RunOptions, run_fusion
from pools_lm.mini.pools import DATA

if TYPE_CHECKING:
    from fusion_core import RunResult

TASKS = "scripture", "kinds", "speech", "reverse", "roman", "past"
GATES = "hidden", "last-hidden", "embeddings", "random"
PROMPTS, TESTS, CHARACTERS = 16, 24, 400


def main() -> None:
    """Print both tables."""
    with tempfile.TemporaryDirectory() as directory:
        folder, base = Path(directory), str(DATA / "base")
        print(f"{'gate':<14}{'own expert':>12}{'score':>8}")
        for gate in GATES:
            result = mix(base, folder / gate, gate=gate)
            print(f"{gate:<14}{find_routes(folder / gate):>12.1%}{score(result):>8.1%}", flush=True)
        merge = run_fusion(algorithm="tsv-m", model_pool="lm-mini", output=folder / "merge")
        print(f"\nbase            without a mixture {score(merge):.1%}")
        for name, model in (("base", base), ("tsv-m", str(folder / "merge"))):
            for count in (2, 1):
                made = mix(model, folder / f"{name}-{count}", experts_per_token=count)
                print(f"{name:<14}{count} per token {score(made):>8.1%}", flush=True)


def read_texts(task: str, split: str, count: int) -> list[str]:
    """Return the first texts of a task, without answers."""
    lines = (DATA / "tasks" / task / f"{split}.jsonl").read_text().splitlines()[:count]
    fields: list[dict[str, Any]] = [json.loads(line) for line in lines]
    texts = (line.get("text") or line.get("question") or line["prompt"] for line in fields)
    return [str(text)[:CHARACTERS] for text in texts]


def mix(base: str, output: Path, **options: Any) -> RunResult:  # noqa: ANN401 - any options
    """Make a mixture on a base and evaluate it."""
    if options.get("gate") != "random":
        options["prompts"] = {task: read_texts(task, "unlabeled", PROMPTS) for task in TASKS}
    models = {task: str(DATA / "experts" / task) for task in TASKS}
    return run_fusion(
        algorithm={"name": "moe", **options},
        model_pool={"name": "causal-lm", "base": base, "models": models},
        task_pool="lm-mini",
        output=output,
        options=RunOptions(),
    )


def score(result: RunResult) -> float:
    """Return the normalised average."""
    assert result.report is not None
    normalised = result.report.normalised_average
    assert normalised is not None
    return normalised


@torch.no_grad()
def find_routes(directory: Path) -> float:
    """Return the share of tokens whose first choice is the expert of their task."""
    model = AutoModelForCausalLM.from_pretrained(directory)
    tokenizer = AutoTokenizer.from_pretrained(directory)
    shares = []
    for number, task in enumerate(TASKS):
        for text in read_texts(task, "test", TESTS):
            output = model(**tokenizer(text, return_tensors="pt"), output_router_logits=True)
            choices = torch.stack(output.router_logits)[:, 1:].argmax(-1)
            shares.append((choices == number).float().mean())
    return float(torch.stack(shares).mean())


if __name__ == "__main__":
    main()
