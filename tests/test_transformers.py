"""Checkpoints as transformers writes them: merged, loaded with from_pretrained, run."""

from __future__ import annotations

import json
import re
import runpy
from functools import partial
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import torch
import transformers
import yaml
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from fusion_core.cli.app import app
from fusion_core.errors import AlignmentError
from fusion_core.running.run import run_fusion
from fusion_testing.skeleton import Kind, write_plugin

if TYPE_CHECKING:
    from collections.abc import Callable

    from hub_server import HubServer

pytestmark = [pytest.mark.plugins, pytest.mark.filterwarnings("ignore")]

SIZES = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
HEADS = {**SIZES, "num_attention_heads": 2}
TOKENS = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
SUM = {"name": "task-arithmetic", "scale": 0.5}
WORDS = torch.tensor([[3, 1, 4, 1, 5, 9]])
PIXELS = torch.linspace(-1, 1, 3 * 8 * 8).reshape(1, 3, 8, 8)


def llama(**options: Any) -> Any:
    config = {**HEADS, **TOKENS, "vocab_size": 40, **options}
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**config))


def qwen2() -> Any:
    config = {**HEADS, **TOKENS, "num_key_value_heads": 2, "vocab_size": 40}
    return transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**config))


def gpt2(**options: Any) -> Any:
    config = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 16, "vocab_size": 40}
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(**config, **TOKENS, **options))


def t5() -> Any:
    config = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2}
    return transformers.T5ForConditionalGeneration(
        transformers.T5Config(**config, vocab_size=40, decoder_start_token_id=0)
    )


def bert() -> Any:
    return transformers.BertForMaskedLM(transformers.BertConfig(**HEADS, vocab_size=40))


def clip() -> Any:
    text = {**HEADS, **TOKENS, "vocab_size": 40, "max_position_embeddings": 12}
    vision = {**HEADS, "image_size": 8, "patch_size": 4}
    return transformers.CLIPModel(
        transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)
    )


def clip_vision() -> Any:
    return clip().vision_model


KINDS: dict[str, tuple[Callable[[], Any], dict[str, Any]]] = {
    "llama": (llama, {"input_ids": WORDS}),
    "llama-tied": (lambda: llama(tie_word_embeddings=True), {"input_ids": WORDS}),
    "gpt2": (gpt2, {"input_ids": WORDS}),
    "t5": (t5, {"input_ids": WORDS, "decoder_input_ids": WORDS}),
    "bert": (bert, {"input_ids": WORDS}),
    "clip": (clip, {"input_ids": WORDS, "pixel_values": PIXELS}),
    "clip-vision": (clip_vision, {"pixel_values": PIXELS}),
}


def save_model(make: Callable[..., Any], path: Path, seed: int = 0, **options: Any) -> Any:
    torch.manual_seed(seed)
    model = make(**options).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.2)
    model.save_pretrained(path)
    return model


def merge(tmp_path: Path, base: str, *models: str, **sections: Any) -> Path:
    run_fusion(
        {"alignment": sections.pop("alignment", {})},
        algorithm=sections.pop("algorithm", SUM),
        model_pool={
            "base": str(tmp_path / base),
            "models": {f"m{n}": str(tmp_path / model) for n, model in enumerate(models)},
        },
        output={"path": str(tmp_path / "out"), **sections},
    )
    return tmp_path / "out"


