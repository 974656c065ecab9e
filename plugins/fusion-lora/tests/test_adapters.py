"""Adapters that fuse writes: PEFT loads them, and their merge has the stated error."""

from __future__ import annotations

import errno
import json
import math
import os
from pathlib import Path
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any

import peft
import pytest
import torch
import transformers
import typer
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from fusion_core import RunOptions, plan, run_fusion
from fusion_core.commands import load_plugins, read_provenance
from fusion_core.errors import FusionError, RecipeError
from fusion_core.weights import StateDictSource
from fusion_lora.command import extract_lora
from fusion_lora.modules import Form, find_module

if TYPE_CHECKING:
    from collections.abc import Mapping

pytestmark = pytest.mark.filterwarnings("ignore")

Tensors = dict[str, torch.Tensor]


def tiny(kind: str) -> transformers.PreTrainedModel:  # noqa: PLR0911 - one per kind
    torch.manual_seed(0)
    sizes = {"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "vocab_size": 40}
    if kind.startswith("gpt2"):
        config = transformers.GPT2Config(
            n_embd=16, n_layer=2, n_head=2, vocab_size=40, bos_token_id=0, eos_token_id=0
        )
        if kind == "gpt2 with classes":  # its head is no Conv1D
            return transformers.GPT2ForSequenceClassification(config)
        return transformers.GPT2LMHeadModel(config)
    if kind == "vit":
        config = transformers.ViTConfig(
            **{**sizes, "image_size": 8, "patch_size": 4}, num_attention_heads=2
        )
        return transformers.ViTForImageClassification(config)
    if kind == "nomic-bert":
        config = transformers.NomicBertConfig(**sizes, num_attention_heads=2, pad_token_id=0)
        return transformers.NomicBertForSequenceClassification(config)
    if kind == "bert":
        config = transformers.BertConfig(**sizes, num_attention_heads=2)
        return transformers.BertForSequenceClassification(config)
    mixture = {**sizes, "num_attention_heads": 2, "num_key_value_heads": 2}
    mixture |= {"num_local_experts": 4, "num_experts_per_tok": 2}
    if kind == "mixtral":
        return transformers.MixtralForCausalLM(transformers.MixtralConfig(**mixture))
    if kind == "gpt-oss":
        config = transformers.GptOssConfig(**mixture, head_dim=12)
        return transformers.GptOssForCausalLM(config)
    if kind == "resnet":
        config = transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1])
        return transformers.ResNetForImageClassification(config)
    if kind == "t5":
        config = transformers.T5Config(d_model=24, d_kv=8, d_ff=40, num_layers=2, vocab_size=40)
        return transformers.T5ForConditionalGeneration(config)
    if kind == "mamba":
        return transformers.MambaForCausalLM(transformers.MambaConfig(**sizes, state_size=4))
    config = transformers.LlamaConfig(**sizes, num_attention_heads=2)
    if kind == "bare":
        return transformers.LlamaModel(config)
    return transformers.LlamaForCausalLM(config)


def fine_tune(path: Path, kind: str) -> None:
    """Save a base, and a model that differs from it in every tensor."""
    model = tiny(kind)
    model.save_pretrained(path / "base")
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) / 50)
    model.save_pretrained(path / "expert")


app = typer.Typer()
app.command()(extract_lora)


def extract(path: Path, *arguments: str, code: int = 0) -> str:
    given = [str(path / "expert"), "--base", str(path / "base"), "-o", str(path / "adapter")]
    result = CliRunner().invoke(app, [*given, "-q", *arguments])
    if isinstance(result.exception, FusionError):  # `main` prints it
        assert result.exception.exit_code == code
        return str(result.exception)
    assert result.exit_code == code == 0, result.output
    return result.output


def load(path: Path) -> Tensors:
    return load_file(path / "model.safetensors")


def merge_with_peft(kind: str, base: Path, adapter: Path, rows: int | None = None) -> Tensors:
    model = type(tiny(kind)).from_pretrained(base)
    if rows is not None:
        model.resize_token_embeddings(rows)
    merged = peft.PeftModel.from_pretrained(model, adapter).merge_and_unload()
    merged.save_pretrained(adapter / "merged")  # under the names of the base's files
    return load(adapter / "merged")


