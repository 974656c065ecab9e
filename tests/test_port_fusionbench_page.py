"""The page for users of FusionBench: its pairs are imports, and its commands run."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import CLIPVisionConfig, CLIPVisionModel
from typer.testing import CliRunner

from fusion_core import run_fusion
from fusion_core.cli.app import app
from fusion_core.commands import load_plugins, load_recipe, load_yaml
from fusion_core.planning.resolution import resolve

pytestmark = pytest.mark.plugins

NAME = "docs/how-to/port-from-fusionbench.md"
PAGE = (Path(__file__).parents[1] / NAME).read_text(encoding="utf-8")
PAIRS = {
    title: pair
    for title, *pair in re.findall(
        r"^### (.*)\n\n```yaml\n([^`]*)```\n\n```yaml\n([^`]*)```", PAGE, re.MULTILINE
    )
}


@pytest.mark.parametrize("title", PAIRS)
def test_a_pair_is_an_import(title: str, tmp_path: Path) -> None:
    configuration, recipe = PAIRS[title]
    (tmp_path / "config.yaml").write_text(configuration)
    assert load_recipe(tmp_path / "config.yaml") == load_yaml(recipe, origin=title)


def test_all_methods_and_pools_are_listed() -> None:
    from recipes_fusionbench.methods import METHODS
    from recipes_fusionbench.models import KINDS

    assert len(PAIRS) == 2
    prose = re.sub(r"(?ms)^```.*?^```$", "", PAGE)
    listed = {*re.findall(r"`([^`\n]+)`", prose)}
    aliases = {
        *("SimpleAverageForLlama", "TaskArithmeticForLlama", "GPT2ForSequenceClassificationPool"),
        *("IsotropicMergingInCommonSubspace", "IsotropicMergingInCommonAndTaskSubspace"),
    }
    assert {*METHODS, *KINDS} - aliases <= listed


@pytest.mark.parametrize(
    ("pool", "tasks", "method"),
    [
        ("gpt-2_glue", "gpt-2_glue", "regmean/gpt2_regmean"),
        ("gpt-2_glue", "gpt-2_glue", "fisher_merging/gpt2_fisher_merging"),
        (
            "Seq2SeqLMPool/flan-t5-large_glue_lora16",
            "flan-t5_glue_text_generation",
            "task_arithmetic",
        ),
        (
            "CLIPVisionModelPool/clip-vit-base-patch32_TALL20",
            "CLIPVisionModelTaskPool/clip-vit-classification_TALL20",
            "regmean_plusplus/clip_regmean_plusplus",
        ),
    ],
)
def test_our_components_accept_imported_options(
    pool: str, tasks: str, method: str, tmp_path: Path
) -> None:
    chosen = {"modelpool": pool, "taskpool": tasks, "method": method}
    text = "defaults:\n" + "".join(f"  - {group}: {name}\n" for group, name in chosen.items())
    (tmp_path / "config.yaml").write_text(text)
    resolve(load_recipe(tmp_path / "config.yaml"), load_plugins())


def test_the_commands_of_the_page_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    tower = {"hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 1}
    config = CLIPVisionConfig(**tower, num_attention_heads=2, image_size=8, patch_size=4)
    torch.manual_seed(0)
    for name in ("base", "cats", "dogs"):
        CLIPVisionModel(config).save_pretrained(tmp_path / "models" / name)
    configuration, recipe = PAIRS["A composed configuration"]
    Path("config.yaml").write_text(configuration)
    commands = re.findall(r"^\$ (.*)$", PAGE, re.MULTILINE)
    assert len(commands) == 2
    for command in commands:
        done = CliRunner().invoke(app, shlex.split(command)[1:])
        assert done.exit_code == 0, (command, done.exception)
    assert load_recipe("recipe.yaml") == load_yaml(recipe, origin="page")
    run_fusion("recipe.yaml", output="again")
    direct, again = (load_file(f"{side}/model.safetensors") for side in ("merged", "again"))
    base = load_file("models/base/model.safetensors")
    assert direct.keys() == again.keys()
    assert all(torch.equal(direct[name], again[name]) for name in direct)
    assert any(not torch.equal(direct[f"vision_model.{name}"], base[name]) for name in base)
