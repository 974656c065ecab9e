"""Statements of an adapter that its tensors or its base contradict: errors or warnings."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import peft
import pytest
import torch
import transformers
from differences import rows, warnings
from safetensors.torch import load_file, save_file

from fusion_core import AlignmentPolicy, run_fusion
from fusion_core.errors import AlignmentError, CheckpointError
from pools_checkpoints import CheckpointsConfig, CheckpointsPool

if TYPE_CHECKING:
    from pathlib import Path

    from hub_server import HubServer
    from torch import Tensor

WEIGHTS = {"q.weight": torch.zeros(8, 8)}
FACTORS = {"q.lora_A.weight": torch.ones(2, 8), "q.lora_B.weight": torch.ones(8, 2)}
DOWN, UP = torch.randn(2, 8), torch.randn(20, 2)
EMBEDDINGS = {
    "embed_tokens.lora_embedding_A": UP.T.contiguous(),
    "embed_tokens.lora_embedding_B": DOWN.T.contiguous(),
}
HEAD = {"lm_head.lora_A.weight": DOWN, "lm_head.lora_B.weight": UP}


def model(
    path: Path, config: dict[str, Any] | None = None, tensors: dict[str, Tensor] = WEIGHTS
) -> str:
    path.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path / "model.safetensors")
    if config is not None:
        (path / "config.json").write_text(json.dumps(config))
    return str(path)


def adapter(path: Path, tensors: dict[str, Tensor] = FACTORS, /, **config: Any) -> str:
    path.mkdir(exist_ok=True)
    named = {f"base_model.model.{name}": tensor for name, tensor in tensors.items()}
    save_file(named, path / "adapter_model.safetensors")
    settings = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, **config}
    (path / "adapter_config.json").write_text(json.dumps(settings))
    return str(path)


# --- options and tensors ------------------------------------------------------------------------


def tied(path: Path) -> str:
    config = {"model_type": "llama", "tie_word_embeddings": True}
    return model(path, config, {**WEIGHTS, "embed_tokens.weight": UP @ DOWN})


def test_an_unknown_option_that_is_switched_on_is_an_error(tmp_path: Path) -> None:
    base = model(tmp_path / "base")
    one = adapter(tmp_path / "one", use_novel=True, novel_rank=4, other=None, off=False)
    with pytest.raises(AlignmentError, match=r"use_novel  m0: unknown option True"):
        warnings(base, one)
    assert len(warnings(base, one, config="warn")) == 2
    assert warnings(base, one, config="ignore") == ()
    (row,) = rows(base, adapter(tmp_path / "two", novel={"a": "b" * 500}))
    assert "novel  m0: unknown option {'a': 'bbb" in row
    assert "bbb...: it may change what" in row
    assert len(row) < 200


def test_an_adapter_of_another_revision_is_a_warning(tmp_path: Path) -> None:
    base = model(tmp_path / "models--org--base" / "snapshots" / ("a1" * 20))
    same = adapter(tmp_path / "same", revision="a1" * 20)
    assert warnings(base, same, adapter(tmp_path / "main", revision="main")) == ()
    (warning,) = warnings(base, adapter(tmp_path / "other", revision="b2" * 20))
    assert warning.startswith("m0: adapter_config.json revision: 'b2b2")


def test_a_missing_module_to_save_is_reported(tmp_path: Path) -> None:
    base = model(tmp_path / "base", tensors={**WEIGHTS, "k.weight": torch.zeros(2, 8)})
    torn = adapter(tmp_path / "torn", modules_to_save=["k"])
    with pytest.raises(AlignmentError, match="modules_to_save  m0: names 'k', but the adapter"):
        warnings(base, torn)
    (warning,) = warnings(base, adapter(tmp_path / "a", modules_to_save=["classifier"]))
    assert "names 'classifier'" in warning
    scored = {**FACTORS, "k.modules_to_save.weight": torch.ones(2, 8)}
    one = adapter(tmp_path / "b", scored, modules_to_save=["classifier", "k"])
    assert warnings(base, one) == ()


def test_a_tied_head_with_the_changes_of_its_embeddings_is_one_matrix(tmp_path: Path) -> None:
    base = tied(tmp_path / "base")
    one = adapter(tmp_path / "one", {**FACTORS, **EMBEDDINGS, **HEAD})
    whole = {"embed_tokens.weight": UP @ DOWN + 1, "lm_head.weight": UP @ DOWN + 1}
    two = adapter(tmp_path / "two", {**FACTORS, **whole})
    assert warnings(base, one, two) == ()
    pool = CheckpointsPool(CheckpointsConfig(base=base, models={"one": one, "two": two}))
    assert "lm_head.weight" not in pool.experts["one"].infos
    merged = pool.experts["one"].tensor("embed_tokens.weight")
    torch.testing.assert_close(merged, 2 * UP @ DOWN)


def test_a_classifier_without_an_output_head_ties_nothing(tmp_path: Path) -> None:
    config = {"architectures": ["BertForSequenceClassification"], "tie_word_embeddings": True}
    tensors = {**WEIGHTS, "embed_tokens.weight": UP @ DOWN}
    one = adapter(tmp_path / "one", {**FACTORS, **EMBEDDINGS})
    assert warnings(model(tmp_path / "classifier", config, tensors), one) == ()
    config["architectures"] = ["BertForMaskedLM"]
    (warning,) = warnings(model(tmp_path / "language-model", config, tensors), one)
    assert "the output head is the same matrix" in warning


@pytest.mark.parametrize("name", ["lm_head.lora_A.weight", "lm_head.lora_B.weight"])
def test_a_tied_head_with_other_changes_is_refused(tmp_path: Path, name: str) -> None:
    changed = {**FACTORS, **EMBEDDINGS, **HEAD, name: HEAD[name] * 1.01}
    one = adapter(tmp_path / "one", changed)
    with pytest.raises(
        CheckpointError, match=r"'lm_head.weight' and 'embed_tokens.weight' in diff"
    ):
        warnings(tied(tmp_path / "base"), one)


@pytest.mark.filterwarnings("ignore")  # PEFT's, about tied matrices
@pytest.mark.parametrize("is_whole", [False, True])
@pytest.mark.parametrize("is_twice", [False, True])
@pytest.mark.parametrize("module", ["embed_tokens", "lm_head"])
def test_an_adapter_of_one_use_of_a_tied_matrix_is_a_warning(
    tmp_path: Path, module: str, *, is_twice: bool, is_whole: bool
) -> None:
    """The warning says what a merge changes, and what PEFT's merge changes."""
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "vocab_size": 20}
    shape = transformers.LlamaConfig(**sizes, num_attention_heads=2, tie_word_embeddings=True)
    transformers.LlamaForCausalLM(shape).save_pretrained(tmp_path / "base")
    file = tmp_path / "base" / "model.safetensors"
    base = load_file(file)
    head, embeddings = "lm_head.weight", "model.embed_tokens.weight"
    if is_twice:
        base[head] = base[embeddings].clone()
        save_file(base, file, metadata={"format": "pt"})
    live = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "base")
    targets = {"modules_to_save": [module]} if is_whole else {}
    targets["target_modules"] = ["q_proj"] if is_whole else [module, "q_proj"]
    trained = peft.get_peft_model(live, peft.LoraConfig(r=2, **targets))
    with torch.no_grad():
        for parameter in trained.parameters():
            if parameter.requires_grad:
                parameter.add_(1.0)
    trained.save_pretrained(tmp_path / "one")
    (warning,) = warnings(str(tmp_path / "base"), str(tmp_path / "one"))
    name, other = (head, embeddings) if module == "lm_head" else (embeddings, head)
    assert f"changes only {name}; the " in warning
    merged = run_fusion(
        algorithm={"name": "task-arithmetic", "scale": 1.0},
        model_pool={"base": str(tmp_path / "base"), "models": [str(tmp_path / "one")]},
        output=None,
    ).weights.state_dict()
    assert merged.keys() == base.keys()
    changed = [key for key in (name, other) if key in base and (merged[key] != base[key]).any()]
    assert changed == ([name] if is_twice else [embeddings])
    assert ("A merge changes both;" in warning) is not is_twice
    live = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "base")
    peft_merge = peft.PeftModel.from_pretrained(live, tmp_path / "one").merge_and_unload()
    theirs = peft_merge.state_dict()
    assert (theirs[name] != base[embeddings]).any()
    is_alone = torch.equal(theirs[other], base[embeddings])
    assert ("merge_and_unload changes this one alone" in warning) is is_alone is is_whole