def distance(one: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]) -> float:
    return math.sqrt(
        sum((one[n].double() - other[n].double()).square().sum().item() for n in other)
    )


def stated_error(adapter: Path) -> float:
    error: float = json.loads((adapter / "adapter_report.json").read_text())["relative_error"]
    return error


# --- extraction ---------------------------------------------------------------------------------


@pytest.mark.sampled(4)
@pytest.mark.parametrize(
    ("kind", "arguments", "largest"),
    [
        ("llama", ["--rank", "4"], 1),
        ("llama", ["--rank", "64", "--save-whole", "*norm*"], 1e-6),
        ("llama", ["--energy", "0.7", "--rank-pattern", "*q_proj*=3"], 0.6),
        ("llama", ["--skip", "*embed*", "--skip", "lm_head*", "--dtype", "bf16"], 1),
        ("gpt2", ["--rank", "64", "--save-whole", "*ln_*", "--save-whole", "*.bias"], 1e-6),
        ("gpt2 with classes", ["--rank", "64", "--save-whole", "*ln_*"], 1),
        ("bert", ["--rank", "64", "--save-whole", "*LayerNorm*", "--save-whole", "*.bias"], 1e-6),
        ("resnet", ["--rank", "8", "--only", "*convolution*"], 1),
        # files have other names than the live model
        (
            "vit",
            ["--rank", "64", "--only", "*.layers.*.weight", "--save-whole", "*layernorm*"],
            0.9,
        ),
        # embeddings of other names
        ("t5", ["--rank", "64", "--save-whole", "*norm*"], 1e-6),
        ("mamba", ["--rank", "64", "--only", "*embeddings*"], 1),
        # PEFT needs the bias too, or the running mean; "norm" also ends "input_layernorm"
        ("gpt2", ["--only", "*c_attn.weight", "--save-whole", "*ln_1.weight"], 1),
        ("resnet", ["--rank", "64", "--save-whole", "*.normalization.weight"], 1),
        ("bare", ["--only", "*q_proj*", "--save-whole", "norm.weight"], 1),
        # biases without their weights, and without any factors
        ("gpt2", ["--skip", "*mlp*", "--save-whole", "*.bias"], 1),
        ("bert", ["--only", "*.bias", "--save-whole", "*.bias"], 1),
    ],
)
def test_peft_merges_an_extracted_adapter_with_the_stated_error(
    tmp_path: Path, kind: str, arguments: list[str], largest: float
) -> None:
    fine_tune(tmp_path, kind)
    extract(tmp_path, *arguments)
    base, expert = load(tmp_path / "base"), load(tmp_path / "expert")
    merged = merge_with_peft(kind, tmp_path / "base", tmp_path / "adapter")
    floating = {name: tensor for name, tensor in expert.items() if tensor.is_floating_point()}
    error = distance(merged, floating) / distance(base, floating)
    assert error == pytest.approx(stated_error(tmp_path / "adapter"), rel=1e-4, abs=1e-6)
    assert error < largest
    mine = run_fusion(
        algorithm={"name": "task-arithmetic", "scale": 1.0},
        model_pool={"base": str(tmp_path / "base"), "models": [str(tmp_path / "adapter")]},
        output=None,
    ).weights.state_dict()
    assert distance(merged, {n: mine[n] for n in floating}) <= 1e-6 * distance(base, floating)


