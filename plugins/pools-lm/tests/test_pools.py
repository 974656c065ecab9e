"""Merges that transformers loads, and live models that match it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer
from transformers.core_model_loading import WeightRenaming

from fusion_core import AlignmentPolicy, RunOptions, run_fusion
from fusion_core.commands import read_provenance
from fusion_core.errors import AlignmentError, CheckpointError, OutputError
from fusion_core.weights import CheckpointSource
from fusion_lora.config import AdapterConfig
from fusion_lora.encoder import AdapterEncoder
from fusion_testing import Mean
from pools_lm.architecture import Architecture
from pools_lm.config import LanguageConfig
from pools_lm.language_pool import LanguagePool
from pools_lm.pools import CausalPool, EncoderPool

if TYPE_CHECKING:
    from collections.abc import Callable

    from hub_server import HubServer

Options = dict[str, Any]
Tiny = Any  # conftest.py has it
POOL_OF = {"llama": "causal-lm", "qwen2": "causal-lm", "gpt2": "causal-lm", "t5": "seq2seq-lm"}
TEMPLATE = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}"


def merge(pool: str, options: Options, output: Path, **section: Any) -> Path:
    result = run_fusion(
        algorithm=Mean(),
        model_pool={"name": pool, **options},
        output={"path": str(output), **section},
    )
    assert result.path is not None
    return result.path


def open_pool(options: Options, kind: type[LanguagePool] = CausalPool) -> LanguagePool:
    return kind(LanguageConfig(**options))


def read(directory: str | Path, name: str = "model.safetensors") -> dict[str, torch.Tensor]:
    return dict(load_file(Path(directory) / name))


def warnings_of(options: Options, kind: type[LanguagePool] = CausalPool) -> str:
    return "\n".join(open_pool(options, kind).aligned(AlignmentPolicy()).warnings)


@pytest.mark.parametrize("family", POOL_OF)
def test_a_merge_loads_and_generates(
    tiny: Tiny, family: str, models_of: Callable[..., Options], tmp_path: Path
) -> None:
    merged = merge(POOL_OF[family], models_of(family), tmp_path / "merged")
    kind = tiny.classes[POOL_OF[family]]
    model, loading_info = kind.from_pretrained(merged, output_loading_info=True)
    assert not any(loading_info.values())
    tokenizer = AutoTokenizer.from_pretrained(merged)
    prompt = tokenizer(tiny.texts[0], return_tensors="pt", return_token_type_ids=False)
    output = model.generate(**prompt, max_new_tokens=5, do_sample=False)
    assert output.shape[1] >= 1
    a, b = (read(tmp_path / name) for name in "ab")
    for name, value in read(merged).items():
        torch.testing.assert_close(value, (a[name] + b[name]) / 2)


@pytest.mark.parametrize("pool", ["sequence-classification", "sentence-encoder"])
def test_a_merge_of_encoders_loads(
    tiny: Tiny, pool: str, models_of: Callable[..., Options], tmp_path: Path
) -> None:
    merged = merge(pool, models_of("bert", pool), tmp_path / "merged", dtype="bfloat16")
    model, loading_info = tiny.classes[pool].from_pretrained(merged, output_loading_info=True)
    assert not any(loading_info.values())
    assert model.dtype == torch.bfloat16


@pytest.mark.parametrize("family", [*POOL_OF, "bert"])
def test_a_live_model_matches_transformers(
    tiny: Tiny, family: str, models_of: Callable[..., Options]
) -> None:
    name = POOL_OF.get(family, "sequence-classification")
    options = models_of(family, name)
    kind = next(k for k in LanguagePool.__subclasses__() if k.auto == tiny.classes[name].__name__)
    pool = open_pool(options, kind)
    words = {"input_ids": torch.tensor([[5, 9, 30, 31]])}
    words |= {"decoder_input_ids": torch.tensor([[0, 7]])} if family == "t5" else {}
    with torch.no_grad():
        expected = tiny.classes[name].from_pretrained(options["base"]).eval()(**words).logits
        torch.testing.assert_close(pool.build(pool.reference)(**words).logits, expected)


def test_the_hubs_names_of_gpt2_are_read(
    tiny: Tiny, tmp_path: Path, adapter: Callable[..., str]
) -> None:
    tiny.save(tmp_path / "a", tiny.live("gpt2", 1), tiny.tokenizer())
    tiny.save(tmp_path / "base", tiny.live("gpt2", 0), tiny.tokenizer())
    old = {
        name.removeprefix("transformer."): value for name, value in read(tmp_path / "base").items()
    }
    old |= {f"h.{n}.attn.bias": torch.ones(1, 1, 64, 64) for n in range(2)}
    save_file(
        {name: value.contiguous() for name, value in old.items()},
        tmp_path / "base" / "model.safetensors",
    )
    lora = adapter(tmp_path / "lora", "transformer.h.0.attn.c_proj")
    experts = {"a": str(tmp_path / "a"), "lora": lora}
    pool = open_pool({"base": str(tmp_path / "base"), "models": experts})
    built = pool.aligned(AlignmentPolicy()).build(pool.reference)
    assert torch.equal(built.get_parameter("transformer.wte.weight"), old["wte.weight"])
    assert pool.parameters(built).keys() == old.keys() - {f"h.{n}.attn.bias" for n in range(2)}


def test_old_names_of_a_base_match_current_names_of_experts(
    tiny: Tiny, models_of: Callable[..., Options], tmp_path: Path
) -> None:
    options = models_of("bert", "sequence-classification")
    today = read(merge("sequence-classification", options, tmp_path / "today"))
    path = tmp_path / "base" / "model.safetensors"
    save_file({to_old_name(name): value for name, value in load_file(path).items()}, path)
    merged = merge("sequence-classification", options, tmp_path / "merged")
    assert all(torch.equal(value, today[name]) for name, value in renamed(read(merged)).items())
    _, loading_info = tiny.classes["sequence-classification"].from_pretrained(
        merged, output_loading_info=True
    )
    assert not any(loading_info.values())
    provenance = json.loads((merged / "provenance.json").read_text())["predicate"]
    assert all("model.safetensors" in source["files"] for source in provenance["inputs"].values())


@pytest.mark.sampled(3)
@pytest.mark.parametrize("saved_long_ago", [["base"], ["a"], ["base", "a", "b"]])
@pytest.mark.parametrize(
    "old",
    [
        # transformers stored it until 4.31, and all-MiniLM-L6-v2 has it
        (
            "bert",
            "sentence-encoder",
            EncoderPool,
            "embeddings.position_ids",
            torch.arange(64)[None],
        ),
        # GPT-2's of that time have it, such as DialoGPT
        ("gpt2", "causal-lm", CausalPool, "transformer.h.0.attn.masked_bias", torch.tensor(-1e4)),
    ],
)
def test_a_buffer_that_old_files_contain_is_no_difference(
    tiny: Tiny,
    models_of: Callable[..., Options],
    tmp_path: Path,
    saved_long_ago: list[str],
    old: tuple[str, str, type[LanguagePool], str, torch.Tensor],
) -> None:
    family, pool_name, pool_class, buffer, content = old
    options = models_of(family, pool_name)
    today = read(merge(pool_name, options, tmp_path / "today"))
    for name in saved_long_ago:
        path = tmp_path / name / "model.safetensors"
        save_file({**load_file(path), buffer: content}, path)
    merged = merge(pool_name, options, tmp_path / "merged")
    state = read(merged)
    assert all(torch.equal(state[name], value) for name, value in today.items())
    pool = open_pool(options, pool_class)
    pool.build(pool.aligned(AlignmentPolicy()).experts["a"])
    _, loading_info = tiny.classes[pool_name].from_pretrained(merged, output_loading_info=True)
    assert loading_info.pop("unexpected_keys") <= {buffer}
    assert not any(loading_info.values())


def to_old_name(name: str) -> str:
    return name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("Norm.bias", "Norm.beta")


def renamed(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    names = {to_old_name(name): name for name in map(to_new_name, state)}
    return {names[name]: value for name, value in state.items()}


def to_new_name(name: str) -> str:
    return name.replace("gamma", "weight").replace("beta", "bias")


def test_shards_are_read(tiny: Tiny, models_of: Callable[..., Options], tmp_path: Path) -> None:
    options = models_of("llama")
    tiny.save(
        tmp_path / "shards",
        tiny.live("llama", 1, rows=len(tiny.tokenizer())),
        tiny.tokenizer(),
        max_shard_size="8KB",
    )
    assert not (tmp_path / "shards" / "model.safetensors").exists()
    one = read(merge("causal-lm", options, tmp_path / "one"))
    options["models"]["a"] = str(tmp_path / "shards")
    two = read(merge("causal-lm", options, tmp_path / "two"))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_an_adapter_is_an_expert(
    tiny: Tiny, models_of: Callable[..., Options], tmp_path: Path, adapter: Callable[..., str]
) -> None:
    options = models_of("llama", names=("a",))
    options["models"]["lora"] = adapter(tmp_path / "lora", "model.layers.0.self_attn.q_proj")
    pool = open_pool(options)
    key = "model.layers.0.self_attn.q_proj.weight"
    factors = read(tmp_path / "lora", "adapter_model.safetensors")
    a, b = (
        factors[f"base_model.model.{key.removesuffix('.weight')}.lora_{x}.weight"] for x in "AB"
    )
    built = pool.build(pool.experts["lora"])
    expected = read(options["base"])[key] + 2 * b @ a
    torch.testing.assert_close(built.get_parameter(key).detach(), expected)
    tiny.classes["causal-lm"].from_pretrained(merge("causal-lm", options, tmp_path / "merged"))


def gemma(directory: Path) -> Any:
    """Save a Gemma 3, whose files have other names than the live model, and return it."""
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1}
    attention = {"num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 8}
    config = transformers.Gemma3Config(
        text_config={**sizes, **attention, "vocab_size": 90},
        vision_config={**sizes, "num_attention_heads": 2, "image_size": 16, "patch_size": 8},
    )
    model = transformers.AutoModelForCausalLM.from_config(config)
    model.save_pretrained(directory)
    return model


def test_an_adapters_modules_may_have_the_live_models_names(
    tmp_path: Path, adapter: Callable[..., str]
) -> None:
    model = gemma(tmp_path / "base")
    module = "language_model.layers.0.self_attn.q_proj"
    options = {
        "base": str(tmp_path / "base"),
        "models": {"one": adapter(tmp_path / "one", f"model.{module}")},
    }
    merged = merge("causal-lm", options, tmp_path / "merged")
    loaded = transformers.AutoModelForCausalLM.from_pretrained(merged)
    factors = read(tmp_path / "one", "adapter_model.safetensors")
    a, b = (factors[f"base_model.model.model.{module}.lora_{part}.weight"] for part in "AB")
    expected = dict(model.state_dict())
    expected[f"model.{module}.weight"] = expected[f"model.{module}.weight"] + 2 * b @ a
    torch.testing.assert_close(dict(loaded.state_dict()), expected)
    written = merge("causal-lm", options, tmp_path / "adapter", adapter={})
    assert read(written, "adapter_model.safetensors").keys() == factors.keys()
    pool = open_pool(options)
    decoded = pool.build(AdapterEncoder(AdapterConfig()).decode(written, pool))
    torch.testing.assert_close(dict(decoded.state_dict()), expected)


@pytest.mark.parametrize("names", [("live", "stored"), ("stored", "live")])
def test_adapters_with_both_kinds_of_names_keep_what_they_store_whole(
    names: tuple[str, ...], tmp_path: Path, adapter: Callable[..., str]
) -> None:
    gemma(tmp_path / "base")
    models: dict[str, str] = {}
    for name in names:
        prefix = {"live": "model.language_model", "stored": "language_model.model"}[name]
        models[name] = adapter(tmp_path / name, f"{prefix}.layers.0.self_attn.q_proj")
        file = tmp_path / name / "adapter_model.safetensors"
        whole = f"base_model.model.{prefix}.embed_tokens.weight"
        save_file(load_file(file) | {whole: torch.randn(90, 16)}, file)
    options = {"base": str(tmp_path / "base"), "models": models}
    pool = open_pool(options)
    full = merge("causal-lm", options, tmp_path / "full")
    written = merge("causal-lm", options, tmp_path / "written", adapter={})
    factors = read(written, "adapter_model.safetensors")
    assert [name for name in factors if "embed_tokens" in name] == [
        "base_model.model.model.language_model.embed_tokens.weight"
    ]
    decoded = AdapterEncoder(AdapterConfig()).decode(written, pool)
    for name, values in read(full).items():
        torch.testing.assert_close(decoded.tensor(name).to(values), values)


@pytest.mark.parametrize("infinity", ['{"__float__": "Infinity"}', "Infinity"])
def test_a_configuration_with_infinity_builds(tmp_path: Path, infinity: str) -> None:
    sizes = {"hidden_size": 16, "num_heads": 4, "head_dim": 8, "state_size": 4, "n_groups": 1}
    config = transformers.Mamba2Config(**sizes, num_hidden_layers=1, vocab_size=16)
    transformers.Mamba2ForCausalLM(config).save_pretrained(tmp_path / "base")
    path = tmp_path / "base" / "config.json"
    fields = {**json.loads(path.read_text()), "time_step_limit": "HERE"}
    path.write_text(json.dumps(fields).replace('"HERE"', f"[0.0, {infinity}]"))
    pool = open_pool({"base": str(tmp_path / "base"), "models": {"a": str(tmp_path / "base")}})
    assert pool.build(pool.experts["a"]).config.time_step_limit[1] == float("inf")


def test_current_names_are_not_modernized(
    monkeypatch: pytest.MonkeyPatch, models_of: Callable[..., Options]
) -> None:
    renamings = [WeightRenaming(r"\.norm\.", r".kv_norm.")]  # as of DeepSeek-V4
    monkeypatch.setattr(
        "pools_lm.architecture.get_model_conversion_mapping", lambda model: renamings
    )
    config = Path(models_of("llama")["base"], "config.json").read_text(encoding="utf-8")
    architecture = Architecture("AutoModelForCausalLM", config)
    assert architecture.modernize_name("model.norm.weight") == "model.norm.weight"
    assert architecture.modernize_name("model.cache.norm.weight") == "model.cache.kv_norm.weight"


def test_live_models_are_merged_and_built(tiny: Tiny) -> None:
    models = [tiny.live("llama", seed) for seed in range(3)]
    pool = open_pool({"base": models[0], "models": {"a": models[1], "b": models[2]}})
    built = pool.build(pool.experts["b"])
    words = torch.tensor([[5, 9, 30]])
    with torch.no_grad():
        torch.testing.assert_close(built(words).logits, models[2](words).logits)


FILES = {
    "generation_config.json": '{"eos_token_id": [3, 7], "max_length": 33}',
    "chat_template.jinja": TEMPLATE,
    "additional_chat_templates/tool_use.jinja": "tools" + TEMPLATE,
    "processor_config.json": '{"processor_class": "X"}',
    "preprocessor_config.json": "{}",
    "tokenizer.model": "sentencepiece",
    "tekken.json": "{}",
}


def write(directory: str | Path, files: dict[str, str]) -> None:
    for name, content in files.items():
        path = Path(directory) / name
        path.parent.mkdir(exist_ok=True, parents=True)
        path.write_text(content)


def test_an_output_has_the_files_for_loading_and_serving(
    tiny: Tiny, models_of: Callable[..., Options], tmp_path: Path, adapter: Callable[..., str]
) -> None:
    options = models_of("llama")
    write(options["base"], FILES)
    merged = merge("causal-lm", options, tmp_path / "merged")
    names = {path.relative_to(options["base"]) for path in Path(options["base"]).rglob("*.*")}
    assert all((merged / name).is_file() for name in names)
    assert all((merged / name).read_text() == content for name, content in FILES.items())
    for expert in options["models"].values():
        write(expert, {name: FILES[name] for name in FILES if name.startswith(("gen", "pre"))})
    assert warnings_of(options) == ""
    tokenizer = AutoTokenizer.from_pretrained(merged)
    message = [{"role": "user", "content": "hello"}]
    assert tokenizer.apply_chat_template(message, tokenize=False) == "<|user|>hello"
    assert "tool_use" in tokenizer.chat_template
    model = tiny.classes["causal-lm"].from_pretrained(merged)
    assert model.generation_config.eos_token_id == [3, 7]


def test_a_template_in_the_tokenizer_settings_is_copied(
    models_of: Callable[..., Options], tmp_path: Path
) -> None:
    options = models_of("llama")
    path = Path(options["base"]) / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "chat_template": TEMPLATE}))
    merged = merge("causal-lm", options, tmp_path / "merged")
    assert AutoTokenizer.from_pretrained(merged).chat_template == TEMPLATE


def test_an_output_with_folders_can_be_replaced(
    models_of: Callable[..., Options], tmp_path: Path
) -> None:
    options = models_of("llama")
    write(options["base"], FILES)
    merged = merge("causal-lm", options, tmp_path / "merged")

    def merge_again() -> None:
        run_fusion(
            algorithm=Mean(),
            model_pool={"name": "causal-lm", **options},
            output={"path": str(merged)},
            options=RunOptions(overwrite=True),
        )

    merge_again()
    (merged / "additional_chat_templates" / "mine.txt").write_text("notes")
    with pytest.raises(OutputError, match=r"additional_chat_templates/mine\.txt"):
        merge_again()


def test_files_that_are_not_copied_are_reported(
    models_of: Callable[..., Options], tmp_path: Path
) -> None:
    options = models_of("llama")
    side_files = (
        "modeling_own.py",
        "labels.json",
        "training_args.bin",
        "README.md",
        "onnx/config.json",
    )
    write(options["base"], dict.fromkeys(side_files, "{}"))
    write(options["models"]["b"], {"chat_template.jinja": TEMPLATE})
    template, lost = warnings_of(options).split("\n")
    assert lost == "files of base not copied (code never is): labels.json, modeling_own.py"
    assert template == "b: chat template: the base, and so the output, has none"
    merged = merge("causal-lm", options, tmp_path / "merged")
    assert read_provenance(merged).warnings == [
        template,
        lost,
    ]
    assert not list(merged.glob("*.py"))


def test_a_base_without_a_tokenizer_is_reported(models_of: Callable[..., Options]) -> None:
    options = models_of("llama")
    for path in Path(options["base"]).glob("tokenizer*"):
        path.unlink()
    lost = "tokenizer: the base, and so the output, has none"
    assert warnings_of(options) == f"a: {lost}\nb: {lost}"
    for expert in options["models"].values():
        for path in Path(expert).glob("*token*"):
            path.unlink()
    assert warnings_of(options) == "base has no tokenizer, so the output has none"


def test_a_folder_that_leads_elsewhere_is_refused(
    models_of: Callable[..., Options], tmp_path: Path
) -> None:
    options = models_of("llama")
    write(tmp_path / "secret", {"x.jinja": "private"})
    (Path(options["base"]) / "additional_chat_templates").symlink_to(tmp_path / "secret")
    with pytest.raises(CheckpointError, match="leads out of its directory"):
        open_pool(options).assets()


MODULES = [
    {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
    {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
    {"idx": 2, "name": "2", "path": "2_Dense", "type": "sentence_transformers.models.Dense"},
    {
        "idx": 3,
        "name": "3",
        "path": "3_Normalize",
        "type": "sentence_transformers.models.Normalize",
    },
]
SENTENCES = {
    "modules.json": json.dumps(MODULES),
    "config_sentence_transformers.json": '{"prompts": {"query": "query: "}}',
    "sentence_bert_config.json": '{"max_seq_length": 64, "do_lower_case": false}',
    "1_Pooling/config.json": '{"word_embedding_dimension": 16, "pooling_mode_mean_tokens": true}',
    "2_Dense/config.json": json.dumps(
        {"in_features": 16, "out_features": 8, "bias": True,
         "activation_function": "torch.nn.modules.activation.Tanh"}
    ),
}  # fmt: skip


@pytest.fixture
def encoders(models_of: Callable[..., Options]) -> Options:
    """A SentenceTransformer with a dense layer, and experts of its encoder."""
    options: Options = models_of("bert", "sentence-encoder")
    write(options["base"], SENTENCES)
    dense = {"linear.weight": torch.eye(8, 16), "linear.bias": torch.zeros(8)}
    save_file(dense, Path(options["base"]) / "2_Dense" / "model.safetensors")
    return options


def test_a_sentence_transformer_stays_one(tiny: Tiny, encoders: Options, tmp_path: Path) -> None:
    merged = merge("sentence-encoder", encoders, tmp_path / "merged")
    assert all((merged / name).read_text() == content for name, content in SENTENCES.items())
    assert warnings_of(encoders, EncoderPool) == ""
    library = pytest.importorskip("sentence_transformers")
    whole = library.SentenceTransformer(str(merged), device="cpu")
    vectors = whole.encode(tiny.texts, prompt_name="query", convert_to_tensor=True)
    tokenizer = tiny.tokenizer("words")
    words = tokenizer([f"query: {text}" for text in tiny.texts], padding=True, return_tensors="pt")
    encoder = open_pool(encoders, EncoderPool)
    built = encoder.build(CheckpointSource(merged))
    with torch.no_grad():
        hidden = built(words["input_ids"], attention_mask=words["attention_mask"])[0]
    mask = words["attention_mask"][..., None].float()
    pooled = (hidden * mask).sum(1) / mask.sum(1)
    expected = torch.nn.functional.normalize(torch.tanh(pooled[:, :8]), dim=1)
    torch.testing.assert_close(vectors, expected, rtol=1e-4, atol=1e-5)


def test_modules_that_are_not_merged_are_named(encoders: Options) -> None:
    expert = encoders["models"]["a"]
    write(expert, {**SENTENCES, "modules.json": json.dumps(MODULES[:3])})
    dense = {"linear.weight": torch.ones(8, 16), "linear.bias": torch.zeros(8)}
    save_file(dense, Path(expert) / "2_Dense" / "model.safetensors")
    for path in (encoders["base"], expert):
        equal = Path(path) / "4_Dense" / "model.safetensors"
        equal.parent.mkdir()
        with equal.open("wb") as stream:
            stream.truncate(60_000_000)
    assert warnings_of(encoders, EncoderPool) == (
        "a: modules.json modules: ['Transformer', 'Pooling', 'Dense'], the base's is "
        "['Transformer', 'Pooling', 'Dense', 'Normalize']\n"
        "a: 2_Dense/model.safetensors: differs, and is not merged: the output has the base's"
    )


def test_modules_that_load_code_are_not_copied(encoders: Options, tmp_path: Path) -> None:
    evil = [{**MODULES[0], "type": "somebody/else--custom.Transformer"}, *MODULES[1:]]
    write(encoders["base"], {"modules.json": json.dumps(evil), "custom.py": "raise"})
    assert warnings_of(encoders, EncoderPool).endswith("custom.py, modules.json")
    merged = merge("sentence-encoder", encoders, tmp_path / "merged")
    assert not (merged / "modules.json").exists()


def test_a_configuration_cannot_select_code(models_of: Callable[..., Options]) -> None:
    options = models_of("llama")
    path = Path(options["base"]) / "config.json"
    fields = {
        "auto_map": {"AutoModelForCausalLM": "evil.Model"},
        "_attn_implementation": "evil/evil",
    }
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))
    pool = open_pool(options)
    assert b"evil" not in bytes(pool.assets()["config.json"])
    assert type(pool.build(pool.reference)).__module__.startswith("transformers.")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "never-heard-of"}, "cannot build an AutoModelForCausalLM.*never-heard-of"),
        ({"num_attention_heads": "two"}, "cannot build an AutoModelForCausalLM"),
    ],
)
def test_an_unsupported_configuration_is_refused(
    models_of: Callable[..., Options], change: Options, message: str
) -> None:
    options = models_of("llama")
    for path in Path(options["base"]).parent.glob("*/config.json"):
        path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(CheckpointError, match=message):
        open_pool(options).check_builds()


def test_a_weights_file_without_configuration_is_merged_but_not_built(
    models_of: Callable[..., Options], tmp_path: Path
) -> None:
    options = models_of("llama", names=("a",))
    shutil.copy(f"{options['base']}/model.safetensors", tmp_path / "alone.safetensors")
    pool = open_pool({**options, "base": str(tmp_path / "alone.safetensors")})
    pool.aligned(AlignmentPolicy())
    with pytest.raises(CheckpointError, match=r"missing config\.json next to .*alone\.safetensors"):
        pool.check_builds()


def test_models_come_from_the_hub(
    tiny: Tiny, models_of: Callable[..., Options], encoders: Options, hub: HubServer, tmp_path: Path
) -> None:
    write(encoders["base"], {"modeling_own.py": "raise", "additional_chat_templates/x.jinja": "x"})
    for name in ("base", "a", "b"):
        hub.add_directory(f"org/{name}", tmp_path / name)
    options = {"base": "org/base", "models": {"a": "org/a", "b": "org/b@main"}}
    merged = merge("sentence-encoder", options, tmp_path / "merged")
    expected = {**SENTENCES, "additional_chat_templates/x.jinja": "x"}
    assert all((merged / name).read_text() == content for name, content in expected.items())
    assert (merged / "2_Dense" / "model.safetensors").is_file()
    assert warnings_of(options, EncoderPool).endswith(": modeling_own.py")
    assert not hub.asked("modeling_own.py")
    tiny.classes["sentence-encoder"].from_pretrained(merged)


def test_a_mixture_is_built_from_experts_that_are_stored_one_by_one(tmp_path: Path) -> None:
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "vocab_size": 16}
    config = transformers.MixtralConfig(
        **sizes, num_attention_heads=2, num_key_value_heads=2, num_local_experts=2
    )
    paths = [str(tmp_path / name) for name in ("base", "one")]
    for path in paths:
        transformers.MixtralForCausalLM(config).save_pretrained(path)
    pool = CausalPool(LanguageConfig(base=paths[0], models={"one": paths[1]}))
    pool.check_builds()
    assert pool.base is not None
    assert "model.layers.0.block_sparse_moe.experts.1.w3.weight" in pool.base.infos
    loaded = transformers.AutoModelForCausalLM.from_pretrained(paths[0]).state_dict()
    built = pool.build(pool.base)
    assert all(torch.equal(loaded[name], value) for name, value in built.state_dict().items())
    parameters = pool.parameters(built)
    experts = {name: slots for name, slots in pool.live_layout.slots.items() if name in parameters}
    assert {name.rpartition(".")[2] for name in experts} == {"gate_up_proj", "down_proj"}
    for name, slots in experts.items():
        values = parameters[name].detach().view(-1)
        for slot in slots:
            part = slot.view(values[slot.start : slot.stop])
            assert torch.equal(part, pool.base.tensor(slot.name)), slot.name


def test_a_mixture_that_lacks_an_expert_cannot_be_built(tmp_path: Path) -> None:
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "vocab_size": 16}
    config = transformers.MixtralConfig(
        **sizes, num_attention_heads=2, num_key_value_heads=2, num_local_experts=2
    )
    path = tmp_path / "model"
    transformers.MixtralForCausalLM(config).save_pretrained(path)
    tensors = load_file(path / "model.safetensors")
    del tensors["model.layers.0.block_sparse_moe.experts.1.w3.weight"]
    save_file(tensors, path / "model.safetensors")
    pool = CausalPool(LanguageConfig(base=str(path), models={"one": str(path)}))
    with pytest.raises(CheckpointError, match=r"experts\.1\.w3\.weight' is missing"):
        pool.check_builds()
    with pytest.raises(AlignmentError, match=r"experts\.1\.w3\.weight' is missing"):
        pool.build(pool.reference)
    pool.aligned(AlignmentPolicy())  # merging needs no live model


def test_a_large_tokenizer_is_refused_unread(
    models_of: Callable[..., Options],
) -> None:
    options = models_of("llama")
    with (Path(options["base"]) / "tokenizer.model").open("wb") as stream:
        stream.truncate(6 * 2**30)
    with pytest.raises(CheckpointError, match=r"tokenizer\.model is too large"):
        CausalPool(LanguageConfig(**options))