def rewrite(directory: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    path = directory / "model.safetensors"
    tensors = change(load_file(path))
    save_file({k: v.clone() for k, v in tensors.items()}, path, metadata={"format": "pt"})


@torch.no_grad()
def outputs(model: Any, inputs: dict[str, Any]) -> list[torch.Tensor]:
    values = model(**inputs).to_tuple()
    return [value for value in values if isinstance(value, torch.Tensor)]


@pytest.mark.sampled(2)
@pytest.mark.parametrize("kind", KINDS)
def test_a_merge_loads_and_computes_what_merging_by_hand_does(tmp_path: Path, kind: str) -> None:
    make, inputs = KINDS[kind]
    base, one, other = (
        save_model(make, tmp_path / name, seed)
        for seed, name in enumerate(("base", "one", "other"))
    )
    out = merge(tmp_path, "base", "one", "other", shard_size=10_000)
    assert len(list(out.glob("*.safetensors"))) > 1
    loaded, report = type(base).from_pretrained(out, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    mine, states = base.state_dict(), (one.state_dict(), other.state_dict())
    by_hand = {
        name: value + 0.5 * sum(state[name] - value for state in states)
        if value.is_floating_point()
        else value
        for name, value in mine.items()
    }
    base.load_state_dict(by_hand)
    expected = outputs(base, inputs)
    assert expected
    for ours, theirs in zip(outputs(loaded.eval(), inputs), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["llama-tied", "gpt2", "t5", "bert"])
def test_tied_weights_stay_tied(tmp_path: Path, kind: str) -> None:
    for seed, name in enumerate(("base", "one")):
        save_model(KINDS[kind][0], tmp_path / name, seed)
    loaded = type(KINDS[kind][0]()).from_pretrained(merge(tmp_path, "base", "one"))
    head, embeddings = loaded.get_output_embeddings(), loaded.get_input_embeddings()
    assert head.weight is embeddings.weight


def with_head(tensors: dict[str, Any]) -> dict[str, Any]:
    return {**tensors, "lm_head.weight": tensors["transformer.wte.weight"]}


@pytest.mark.parametrize("who", ["base", "one", "both"])
def test_a_tied_head_that_only_some_wrote_is_no_difference(tmp_path: Path, who: str) -> None:
    for seed, name in enumerate(("base", "one")):
        save_model(gpt2, tmp_path / name, seed)
    expected = load_file(merge(tmp_path, "base", "one") / "model.safetensors")
    for name in ("base", "one"):
        if who in {name, "both"}:
            rewrite(tmp_path / name, with_head)
    run_fusion(
        algorithm=SUM,
        model_pool={"base": str(tmp_path / "base"), "models": [str(tmp_path / "one")]},
        output=tmp_path / "again",
    )
    again = load_file(tmp_path / "again" / "model.safetensors")
    assert set(again) == set(expected), "the copies are left out"
    for name, values in expected.items():
        assert torch.equal(again[name], values)
    loaded = transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "again")
    assert loaded.lm_head.weight is loaded.transformer.wte.weight


# --- spellings ----------------------------------------------------------------------------------


@pytest.mark.parametrize("who", ["base", "one", "other"])
def test_vision_towers_merge_in_both_spellings(tmp_path: Path, who: str) -> None:
    for seed, name in enumerate(("base", "one", "other")):
        save_model(clip_vision, tmp_path / name, seed)
    expected = load_file(merge(tmp_path, "base", "one", "other") / "model.safetensors")
    prefixed = {f"vision_model.{name}": values for name, values in expected.items()}
    (tmp_path / "out").rename(tmp_path / "expected")
    rewrite(tmp_path / who, lambda old: {f"vision_model.{k}": v for k, v in old.items()})
    merged = load_file(merge(tmp_path, "base", "one", "other") / "model.safetensors")
    wanted = prefixed if who == "base" else expected
    assert merged.keys() == wanted.keys()
    assert all(torch.equal(merged[name], wanted[name]) for name in wanted)
    transformers.CLIPVisionModel.from_pretrained(tmp_path / "out")


def test_a_headless_model_and_one_with_its_head_have_the_same_tensors(tmp_path: Path) -> None:
    base = save_model(gpt2, tmp_path / "base")
    save_model(gpt2, tmp_path / "one", 1)
    expected = load_file(merge(tmp_path, "base", "one") / "model.safetensors")
    (tmp_path / "out").rename(tmp_path / "expected")
    base.transformer.save_pretrained(tmp_path / "base")
    merged = load_file(merge(tmp_path, "base", "one") / "model.safetensors")
    assert {f"transformer.{name}" for name in merged} == expected.keys()
    assert all(torch.equal(values, expected[f"transformer.{k}"]) for k, values in merged.items())


def test_a_tower_against_the_whole_model_lacks_the_rest(tmp_path: Path) -> None:
    save_model(clip, tmp_path / "base")
    save_model(clip_vision, tmp_path / "one", 1)
    with pytest.raises(AlignmentError) as caught:
        merge(tmp_path, "base", "one")
    assert "text_model" in caught.value.message
    assert "vision_model" not in caught.value.message
    out = merge(tmp_path, "base", "one", alignment={"missing": "base"})
    merged, base = (
        load_file(out / "model.safetensors"),
        load_file(tmp_path / "base/model.safetensors"),
    )
    changed = {name for name in base if not torch.equal(merged[name], base[name])}
    assert changed
    assert all(name.startswith("vision_model.") for name in changed)


# --- dtypes, vocabularies, side files -----------------------------------------------------------


def test_experts_in_another_dtype_are_promoted_and_the_bases_is_written(tmp_path: Path) -> None:
    save_model(llama, tmp_path / "base")
    save_model(llama, tmp_path / "one", 1).half().save_pretrained(tmp_path / "one")
    out = merge(tmp_path, "base", "one")
    base, one, merged = (
        load_file(path / "model.safetensors") for path in (tmp_path / "base", tmp_path / "one", out)
    )
    for name, values in merged.items():
        assert values.dtype is torch.float32
        torch.testing.assert_close(values, base[name] + 0.5 * (one[name].float() - base[name]))
    assert transformers.AutoModelForCausalLM.from_pretrained(out).dtype is torch.float32


def test_vocabularies_of_different_sizes_are_refused_by_a_table(tmp_path: Path) -> None:
    save_model(llama, tmp_path / "base")
    save_model(llama, tmp_path / "one", 1, vocab_size=43)
    with pytest.raises(AlignmentError) as caught:
        merge(tmp_path, "base", "one")
    assert caught.value.message.splitlines() == [
        "the models do not fit together: 2 differences",
        "  lm_head.weight  m0: shape [43, 16], the base's is [40, 16]",
        "  model.embed_tokens.weight  m0: shape [43, 16], the base's is [40, 16]",
    ]
    assert "alignment.vocab=pad" in (caught.value.hint or "")


def test_padded_vocabularies_have_every_token_and_load(tmp_path: Path) -> None:
    save_model(llama, tmp_path / "base")
    for seed, (name, size) in enumerate([("one", 43), ("two", 45), ("three", 38)], 1):
        save_model(llama, tmp_path / name, seed, vocab_size=size)
    for name, size in (("base", 40), ("two", 45)):
        words = {f"word {n}": n for n in range(size)}
        (tmp_path / name / "tokenizer.json").write_text(json.dumps({"model": {"vocab": words}}))
    out = merge(tmp_path, "base", "one", "two", "three", alignment={"vocab": "pad"})
    loaded = transformers.AutoModelForCausalLM.from_pretrained(out)
    assert loaded.config.vocab_size == 45
    assert "word 44" in (out / "tokenizer.json").read_text()
    merged = load_file(out / "model.safetensors")
    name = "model.embed_tokens.weight"
    base, one, two, three = (
        load_file(tmp_path / model / "model.safetensors")[name]
        for model in ("base", "one", "two", "three")
    )
    ours = merged[name]
    sums = (one[:38] - base[:38]) + (two[:38] - base[:38]) + (three - base[:38])
    torch.testing.assert_close(ours[:38], base[:38] + 0.5 * sums)
    pair = (one[38:40] - base[38:]) + (two[38:40] - base[38:])
    torch.testing.assert_close(ours[38:40], base[38:] + 0.5 * pair)
    torch.testing.assert_close(ours[40:43], (one[40:] + two[40:43]) / 2)
    torch.testing.assert_close(ours[43:], two[43:])
    assert loaded(WORDS).logits.shape[-1] == 45


def test_a_larger_base_keeps_its_tokens_under_the_policy(tmp_path: Path) -> None:
    save_model(llama, tmp_path / "base", vocab_size=45)
    save_model(llama, tmp_path / "one", 1)
    out = merge(tmp_path, "base", "one", alignment={"vocab": "pad"})
    merged, base = (
        load_file(out / "model.safetensors"),
        load_file(tmp_path / "base/model.safetensors"),
    )
    assert torch.equal(merged["lm_head.weight"][40:], base["lm_head.weight"][40:])
    assert json.loads((out / "config.json").read_text())["vocab_size"] == 45


def test_tokenizer_and_generation_files_come_along_and_code_does_not(tmp_path: Path) -> None:
    save_model(llama, tmp_path / "base")
    save_model(llama, tmp_path / "one", 1)
    backend = transformers.PreTrainedTokenizerFast(
        tokenizer_object=_tokenizer(), unk_token="<unk>", chat_template="{{ messages }}"
    )
    backend.save_pretrained(tmp_path / "base")
    (tmp_path / "base" / "modeling_evil.py").write_text("raise SystemExit")
    config = tmp_path / "base" / "config.json"
    with_code = {**json.loads(config.read_text()), "auto_map": {"AutoModel": "modeling_evil.X"}}
    config.write_text(json.dumps(with_code))
    out = merge(tmp_path, "base", "one")
    assert not list(out.glob("*.py"))
    tokenizer = transformers.AutoTokenizer.from_pretrained(out)
    assert tokenizer.chat_template == "{{ messages }}"
    assert tokenizer("hello")["input_ids"] == [1]
    assert transformers.GenerationConfig.from_pretrained(out).eos_token_id == 1
    assert (
        type(transformers.AutoModelForCausalLM.from_pretrained(out)).__name__ == "LlamaForCausalLM"
    )


def _tokenizer() -> Any:
    from tokenizers import Tokenizer, models

    return Tokenizer(models.WordLevel({"<unk>": 0, "hello": 1}, unk_token="<unk>"))


# --- from the hub -------------------------------------------------------------------------------


def test_models_from_the_hub_merge_like_local_ones(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for seed, name in enumerate(("base", "one")):
        save_model(llama, tmp_path / name, seed)
    expected = load_file(merge(tmp_path, "base", "one") / "model.safetensors")
    base = hub.add_directory("org/base", tmp_path / "base")
    commit = hub.add_directory("org/one", tmp_path / "one", branch="v1")
    hub.add("org/one", {"config.json": b"{}"})
    monkeypatch.chdir(tmp_path)
    pool = {"base": "org/base", "models": ["org/one@v1"]}
    run_fusion(algorithm=SUM, model_pool=pool, output="from-hub")
    merged = load_file(tmp_path / "from-hub" / "model.safetensors")
    assert all(torch.equal(merged[name], values) for name, values in expected.items())
    provenance = json.loads((tmp_path / "from-hub" / "provenance.json").read_text())["predicate"]
    sources = {name: entry["source"] for name, entry in provenance["inputs"].items()}
    assert sources == {"base": f"org/base@{base}", "one": f"org/one@{commit}"}
    transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "from-hub")


def test_a_run_says_how_old_the_revisions_in_the_cache_are(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_model(llama, tmp_path / "model", 0)
    for repo in ("org/base", "org/one"):
        hub.add_directory(repo, tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    recipe = {"algorithm": SUM, "model_pool": {"base": "org/base", "models": ["org/one"]}}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    first, second = (CliRunner().invoke(app, ["run", "recipe.yaml", "-o", o]) for o in ("1", "2"))
    assert "revisions as of" not in first.stderr
    assert "in the cache; revisions as of 20" in second.stderr
    assert "revisions as of 20" in CliRunner().invoke(app, ["check", "recipe.yaml"]).stdout


# --- pools of live models -----------------------------------------------------------------------

PAGE = Path(__file__).parents[1] / "docs" / "how-to" / "write-a-model-pool.md"


def bert_encoder() -> Any:
    return transformers.BertModel(transformers.BertConfig(**HEADS, vocab_size=40))


def clip_text() -> Any:
    config = {**HEADS, **TOKENS, "vocab_size": 40, "max_position_embeddings": 12}
    return transformers.CLIPTextModel(transformers.CLIPTextConfig(**config))


def llama_decoder() -> Any:
    return llama().model


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Return what the how-to defines."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("page"))
        program = "\n".join(re.findall(r"(?ms)^```python\n(.*?)^```", PAGE.read_text()))
        Path("page.py").write_text(program)
        return SimpleNamespace(**runpy.run_path("page.py", run_name="page"))


@pytest.fixture(scope="module")
def generated(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Return the pool's module that `fuse new-plugin` writes."""
    directory = tmp_path_factory.mktemp("generated")
    written = write_plugin("fusion-try-encoders", Kind.MODEL_POOL, directory / "written")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(written / "src")
        return import_module("fusion_try_encoders.pool")


@pytest.mark.sampled(2)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("make", [bert_encoder, clip_text, llama_decoder])
def test_pools_build_what_transformers_loads(
    tmp_path: Path, page: Any, generated: Any, make: Callable[[], Any], dtype: torch.dtype
) -> None:
    """As the how-to shows it, and as generated, with a class of transformers in its place."""
    base, expert = (str(tmp_path / name) for name in ("base", "expert"))
    for seed, directory in enumerate((base, expert)):
        save_model(make, Path(directory), seed)

    class Encoders(generated.TryEncodersPool):  # type: ignore[misc]
        def _construct(self) -> Any:
            return transformers.AutoModel.from_config(transformers.AutoConfig.from_pretrained(base))

    loaded = transformers.AutoModel.from_pretrained(expert, dtype=dtype)
    buffers = {name: (buffer.dtype, buffer.device) for name, buffer in loaded.named_buffers()}
    inputs = {"input_ids": WORDS}
    for pool in (
        page.EncoderPool(page.EncoderConfig(base=base, experts={"a": expert})),
        Encoders(generated.TryEncodersConfig(base=base, models={"a": expert})),
    ):
        built = pool.build(pool.experts["a"], dtype=dtype)
        rebuilt = {name: (buffer.dtype, buffer.device) for name, buffer in built.named_buffers()}
        assert rebuilt == buffers
        for ours, theirs in zip(outputs(built, inputs), outputs(loaded, inputs), strict=True):
            assert torch.equal(ours, theirs)


STACKS: dict[str, tuple[Callable[..., Any], str]] = {
    "llama": (llama, "model.layers"),
    "llama-tied": (partial(llama, tie_word_embeddings=True), "model.layers"),
    "qwen2": (qwen2, "model.layers"),
    "gpt2": (gpt2, "transformer.h"),
}


@pytest.mark.parametrize("kind", STACKS)
def test_a_stack_of_layers_loads_and_computes_what_one_made_by_hand_does(
    tmp_path: Path, kind: str
) -> None:
    make, where = STACKS[kind]
    one, other = (save_model(make, tmp_path / name, seed) for seed, name in enumerate(("m0", "m1")))
    slices = [{"model": "m0", "layers": [0, 2]}, {"model": "m1", "layers": [1, 2]}]
    run_fusion(
        algorithm={"name": "stack", "slices": slices},
        model_pool={"models": {name: str(tmp_path / name) for name in ("m0", "m1")}},
        output=tmp_path / "out",
    )
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    layers = [*one.get_submodule(where), other.get_submodule(where)[1]]
    for number, layer in enumerate(layers):
        (getattr(layer, "self_attn", None) or layer.attn).layer_idx = number
    parent, name = where.split(".")
    setattr(one.get_submodule(parent), name, torch.nn.ModuleList(layers))
    last = "norm" if hasattr(other.get_submodule(parent), "norm") else "ln_f"
    setattr(one.get_submodule(parent), last, getattr(other.get_submodule(parent), last))
    one.config.num_hidden_layers = 3
    if kind == "qwen2":
        one.config.layer_types = ["full_attention"] * 3
    if not one.config.tie_word_embeddings:
        one.lm_head = other.lm_head
    (head, *_), (expected, *_) = (
        outputs(loaded, {"input_ids": WORDS}),
        outputs(one, {"input_ids": WORDS}),
    )
    assert torch.equal(head, expected)
    tied = loaded.get_output_embeddings().weight is loaded.get_input_embeddings().weight
    assert tied == one.config.tie_word_embeddings


#: Families whose layers differ in their window: options, kinds of layers, slices, and their layers.
WINDOWS: dict[str, tuple[dict[str, Any], str, list[list[int]], list[int]]] = {
    "Gemma2": ({}, "sfsf", [[0, 2], [1, 4]], [0, 1, 1, 2, 3]),
    "Gemma3": ({"sliding_window_pattern": 2}, "sfsf", [[0, 2], [1, 4]], [0, 1, 1, 2, 3]),
    "Qwen2": (
        {"use_sliding_window": True, "max_window_layers": 2},
        *("ffss", [[0, 3], [1, 4]], [0, 1, 2, 1, 2, 3]),
    ),
}


@pytest.mark.sampled(2)
@pytest.mark.parametrize("lists", ["with layer_types", "without"])
@pytest.mark.parametrize("family", WINDOWS)
def test_every_layer_of_a_stack_keeps_its_window(tmp_path: Path, family: str, lists: str) -> None:
    options, letters, slices, layers = WINDOWS[family]
    kinds = [{"s": "sliding_attention", "f": "full_attention"}[letter] for letter in letters]
    config_class = getattr(transformers, f"{family}{'Text' * (family == 'Gemma3')}Config")
    sizes = {**HEADS, **TOKENS, "num_key_value_heads": 1, "head_dim": 8, "vocab_size": 40}

    def make(kinds: list[str]) -> Any:
        counts = {"num_hidden_layers": len(kinds), "layer_types": kinds, "sliding_window": 2}
        config = config_class(**{**sizes, **options, **counts})
        return getattr(transformers, f"{family}ForCausalLM")(config).eval()

    torch.manual_seed(0)
    model = make(kinds)
    model.save_pretrained(tmp_path / "m0")
    if lists == "without":  # as in files of older versions
        file = tmp_path / "m0" / "config.json"
        written = json.loads(file.read_text())
        del written["layer_types"]
        file.write_text(json.dumps({**written, **options}))
    run_fusion(
        algorithm={"name": "stack", "slices": [{"model": "m0", "layers": s} for s in slices]},
        model_pool={"models": {"m0": str(tmp_path / "m0")}},
        output=tmp_path / "out",
    )
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    assert loaded.config.layer_types == [kinds[layer] for layer in layers]
    expected = make([kinds[layer] for layer in layers])
    expected.load_state_dict(model.state_dict(), strict=False)
    for layer, origin in zip(expected.model.layers, layers, strict=True):
        layer.load_state_dict(model.model.layers[origin].state_dict())
    (head, *_), (wanted, *_) = (outputs(m, {"input_ids": WORDS}) for m in (loaded, expected))
    assert torch.equal(head, wanted)