@pytest.mark.parametrize(
    ("module", "form"),
    [
        ("gpt_neox.embed_in", Form.EMBEDDING),
        ("text_model.embeddings.token_embedding", Form.EMBEDDING),
        ("transformer.wte", Form.EMBEDDING),
        ("embed_out", Form.LINEAR),
        ("visual.embeddings.proj", Form.LINEAR),
        ("vision.patch_embedding", Form.LINEAR),
        ("embed_dim_proj", Form.LINEAR),
        ("class_embed", Form.LINEAR),  # it has a bias
    ],
)
def test_the_name_of_a_module_shows_an_embedding(module: str, form: Form) -> None:
    tensors = {f"{module}.weight": torch.zeros(4, 3), "class_embed.bias": torch.zeros(4)}
    base = StateDictSource(tensors)
    for is_embedding, expected in ((None, form), (True, Form.EMBEDDING), (False, Form.LINEAR)):
        module_of_tensor = find_module(base, f"{module}.weight", is_embedding=is_embedding)
        assert module_of_tensor is not None
        assert module_of_tensor.form is expected


def test_grown_embeddings_are_stored_whole_or_refused(tmp_path: Path) -> None:
    fine_tune(tmp_path, "llama")
    grown = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "expert")
    grown.resize_token_embeddings(43)
    grown.save_pretrained(tmp_path / "expert")
    output = extract(tmp_path, code=4)
    assert "lm_head.weight has more rows than the base's (2 tensors)" in output
    assert not (tmp_path / "adapter").exists()
    extract(tmp_path, "--save-whole", "*embed_tokens*", "--save-whole", "lm_head*")
    merged = merge_with_peft("llama", tmp_path / "base", tmp_path / "adapter", rows=43)
    expert = load(tmp_path / "expert")
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        assert torch.equal(merged[name], expert[name])


def test_tensors_outside_the_adapter_are_named_and_its_card_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[dict[str, Any]] = []
    manager = type(load_plugins())
    monkeypatch.setattr(manager, "notify", lambda _, hook, **data: told.append({hook: data}))
    fine_tune(tmp_path, "llama")
    (tmp_path / "base" / "README.md").write_text("---\nlicense: mit\n---\n")
    output = extract(tmp_path, "--rank", "64")
    assert told == [{"fusion_output_written": {"path": tmp_path / "adapter"}}]
    provenance = read_provenance(tmp_path / "adapter")
    assert (provenance.command, provenance.cards["base"]) == ("extract-lora", {"licence": "mit"})
    assert "not in the adapter: 5 tensors that change (norms and other vectors)" in output
    report = json.loads((tmp_path / "adapter" / "adapter_report.json").read_text())
    assert report["tensors"]["model.norm.weight"]["relative_error"] == 1


@pytest.mark.parametrize("kind", ["mixtral", "gpt-oss"])
def test_experts_are_adapted_as_one_parameter(tmp_path: Path, kind: str) -> None:
    fine_tune(tmp_path, kind)
    down = {"mixtral": ".w2.", "gpt-oss": "down_proj"}[kind]
    extract(tmp_path, "--rank", "5", "--rank-pattern", f"*{down}*=64", "--save-whole", "*norm*")
    model = type(tiny(kind)).from_pretrained(tmp_path / "base")
    merged = peft.PeftModel.from_pretrained(model, tmp_path / "adapter").merge_and_unload()
    merged.save_pretrained(tmp_path / "peft")  # in the layout of the release
    base, expert, theirs = (load(tmp_path / name) for name in ("base", "expert", "peft"))
    error = distance(theirs, expert) / distance(base, expert)
    assert error == pytest.approx(stated_error(tmp_path / "adapter"), rel=1e-4)
    ours = run_fusion(
        algorithm={"name": "task-arithmetic", "scale": 1.0},
        model_pool={"base": str(tmp_path / "base"), "models": [str(tmp_path / "adapter")]},
        output=None,
    ).weights.state_dict()
    assert distance(ours, theirs) <= 1e-6 * distance(base, expert)
    changed = {n: value for n, value in expert.items() if down in n and "bias" not in n}
    assert distance({n: theirs[n] for n in changed}, changed) < 1e-5