def test_a_head_that_the_base_neither_stores_nor_ties_is_an_error(tmp_path: Path) -> None:
    tensors = {**WEIGHTS, "embed_tokens.weight": UP @ DOWN}
    base = model(tmp_path / "base", {"architectures": ["LlamaModel"]}, tensors)
    one = adapter(tmp_path / "one", {**FACTORS, **HEAD})
    with pytest.raises(AlignmentError, match=r"changes lm_head.weight, but the base does not"):
        warnings(base, one)


# --- the base that it names ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "named",
    [
        None,
        "",
        "org/base",
        "Base",
        "other/Base-bnb-4bit",
        "gone/../base/",
        "/gone/x",
        "\0",
        "x" * 5000,
    ],
)
def test_an_adapter_of_the_base_or_of_an_unknown_model_fits(tmp_path: Path, named: Any) -> None:
    base = model(tmp_path / "base")
    assert warnings(base, adapter(tmp_path / "a", base_model_name_or_path=named)) == ()


def test_an_adapter_that_names_another_model_by_name_alone_is_a_warning(tmp_path: Path) -> None:
    base = model(tmp_path / "base")
    (warning,) = warnings(base, adapter(tmp_path / "a", base_model_name_or_path="org/other"))
    assert "'org/other'" in warning
    base = model(tmp_path / "base", {"_name_or_path": "org/other"})
    assert warnings(base, adapter(tmp_path / "a", base_model_name_or_path="org/other")) == ()


