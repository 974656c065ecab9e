"""Mixtures from dense language models: routed by prompts, evaluated, and asked."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

from fusion_core import RunOptions, run_fusion
from fusion_core.cli.app import app
from fusion_core.errors import AlignmentError
from pools_lm.mini.pools import DATA

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.plugins

EXPERTS = ("reverse", "roman")


def prompts_of(task: str, split: str, count: int) -> list[str]:
    lines = (DATA / "tasks" / task / f"{split}.jsonl").read_text().splitlines()
    return [json.loads(line)["prompt"] for line in lines[:count]]


MOE: dict[str, Any] = {
    "name": "moe",
    "experts_per_token": 1,
    "prompts": {task: prompts_of(task, "unlabeled", 8) for task in EXPERTS},
}
POOL = {"name": "lm-mini", "tasks": list(EXPERTS)}
TASKS = {"name": "lm-mini", "tasks": list(EXPERTS), "limit": 60}


@pytest.fixture(scope="module")
def mixture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the directory of a mixture of two experts, evaluated by the run."""
    path = tmp_path_factory.mktemp("mixture") / "out"
    run_fusion(algorithm=MOE, model_pool=POOL, task_pool=TASKS, output=path)
    return path


def test_a_prompt_is_routed_to_its_expert(mixture: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(mixture)
    tokenizer = AutoTokenizer.from_pretrained(mixture)
    for number, task in enumerate(EXPERTS):
        for text in prompts_of(task, "test", 8):
            with torch.no_grad():
                output = model(**tokenizer(text, return_tensors="pt"), output_router_logits=True)
            choices = torch.stack(output.router_logits)[:, 1:].argmax(-1)
            assert (choices == number).float().mean() > 0.7, text


def test_a_mixture_is_evaluated_by_its_run_and_again_from_its_directory(mixture: Path) -> None:
    report = json.loads((mixture / "report.json").read_text())
    scores = {task: row["exact_match"] for task, row in report["tasks"].items()}
    base = report["reference"]["base"]
    assert all(scores[task] > base[task]["exact_match"] for task in EXPERTS)
    result = CliRunner().invoke(app, ["evaluate", str(mixture), "--json", "--quiet"])
    assert result.exit_code == 0, result.output
    again = json.loads(result.stdout)
    assert {task: row["exact_match"] for task, row in again["tasks"].items()} == scores


def test_a_mixture_is_asked_next_to_its_base_and_experts(mixture: Path) -> None:
    result = CliRunner().invoke(app, ["smoke", str(mixture), "--json", "--quiet", "--tokens", "8"])
    assert result.exit_code in {0, 1}, result.output
    assert {"base", *EXPERTS, "out"} <= json.loads(result.stdout)["models"].keys()


def test_a_mixture_in_memory_cannot_be_built() -> None:
    """Only its directory would state its architecture."""
    options = {"name": "moe", "gate": "random"}
    with pytest.raises(AlignmentError, match="does not fit LlamaForCausalLM"):
        run_fusion(
            algorithm=options,
            model_pool=POOL,
            task_pool=TASKS,
            output=None,
            options=RunOptions(),
        )