def test_experts_of_a_layer_may_be_in_several_shards(tmp_path: Path) -> None:
    fine_tune(tmp_path, "gpt-oss")
    extract(tmp_path, "--only", "*experts.*_proj")
    whole = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    for name in ("base", "expert"):  # both layers' down_proj lie behind both layers' gate_up_proj
        tensors = load(tmp_path / name)
        (tmp_path / name / "model.safetensors").unlink()
        parts = {"model-1.safetensors": {}, "model-2.safetensors": {}}
        for tensor, values in tensors.items():
            parts[f"model-{1 + ('down_proj' in tensor)}.safetensors"][tensor] = values
        for file, part in parts.items():
            save_file(part, tmp_path / name / file)
        index = {"weight_map": {tensor: file for file, part in parts.items() for tensor in part}}
        (tmp_path / name / "model.safetensors.index.json").write_text(json.dumps(index))
    extract(tmp_path, "--only", "*experts.*_proj", "--overwrite")
    sharded = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert sharded.keys() == whole.keys()
    assert all(torch.equal(sharded[key], values) for key, values in whole.items())


def test_tokens_and_tables_of_three_dimensions_are_not_experts(tmp_path: Path) -> None:
    fine_tune(tmp_path, "vit")
    extract(tmp_path, "--rank", "4")
    report = (tmp_path / "adapter" / "adapter_report.json").read_text()
    assert "cls_token" in report


def test_experts_without_all_parts_are_refused(tmp_path: Path) -> None:
    """A mixture without gates has no `gate_up_proj` that PEFT could adapt."""
    for name, value in (("base", 0.0), ("expert", 1.0)):
        (tmp_path / name).mkdir()
        module, parts = "model.layers.0.mlp.experts.0", ("up_proj", "down_proj")
        tensors = {f"{module}.{part}.weight": torch.full((4, 4), value) for part in parts}
        save_file(tensors, tmp_path / name / "model.safetensors")
    output = extract(tmp_path, code=2)
    assert "experts.0.up_proj.weight and 0 other tensors" in output
    assert "--skip 'model.layers.*.mlp.experts.*.up_proj.weight'" in output


def test_a_full_disk_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pwrite = os.pwrite

    def fail(file: int, data: memoryview, offset: int) -> int:
        if Path(f"/proc/self/fd/{file}").readlink().name == "factors":
            raise OSError(errno.ENOSPC, "No space left on device")
        return pwrite(file, data, offset)

    fine_tune(tmp_path, "llama")
    monkeypatch.setattr(os, "pwrite", fail)
    assert "No space left" in extract(tmp_path, code=6)


def test_blocked_plugins_are_not_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocked: list[frozenset[str]] = []

    def spy(block: frozenset[str]) -> object:
        blocked.append(block)
        return load_plugins(block)

    fine_tune(tmp_path, "llama")
    for module in ("pair", "writing"):
        monkeypatch.setattr(f"fusion_lora.{module}.load_plugins", spy)
    models = [str(tmp_path / "expert"), "--base", str(tmp_path / "base")]
    command = [*models, "-o", str(tmp_path / "out"), "-q"]
    result = CliRunner().invoke(app, command, obj=frozenset({"fusion-ties"}))
    assert result.exit_code == 0, result.output
    assert blocked == [{"fusion-ties"}] * 2


def test_a_module_with_factors_cannot_be_stored_whole(tmp_path: Path) -> None:
    fine_tune(tmp_path, "gpt-oss")
    output = extract(tmp_path, "--save-whole", "*router.bias", code=2)
    assert "model.layers.0.mlp.router cannot be stored whole" in output
    assert not (tmp_path / "adapter").exists()


@pytest.mark.parametrize(
    ("arguments", "says", "code"),
    [
        (["--rank", "4", "--energy", "0.9"], "--rank conflicts with --energy", 2),
        (["--energy", "1.5"], "--energy: expected a share above 0, at most 1, got 1.5", 2),
        (["--rank-pattern", "*q_proj*"], "--rank-pattern: expected PATTERN=R", 2),
        (["--rank-pattern", "*nothing*=4"], "--rank-pattern: no tensor matches '*nothing*'", 2),
        (["--only", "q_proj"], "Did you mean '*q_proj*'?", 2),
        (["--dtype", "int8"], "--dtype", 2),
    ],
)
def test_mistakes_leave_nothing_behind(
    tmp_path: Path, arguments: list[str], says: str, code: int
) -> None:
    fine_tune(tmp_path, "llama")
    assert says in extract(tmp_path, *arguments, code=code)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "expert"]