def test_a_renamed_adapter_is_compared_with_its_base(tmp_path: Path) -> None:
    base = model(tmp_path / "base")
    one = adapter(tmp_path / "a", base_model_name_or_path="org/other")
    renamed = {"base": {"*": "inner.*"}, "m0": {"*": "inner.*"}}
    pool = CheckpointsPool(CheckpointsConfig(base=base, models={"m0": one}, map=renamed))
    (warning,) = pool.aligned(AlignmentPolicy()).warnings
    assert warning.startswith("m0: adapter_config.json base_model_name_or_path: 'org/other'")


def test_an_adapter_of_another_model_on_the_hub_is_an_error(tmp_path: Path, hub: HubServer) -> None:
    model(tmp_path / "base")
    hub.add_directory("org/Llama-3-8B", tmp_path / "base")
    one = adapter(tmp_path / "a", base_model_name_or_path="else/Meta-Llama-3-8B-unsloth-bnb-4bit")
    assert warnings("org/Llama-3-8B", one) == ()
    other = adapter(tmp_path / "b", base_model_name_or_path="org/Llama-3-8B-Instruct")
    assert "Llama-3-8B-Instruct" in rows("org/Llama-3-8B", other)[0]


def test_an_adapter_of_another_directory_is_an_error_unless_it_is_a_copy(tmp_path: Path) -> None:
    base, copy = model(tmp_path / "base"), model(tmp_path / "copy")
    assert warnings(base, adapter(tmp_path / "a", base_model_name_or_path=copy)) == ()
    assert warnings(base, adapter(tmp_path / "a", base_model_name_or_path=base)) == ()
    model(tmp_path / "copy", tensors={name: value + 1 for name, value in WEIGHTS.items()})
    one = adapter(tmp_path / "a", base_model_name_or_path=copy)
    assert "base_model_name_or_path" in rows(base, one)[0]
    assert len(warnings(base, one, config="warn")) == 1


def test_the_base_of_an_adapter_is_not_compared_with_a_live_model(tmp_path: Path) -> None:
    assert warnings(WEIGHTS, adapter(tmp_path, base_model_name_or_path="org/other")) == ()
