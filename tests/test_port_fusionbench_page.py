"""The page for users of FusionBench: its pairs are imports, and its commands run."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from port_pages import check_import, pairs_of, read_page, run_commands
from safetensors.torch import load_file
from transformers import CLIPVisionConfig, CLIPVisionModel

from fusion_core import run_fusion
from fusion_core.commands import load_plugins, load_recipe, load_yaml
from fusion_core.planning.resolution import resolve

pytestmark = pytest.mark.plugins

PAGE = read_page("port-from-fusionbench.md")
PAIRS = pairs_of(PAGE)


@pytest.mark.parametrize("title", PAIRS)
def test_a_pair_is_an_import(title: str, tmp_path: Path) -> None:
    check_import(PAIRS[title], tmp_path / "config.yaml")


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
    run_commands(PAGE)
    assert load_recipe("recipe.yaml") == load_yaml(recipe, origin="page")
    run_fusion("recipe.yaml", output="again")
    direct, again = (load_file(f"{side}/model.safetensors") for side in ("merged", "again"))
    base = load_file("models/base/model.safetensors")
    assert direct.keys() == again.keys()
    assert all(torch.equal(direct[name], again[name]) for name in direct)
    assert any(not torch.equal(direct[f"vision_model.{name}"], base[name]) for name in base)