# --- merges that stay adapters ------------------------------------------------------------------


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Save a base with three adapters of different ranks, modules and scales."""
    path = tmp_path_factory.mktemp("adapters")
    tiny("llama").save_pretrained(path / "base")
    options: list[dict[str, Any]] = [
        {"r": 4, "target_modules": ["q_proj", "down_proj"]},
        {"r": 2, "target_modules": ["q_proj", "embed_tokens"], "use_rslora": True},
        {"r": 6, "target_modules": ["q_proj"], "modules_to_save": ["lm_head", "norm"]},
    ]
    for number, given in enumerate(options):
        torch.manual_seed(number)
        model = peft.get_peft_model(tiny("llama"), peft.LoraConfig(lora_alpha=5, **given))
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.add_(torch.randn_like(parameter) / 20)
        model.save_pretrained(path / str(number))
    return path


def recipe(path: Path, algorithm: Any) -> dict[str, Any]:
    models = [str(path / name) for name in "012"]
    return {"algorithm": algorithm, "model_pool": {"base": str(path / "base"), "models": models}}


@pytest.mark.sampled(2)
@pytest.mark.parametrize(
    ("algorithm", "form", "largest"),
    [
        ({"name": "task-arithmetic", "scale": 0.7}, {}, 1e-6),
        ("simple-average", True, 1e-6),
        ({"name": "weighted-average", "weights": [0.2, 0.5, 0.3]}, None, 1e-6),
        ({"name": "task-arithmetic", "only": "*q_proj*"}, {}, 1e-6),
        ({"name": "task-arithmetic"}, 3, 1),
        ({"name": "task-arithmetic"}, {"rank": 64, "dtype": "bf16"}, 0.01),
        ("ties", {}, 1),
        ([{"name": "drop"}, {"name": "task-arithmetic"}], {"rank": 24}, 1e-5),
    ],
)
def test_a_merge_of_adapters_stays_an_adapter(
    tmp_path: Path, adapters: Path, algorithm: Any, form: Any, largest: float
) -> None:
    run = recipe(adapters, algorithm)
    dense = run_fusion(run, output=None).weights.state_dict()
    result = run_fusion({**run, "output": {"path": str(tmp_path / "out"), "adapter": form}})
    base = load(adapters / "base")
    merged = merge_with_peft("llama", adapters / "base", tmp_path / "out")
    error = distance(merged, dense) / distance(base, dense)
    assert error == pytest.approx(stated_error(tmp_path / "out"), rel=1e-3, abs=1e-6)
    assert error < largest
    assert f"{stated_error(tmp_path / 'out'):.3g}" in result.summary[0]
    read_back = result.weights.state_dict()  # for the evaluation
    assert distance(read_back, merged | {}) <= 1e-6 * distance(base, dense)
    provenance = json.loads((tmp_path / "out" / "provenance.json").read_text())["predicate"]
    tensors = json.dumps(provenance)
    assert '"relative_error"' in tensors


def test_trained_biases_and_unusual_embeddings_stay_an_adapter(tmp_path: Path) -> None:
    """The experts' factors say that `scores` is an embedding and `embed_mix` a linear layer."""

    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.scores = torch.nn.Embedding(12, 8)
            self.embed_mix = torch.nn.Linear(8, 6, bias=False)
            self.norm = torch.nn.LayerNorm(6)
            self.config = {"model_type": "custom"}

    (tmp_path / "base").mkdir()
    save_file(Model().state_dict(), tmp_path / "base" / "model.safetensors")
    options = {"target_modules": ["scores", "embed_mix"], "bias": "all"}
    model = peft.get_peft_model(Model(), peft.LoraConfig(r=2, init_lora_weights=False, **options))
    merge_trained(model, tmp_path)
    expected, merged = (
        peft.PeftModel.from_pretrained(Model(), tmp_path / name).merge_and_unload().state_dict()
        for name in ("trained", "out")
    )
    assert distance(Model().state_dict(), expected) > 1
    assert distance(merged, expected) < 1e-5


def merge_trained(model: Any, path: Path) -> None:
    """Save an adapter of `base` with random changes as `trained`, and its merge as `out`."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) / 20)
    model.save_pretrained(path / "trained")
    run_fusion(
        algorithm={"name": "task-arithmetic", "scale": 1.0},
        model_pool={"base": str(path / "base"), "models": [str(path / "trained")]},
        output={"path": str(path / "out"), "adapter": {}},
    )


@pytest.mark.parametrize(
    "options", [{"target_modules": ["lm_head"]}, {"modules_to_save": ["lm_head"]}]
)
def test_a_head_tied_to_embeddings_stays_the_head(tmp_path: Path, options: dict[str, Any]) -> None:
    live = tiny("llama")
    live.config.tie_word_embeddings = True
    live.tie_weights()
    live.save_pretrained(tmp_path / "base")
    config = peft.LoraConfig(r=2, **{"target_modules": ["q_proj"], **options})
    merge_trained(peft.get_peft_model(live, config), tmp_path)
    trained, out = (
        load_file(tmp_path / name / "adapter_model.safetensors") for name in ("trained", "out")
    )
    assert out.keys() <= trained.keys()
    assert any("lm_head" in name for name in out)
    merged, expected = (
        merge_with_peft("llama", tmp_path / "base", tmp_path / name) for name in ("out", "trained")
    )
    assert distance(merged, expected) < 1e-5


def test_a_merge_of_adapters_has_the_names_of_the_live_model(tmp_path: Path) -> None:
    tiny("vit").save_pretrained(tmp_path / "base")
    config = peft.LoraConfig(r=2, target_modules=["q_proj", "fc1"], modules_to_save=["classifier"])
    merge_trained(peft.get_peft_model(tiny("vit"), config), tmp_path)
    trained, out = (
        load_file(tmp_path / name / "adapter_model.safetensors") for name in ("trained", "out")
    )
    assert out.keys() == trained.keys()
    merged, expected = (
        merge_with_peft("vit", tmp_path / "base", tmp_path / name) for name in ("out", "trained")
    )
    assert distance(merged, expected) < 1e-5 < distance(load(tmp_path / "base"), expected)


def test_tensors_that_a_live_model_divides_are_no_modules(tmp_path: Path) -> None:
    fine_tune(tmp_path, "nomic-bert")
    assert "attn.Wqkv" in extract(tmp_path, code=2)
    assert not (tmp_path / "adapter").exists()
    for name in ("base", "expert"):
        model = type(tiny("nomic-bert")).from_pretrained(tmp_path / name)
        model.save_pretrained(tmp_path / name, save_original_format=False)
    extract(tmp_path, "--rank", "64", "--save-whole", "*norm*")
    assert stated_error(tmp_path / "adapter") < 0.5
    merged = merge_with_peft("nomic-bert", tmp_path / "base", tmp_path / "adapter")
    expert = load(tmp_path / "expert")
    assert distance(merged, expert) < 0.5 * distance(load(tmp_path / "base"), expert)


@pytest.mark.parametrize("rank", [None, 3])
def test_an_average_of_a_run_of_adapters_stays_an_adapter(tmp_path: Path, rank: int | None) -> None:
    tiny("llama").save_pretrained(tmp_path / "base")
    config = peft.LoraConfig(r=2, lora_alpha=6, target_modules=["q_proj", "down_proj"])
    model = peft.get_peft_model(tiny("llama"), config)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for step in (10, 20, 30):
        with torch.no_grad():
            for parameter in trained:
                parameter.add_(torch.randn_like(parameter) / 20)
        model.save_pretrained(tmp_path / "run" / f"checkpoint-{step}")
    command = ["average", str(tmp_path / "run"), "--base", str(tmp_path / "base"), "-q"]
    form = "output.adapter={}" if rank is None else f"output.adapter={rank}"
    fuse = resolve_name("fusion_core.cli.app:app")
    for name, flags in (("full", []), ("adapter", ["--set", form])):
        flags += ["--schedule", "linear", "-o", str(tmp_path / name)]
        result = CliRunner().invoke(fuse, [*command, *flags])
        assert result.exit_code == 0, result.output
    content = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert content["target_modules"] == ["down_proj", "q_proj"]  # nothing else was trained
    assert content["r"] == (rank or 3 * 2)
    merged = merge_with_peft("llama", tmp_path / "base", tmp_path / "adapter")
    dense, base = load(tmp_path / "full"), load(tmp_path / "base")
    error = distance(merged, dense) / distance(base, dense)
    assert error == pytest.approx(stated_error(tmp_path / "adapter"), rel=1e-3, abs=1e-6)
    assert error < (1e-6 if rank is None else 1)


def test_joined_factors_take_no_more_rank_than_needed(tmp_path: Path, adapters: Path) -> None:
    output = {"path": str(tmp_path / "out"), "adapter": {}, "shard_size": "1kB"}  # PEFT: one file
    run_fusion({**recipe(adapters, "task-arithmetic"), "output": output})
    factors = load_file(tmp_path / "out" / "adapter_model.safetensors")
    sizes = {name: tensor.shape[0] for name, tensor in factors.items() if "lora_A" in name}
    assert {size for name, size in sizes.items() if "q_proj" in name} == {4 + 2 + 6}
    assert {size for name, size in sizes.items() if "down_proj" in name} == {4}


@pytest.mark.parametrize(
    ("output", "says"),
    [
        ({"adapter": {"rnk": 3}}, "output.adapter.rnk: unknown option; did you mean rank?"),
        ({"adaptr": {}}, "output.adaptr: unknown option; did you mean adapter?"),
        ({"adapter": {"rank": 0}}, "output.adapter.rank"),
        ({"adapter": {}, "path": None}, "output.adapter needs a directory to write"),
    ],
)
def test_mistakes_in_the_section_output_are_named(
    tmp_path: Path, adapters: Path, output: dict[str, Any], says: str
) -> None:
    section = {"path": str(tmp_path / "out"), **output}
    with pytest.raises(RecipeError, match=says.replace("?", r"\?")):
        run_fusion({**recipe(adapters, "task-arithmetic"), "output": section})
    assert not list(tmp_path.iterdir())


def test_full_experts_need_a_rank(tmp_path: Path) -> None:
    fine_tune(tmp_path, "llama")
    run = {
        "algorithm": "task-arithmetic",
        "model_pool": {"base": str(tmp_path / "base"), "models": [str(tmp_path / "expert")]},
    }
    output = {"path": str(tmp_path / "out"), "adapter": {}}
    with pytest.raises(RecipeError, match=r"output.adapter.rank: required, because expert is a f"):
        plan({**run, "output": output}, RunOptions())
    run_fusion({**run, "output": {**output, "adapter": 64}})
    merged = merge_with_peft("llama", tmp_path / "base", tmp_path / "out")
    dense = run_fusion(run, output=None).weights.state_dict()
    assert distance(merged, dense) < 1e-5 * distance(load(tmp_path / "base"), dense)


@pytest.mark.parametrize(
    "algorithm",
    [
        {"name": "stack", "slices": [{"model": "expert", "layers": [0, 2]}] * 2},
        {"name": "moe", "gate": "random"},
    ],
)
def test_a_merge_with_tensors_of_its_own_is_no_adapter(
    algorithm: dict[str, Any], tmp_path: Path
) -> None:
    fine_tune(tmp_path, "llama")
    models = {name: str(tmp_path / "expert") for name in ("expert", "other")}
    run = {
        "algorithm": algorithm,
        "model_pool": {"base": str(tmp_path / "base"), "models": models},
        "output": {"path": str(tmp_path / "out"), "adapter": {"rank": 2}},
    }
    with pytest.raises(
        RecipeError, match=r"output\.adapter: an adapter changes tensors of its base"
    ):
        run_fusion(run)
    assert not (tmp_path / "out").exists()
