"""Rows by token, compared with a dense computation on what transformers reads."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import AutoTokenizer, Gemma3nTextConfig, PreTrainedTokenizerFast

from fusion_core import AlignmentPolicy, run_fusion
from fusion_core.errors import CheckpointError, RecipeError
from fusion_core.weights import Cut
from fusion_testing import Mean
from pools_lm.config import LanguageConfig
from pools_lm.confined import worker
from pools_lm.pools import CausalPool, ClassificationPool, Seq2SeqPool
from pools_lm.tokenizer_files import replace_tokenizer

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from pools_lm.language_pool import LanguagePool

Options = dict[str, Any]
Tiny = Any  # conftest.py has it
State = "Mapping[str, torch.Tensor]"
KINDS = {
    "causal-lm": CausalPool,
    "seq2seq-lm": Seq2SeqPool,
    "sequence-classification": ClassificationPool,
}
FAMILIES = {"llama": "causal-lm", "qwen2": "causal-lm", "gpt2": "causal-lm", "t5": "seq2seq-lm",
            "bert": "sequence-classification", "neox": "causal-lm"}  # fmt: skip
#: the tensors with one row per token, by family
TOKENS = {
    "llama": ["model.embed_tokens.weight", "lm_head.weight"],
    "qwen2": ["model.embed_tokens.weight"],
    "gpt2": ["transformer.wte.weight"],
    "t5": ["shared.weight"],
    "bert": ["bert.embeddings.word_embeddings.weight"],
}


def change_tokenizer(
    tokenizer: PreTrainedTokenizerFast, seed: int | None, *added: str, lost: str = ""
) -> Any:
    """Return a tokenizer with permuted ids, added tokens, and one renamed token."""
    data = json.loads(tokenizer.backend_tokenizer.to_str())
    model = data["model"]
    if seed is not None:
        order = torch.randperm(
            len(tokenizer), generator=torch.Generator().manual_seed(seed)
        ).tolist()
        model["vocab"] = {token: order[number] for token, number in model["vocab"].items()}
        for token in data["added_tokens"]:
            token["id"] = order[token["id"]]
        data["post_processor"] = None
    if lost:
        model["vocab"]["new" + lost] = model["vocab"].pop(lost)
        model["merges"] = [pair for pair in model["merges"] if lost not in {*pair, "".join(pair)}]
    new_tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(data)),
        **{
            role: str(getattr(tokenizer, role))
            for role in ("unk_token", "bos_token", "eos_token", "pad_token")
        },
    )
    new_tokenizer.add_tokens(list(added), special_tokens=True)
    return new_tokenizer


@pytest.fixture
def several(tiny: Tiny, tmp_path: Path) -> Callable[..., Options]:
    """Save models with their tokenizer tokenizers; return a pool's options."""

    def make(family: str, tokenizers: Mapping[str, Any], **options: Any) -> Options:
        paths = {}
        for seed, (name, tokenizer) in enumerate(tokenizers.items()):
            rows = options.get("rows", {}).get(name, len(tokenizer))
            model = tiny.live(family, seed, pool=FAMILIES[family], rows=rows)
            paths[name] = tiny.save(tmp_path / name, model, tokenizer)
        base = {"base": paths.pop("base")} if "base" in paths else {}
        return {**base, "models": paths}

    return make


def kind_of(tiny: Tiny, family: str) -> str:
    return {"t5": "pieces", "bert": "words"}.get(family, "bytes")


def open_pool(family: str, options: Options, **more: Any) -> LanguagePool:
    return KINDS[FAMILIES[family]](LanguageConfig(**options, **more))


def vocabulary(directory: str | Path) -> dict[str, int]:
    return dict(AutoTokenizer.from_pretrained(directory).get_vocab())


def weights(directory: str | Path) -> dict[str, torch.Tensor]:
    return dict(load_file(Path(directory) / "model.safetensors"))


def dense(
    options: Options, tensor: str, numbers: Mapping[str, int], policy: str
) -> dict[str, dict[str, torch.Tensor]]:
    """Return each model's row of each token: its tokenizer, the base's, or the policy's."""
    paths = {**({"base": options["base"]} if "base" in options else {}), **options["models"]}
    rows = {name: weights(path)[tensor] for name, path in paths.items()}
    known = {name: vocabulary(path) for name, path in paths.items()}
    rows_by_token = {
        name: {token: rows[name][n] for token, n in known[name].items() if n < len(rows[name])}
        for name in paths
    }

    def new(name: str, token: str) -> torch.Tensor:
        having = [model[token].double() for model in rows_by_token.values() if token in model]
        if policy == "expert" and having:
            return torch.stack(having).mean(0)
        if policy == "subwords":
            splitter = Tokenizer.from_file(f"{paths[name]}/tokenizer.json")
            if isinstance(splitter.pre_tokenizer, pre_tokenizers.Metaspace):
                splitter.pre_tokenizer.prepend_scheme = "never"  # a token may continue a word
            cut = splitter.encode(text_of(token), add_special_tokens=False).ids
            if cut:
                return rows[name][cut].double().mean(0)
        return torch.zeros(rows[name].shape[1], dtype=torch.float64)

    def row(name: str, token: str) -> torch.Tensor:
        for model in (name, "base"):
            if token in rows_by_token.get(model, {}):
                return rows_by_token[model][token].double()
        return new(name, token)

    return {name: {token: row(name, token) for token in numbers} for name in paths}


def text_of(token: str) -> str:
    return token.replace("Ġ", " ").replace("▁", " ").removeprefix("##")


def check(
    pool: LanguagePool, options: Options, tensor: str, numbers: Mapping[str, int], policy: str
) -> None:
    for name, expected in dense(options, tensor, numbers, policy).items():
        actual = pool.by_name[name].tensor(tensor)
        # A row is at most the mean of eight others, whose sum and quotient are rounded in fp32 by
        # 6e-8 each: together less than 1e-6 of the largest entry, where it cancels, too.
        bound = 1e-6 * max(float(row.abs().max()) for row in expected.values())
        for token, row in expected.items():
            torch.testing.assert_close(actual[numbers[token]].double(), row, rtol=0, atol=bound)


@pytest.mark.sampled(3)
@pytest.mark.parametrize("policy", ["expert", "subwords", "zero"])
@pytest.mark.parametrize("family", TOKENS)
def test_rows_of_a_union_mean_the_same_token(
    tiny: Tiny, family: str, policy: str, several: Callable[..., Options]
) -> None:
    tokenizer = tiny.tokenizer(kind_of(tiny, family))
    seed = None if family == "t5" else 3
    tokenizers = {
        "base": tokenizer,
        "a": change_tokenizer(tokenizer, seed, "<|user|>", "forest"),
        "b": change_tokenizer(tokenizer, None, "<|user|>", "<|b|>"),
    }
    options = several(family, tokenizers)
    pool = open_pool(family, options, tokenizer="union", new_rows=policy)
    numbers = {**vocabulary(options["base"])}
    for token in ("<|user|>", "forest", "<|b|>"):
        numbers[token] = len(numbers)
    for tensor in TOKENS[family]:
        assert pool.base is not None
        assert pool.base.infos[tensor].shape[0] == len(numbers)
        check(pool, options, tensor, numbers, policy)


def test_all_models_get_the_bases_tokens_by_default(
    tiny: Tiny, several: Callable[..., Options]
) -> None:
    tokenizer = tiny.tokenizer()
    tokenizers = {
        "base": tokenizer,
        "a": change_tokenizer(tokenizer, 5, "<|user|>"),
        "b": change_tokenizer(tokenizer, 6, lost="the"),
    }
    options = several("llama", tokenizers)
    pool = open_pool("llama", options).aligned(AlignmentPolicy())
    check(pool, options, "lm_head.weight", vocabulary(options["base"]), "expert")
    moved, lost = pool.warnings
    assert moved.startswith("tokenizer a: tokens ")
    assert moved.endswith(" renumbered, 1 left out")
    assert lost.endswith("1 left out, 1 unknown to it")


def test_a_chosen_experts_files_are_written(
    tiny: Tiny, several: Callable[..., Options], tmp_path: Path
) -> None:
    tokenizer = tiny.tokenizer()
    theirs = change_tokenizer(tokenizer, 5, "<|user|>")
    options = several("llama", {"base": tokenizer, "a": theirs}, rows={"a": 96})
    folder = Path(options["models"]["a"])
    (folder / "chat_template.jinja").write_text("theirs")
    (folder / "generation_config.json").write_text('{"eos_token_id": 91}')
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "eos_token_id": 91}))
    merged = merge("causal-lm", {**options, "tokenizer": "a"}, tmp_path / "merged")
    files = ("tokenizer.json", "chat_template.jinja", "generation_config.json")
    assert all((merged / name).read_bytes() == (folder / name).read_bytes() for name in files)
    written = json.loads((merged / "config.json").read_text())
    assert (written["vocab_size"], written["eos_token_id"]) == (96, 91)
    pool = open_pool("llama", options, tokenizer="a")
    check(pool, options, "lm_head.weight", vocabulary(folder), "expert")
    unused = weights(folder)["lm_head.weight"][len(theirs) :]
    assert pool.base is not None
    assert torch.equal(pool.base.tensor("lm_head.weight")[len(theirs) :], unused)


def test_token_ids_in_parts_of_a_configuration_follow_the_tokenizer() -> None:
    base = {
        "image_token_index": 31,
        "text_config": {"eos_token_id": 2, "bad_token_ids": [5], "hidden_size": 8},
        "vision_config": {"pad_token_id": 1},
    }
    other = {"image_token_index": 3, "text_config": {"eos_token_id": [7, 9], "hidden_size": 16}}
    files = [{"config.json": json.dumps(config).encode()} for config in (base, other)]
    written = replace_tokenizer(*files)["config.json"]
    assert isinstance(written, bytes)
    assert json.loads(written) == {
        "image_token_index": 3,
        "text_config": {"eos_token_id": [7, 9], "hidden_size": 8},
        "vision_config": {"pad_token_id": 1},
    }


def test_tables_of_inputs_per_layer_follow_the_tokens(tiny: Tiny, tmp_path: Path) -> None:
    tokenizer = tiny.tokenizer()
    tokenizers = {"base": tokenizer, "a": change_tokenizer(tokenizer, 5)}
    rows = len(tokenizer)
    paths = {}
    for name, model_tokenizer in tokenizers.items():
        config = Gemma3nTextConfig(
            vocab_size=rows,
            vocab_size_per_layer_input=rows,
            num_hidden_layers=2,
            hidden_size=16,
            hidden_size_per_layer_input=4,
            intermediate_size=24,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=8,
            num_kv_shared_layers=0,
            laurel_rank=4,
            altup_num_inputs=2,
            activation_sparsity_pattern=[0.0, 0.0],
            layer_types=["full_attention"] * 2,
        )
        model = tiny.classes["causal-lm"].from_config(config, dtype=torch.float32)
        paths[name] = tiny.save(tmp_path / name, model, model_tokenizer)
    options = {"base": paths["base"], "models": {"a": paths["a"]}}
    pool = open_pool("llama", options)
    tensor = "model.embed_tokens_per_layer.weight"
    check(pool, options, tensor, vocabulary(paths["base"]), "expert")
    merged = merge("causal-lm", {**options, "pad_to_multiple_of": 64}, tmp_path / "merged")
    _, loading_info = tiny.classes["causal-lm"].from_pretrained(merged, output_loading_info=True)
    assert not any(loading_info.values())


def merge(pool: str, options: Options, output: Path) -> Path:
    result = run_fusion(
        algorithm=Mean(), model_pool={"name": pool, **options}, output={"path": str(output)}
    )
    assert result.path is not None
    return result.path


@pytest.mark.parametrize("step", [None, 64])
@pytest.mark.parametrize("family", ["llama", "qwen2", "gpt2", "t5"])
def test_a_union_loads_and_generates(
    tiny: Tiny, family: str, step: int | None, several: Callable[..., Options], tmp_path: Path
) -> None:
    tokenizer = tiny.tokenizer(kind_of(tiny, family))
    seed = None if family == "t5" else 3
    options = several(
        family,
        {
            "base": tokenizer,
            "a": change_tokenizer(tokenizer, seed, "<|user|>"),
            "b": change_tokenizer(tokenizer, None, "<|b|>"),
        },
    )
    more = {"tokenizer": "union", "pad_to_multiple_of": step}
    merged = merge(FAMILIES[family], {**options, **more}, tmp_path / "merged")
    model, loading_info = tiny.classes[FAMILIES[family]].from_pretrained(
        merged, output_loading_info=True
    )
    assert not any(loading_info.values())
    count = len(tokenizer) + 2
    rows = count if step is None else -(-count // step) * step
    assert model.config.vocab_size == model.get_input_embeddings().num_embeddings == rows
    written = AutoTokenizer.from_pretrained(merged)
    assert len(written) == count
    assert {"<|user|>", "<|b|>"} <= {str(token) for token in written.added_tokens_decoder.values()}
    text = f"<|user|>{tiny.texts[0]}<|b|>"
    ids = written(text, add_special_tokens=False)["input_ids"]
    plain = tokenizer(tiny.texts[0], add_special_tokens=False)["input_ids"]
    assert ids == [len(tokenizer), *plain, len(tokenizer) + 1]
    prompt = written(text, return_tensors="pt", return_token_type_ids=False)
    model.generate(**prompt, max_new_tokens=4, do_sample=False)


@pytest.mark.parametrize(("family", "size"), [("llama", 110), ("bert", 130), ("t5", 40)])
def test_words_of_another_vocabulary_are_decoded_but_do_not_split_text(
    tiny: Tiny, family: str, size: int, several: Callable[..., Options], tmp_path: Path
) -> None:
    tokenizer, other = (
        tiny.tokenizer(kind_of(tiny, family), count)
        for count in (size, 90)[:: 1 if size < 90 else -1]
    )
    tokenizer = change_tokenizer(tokenizer, None, "<|user|>")  # an id behind the vocabulary
    new = other.get_vocab().keys() - tokenizer.get_vocab().keys()
    assert new
    options = several(family, {"base": tokenizer, "a": other})
    merged = merge(FAMILIES[family], {**options, "tokenizer": "union"}, tmp_path / "merged")
    written = AutoTokenizer.from_pretrained(merged)
    assert written.get_vocab().keys() == tokenizer.get_vocab().keys() | new
    assert written.get_vocab().items() >= tokenizer.get_vocab().items()
    assert written("<|user|>", add_special_tokens=False)["input_ids"] == [len(tokenizer) - 1]
    for token in new:
        numbers = [side.convert_tokens_to_ids(token) for side in (written, other)]
        assert written.decode([4, numbers[0]]) == other.decode([4, numbers[1]])
    if family == "llama":
        assert [written(text)["input_ids"] for text in tiny.texts] == [
            tokenizer(text)["input_ids"] for text in tiny.texts
        ]


def test_long_words_of_another_vocabulary_do_not_replace_a_split_into_pieces(
    tiny: Tiny, several: Callable[..., Options], tmp_path: Path
) -> None:
    tokenizer = tiny.tokenizer("pieces", 40)
    data = json.loads(tokenizer.backend_tokenizer.to_str())
    text = max(" ".join(tiny.texts).split(), key=len) * 4
    data["model"]["vocab"].append([f"▁{text}", -1.0])
    other = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(data)))
    options = several("t5", {"base": tokenizer, "a": other})
    merged = merge("seq2seq-lm", {**options, "tokenizer": "union"}, tmp_path / "merged")
    written = AutoTokenizer.from_pretrained(merged)
    assert f"▁{text}" in written.get_vocab()
    assert len(other.tokenize(text)) == 1
    assert written.tokenize(text) == tokenizer.tokenize(text)


@pytest.mark.parametrize("dtypes", [("float32", "bfloat16"), ("bfloat16", "float32")])
def test_rows_of_tokens_that_an_expert_lacks_do_not_move(
    dtypes: tuple[str, str], tiny: Tiny, several: Callable[..., Options]
) -> None:
    tokenizer = tiny.tokenizer()
    added = change_tokenizer(tokenizer, None, "<|b|>")
    options = several("gpt2", {"base": tokenizer, "a": tokenizer, "b": added})
    for path, dtype in zip(
        (options["base"], *options["models"].values()), (*dtypes, "float32"), strict=True
    ):
        file = Path(path) / "model.safetensors"
        stored = {name: value.to(getattr(torch, dtype)) for name, value in load_file(file).items()}
        save_file(stored, file, {"format": "pt"})
    pool = open_pool("gpt2", options, tokenizer="union")
    base, lacking = (pool.by_name[name].tensor(TOKENS["gpt2"][0]) for name in ("base", "a"))
    assert torch.equal(lacking[len(tokenizer)].float(), base[len(tokenizer)].float())


def test_models_without_a_base_get_the_first_experts_tokens(
    tiny: Tiny, several: Callable[..., Options]
) -> None:
    tokenizer = tiny.tokenizer()
    options = several("gpt2", {"a": tokenizer, "b": change_tokenizer(tokenizer, 5, "<|user|>")})
    for choice, policy in (("base", "expert"), ("union", "subwords"), ("union", "zero")):
        pool = open_pool("gpt2", options, tokenizer=choice, new_rows=policy)
        numbers = vocabulary(options["models"]["a"])
        if choice == "union":
            numbers["<|user|>"] = len(numbers)
        check(pool, options, TOKENS["gpt2"][0], numbers, policy)


def test_equal_tokenizers_change_nothing(tiny: Tiny, several: Callable[..., Options]) -> None:
    tokenizer = tiny.tokenizer()
    options = several("llama", {"base": tokenizer, "a": tokenizer}, rows={"base": 99, "a": 99})
    for choice in ("base", "union", "a"):
        pool = open_pool("llama", options, tokenizer=choice)
        assert pool.base is not None
        assert not pool.base.sources


def test_rows_are_rounded_up(tiny: Tiny, several: Callable[..., Options]) -> None:
    tokenizer = tiny.tokenizer()
    options = several("llama", {"base": tokenizer, "a": tokenizer})
    pool = open_pool("llama", options, pad_to_multiple_of=64)
    assert pool.base is not None
    actual = pool.base.tensor("lm_head.weight")
    assert torch.equal(actual[: len(tokenizer)], weights(options["base"])["lm_head.weight"])
    assert actual.shape[0] == 128
    assert not actual[len(tokenizer) :].any()
    model = pool.build(pool.experts["a"])
    assert model.get_output_embeddings().weight.shape[0] == 128


@pytest.mark.parametrize("cut", [Cut.ROW, Cut.TENSOR])
def test_reading_in_blocks_gives_the_same_rows(
    tiny: Tiny, several: Callable[..., Options], cut: Cut, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = tiny.tokenizer()
    options = several("llama", {"base": tokenizer, "a": change_tokenizer(tokenizer, 5, "<|user|>")})
    plain = open_pool("llama", options, tokenizer="a")
    expected = {name: source.state_dict() for name, source in plain.by_name.items()}
    monkeypatch.setattr("fusion_core.weights.source.BLOCK", 100)  # 6 rows
    monkeypatch.setattr("fusion_core.weights.CheckpointSource.cut", cut)
    pool = open_pool("llama", options, tokenizer="a")
    assert pool.experts["a"].cut is cut
    for name, source in pool.by_name.items():
        actual = source.state_dict()
        assert all(torch.equal(actual[key], expected[name][key]) for key in actual)


def test_an_adapter_follows_its_base(
    tiny: Tiny, several: Callable[..., Options], tmp_path: Path, adapter: Callable[..., str]
) -> None:
    tokenizer = tiny.tokenizer()
    options = several("llama", {"base": tokenizer, "a": change_tokenizer(tokenizer, 5, "<|user|>")})
    options["models"]["lora"] = adapter(
        tmp_path / "lora", "model.embed_tokens", rows=len(tokenizer)
    )
    pool = open_pool("llama", options, tokenizer="a")
    assert pool.experts["lora"].is_delta
    plain = open_pool("llama", options, tokenizer="base")
    key = "model.embed_tokens.weight"
    before, after = plain.experts["lora"].tensor(key), pool.experts["lora"].tensor(key)
    theirs = vocabulary(options["models"]["a"])
    for token, number in vocabulary(options["base"]).items():
        torch.testing.assert_close(after[theirs[token]], before[number])
    assert not after[theirs["<|user|>"]].any()


def test_an_adapter_with_new_tokens_becomes_a_full_model(
    tiny: Tiny, several: Callable[..., Options], tmp_path: Path, adapter: Callable[..., str]
) -> None:
    tokenizer, key = tiny.tokenizer(), "model.embed_tokens.weight"
    options = several("llama", {"base": tokenizer, "a": tokenizer}, rows={"base": 99, "a": 99})
    options["models"]["lora"] = adapter(tmp_path / "lora", "model.embed_tokens", rows=99)
    change_tokenizer(tokenizer, None, "<|lora|>").save_pretrained(tmp_path / "lora")
    path = tmp_path / "lora" / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "base_model_name_or_path": "o/x"}))
    before = open_pool(
        "llama", {**options, "models": {"lora": str(tmp_path / "lora")}}, tokenizer="base"
    )
    pool = open_pool("llama", options, tokenizer="union")
    assert pool.base is not None
    row = (
        weights(options["base"])[key][len(tokenizer)] + delta_of(tmp_path / "lora")[len(tokenizer)]
    )
    for name in ("base", "a", "lora"):
        torch.testing.assert_close(pool.by_name[name].tensor(key)[len(tokenizer)], row)
    assert before.experts["lora"].is_delta
    assert not pool.experts["lora"].is_delta
    (warning,) = (line for line in pool.aligned(AlignmentPolicy()).warnings if "'o/x'" in line)
    assert warning.startswith("lora: adapter_config.json base_model_name_or_path: 'o/x'")


def delta_of(directory: Path) -> torch.Tensor:
    one, other = load_file(directory / "adapter_model.safetensors").values()
    a, b = (one, other) if one.shape[0] == 2 else (other, one)
    return 2 * (b @ a).T


def test_an_adapter_with_more_rows_than_its_base_is_refused(
    tiny: Tiny, several: Callable[..., Options], tmp_path: Path, adapter: Callable[..., str]
) -> None:
    tokenizer = tiny.tokenizer()
    options = several("llama", {"base": tokenizer, "a": tokenizer})
    options["models"]["lora"] = adapter(tmp_path / "lora", "model.layers.0.self_attn.q_proj")
    path = tmp_path / "lora" / "adapter_model.safetensors"
    whole = {f"base_model.model.{name}": torch.ones(95, 16) for name in TOKENS["llama"]}
    save_file({**load_file(path), **whole}, path)
    change_tokenizer(tokenizer, None, "<|lora|>").save_pretrained(tmp_path / "lora")
    with pytest.raises(CheckpointError, match=r"lora: .* number of rows: \[90, 95\]"):
        open_pool("llama", options)


def test_refusals(tiny: Tiny, several: Callable[..., Options], tmp_path: Path) -> None:
    tokenizer = tiny.tokenizer()
    options = several("llama", {"base": tokenizer, "a": change_tokenizer(tokenizer, 5)})
    with pytest.raises(RecipeError, match="unknown expert 'c'"):
        open_pool("llama", options, tokenizer="c")
    path = Path(options["models"]["a"]) / "tokenizer.json"
    path.write_text("{}")
    with pytest.raises(CheckpointError, match="a: unreadable tokenizer"):
        open_pool("llama", options)
    tokenizer.save_pretrained(path.parent)
    data = json.loads(path.read_text())
    data["model"]["vocab"]["far"] = 10**8
    path.write_text(json.dumps(data))
    with pytest.raises(CheckpointError, match="a token id is not below 10,000,000"):
        open_pool("llama", options)
    path.unlink()
    with pytest.raises(RecipeError, match="missing tokenizer of a"):
        open_pool("llama", options, tokenizer="a")


def test_nested_recipes_need_one_shared_tokenizer(
    tiny: Tiny, several: Callable[..., Options], tmp_path: Path
) -> None:
    tokenizer = tiny.tokenizer()
    options = several(
        "llama", {"base": tokenizer, "a": tokenizer, "b": change_tokenizer(tokenizer, 9)}
    )
    pool = {"name": "causal-lm", "models": [options["base"], options["models"]["a"]]}
    nested = {"algorithm": "simple-average", "model_pool": pool}
    options["models"]["a"] = nested
    with pytest.raises(RecipeError, match="cannot include another recipe's merge"):
        merge("causal-lm", options, tmp_path / "merged")
    del options["models"]["b"]
    merge("causal-lm", options, tmp_path / "merged")


def test_a_head_under_an_old_name_is_resized(tiny: Tiny, several: Callable[..., Options]) -> None:
    tokenizer = tiny.tokenizer()
    options = several("neox", {"base": tokenizer, "a": change_tokenizer(tokenizer, 5, "<|user|>")})
    assert "embed_out.weight" in weights(options["base"])
    pool = open_pool("neox", options, tokenizer="a")
    numbers = vocabulary(options["models"]["a"])
    for tensor in ("gpt_neox.embed_in.weight", "embed_out.weight"):
        check(pool, options, tensor, numbers, "expert")
    assert pool.build(pool.reference).get_output_embeddings().weight.shape[0] == len(numbers)


def test_a_head_under_an_unknown_name_is_refused(
    tiny: Tiny, several: Callable[..., Options], tmp_path: Path
) -> None:
    tokenizer = tiny.tokenizer()
    options = several("llama", {"base": tokenizer, "a": change_tokenizer(tokenizer, 5)})
    for name in ("base", "a"):
        path = tmp_path / name / "model.safetensors"
        actual = load_file(path)
        save_file({"my_head": actual.pop("lm_head.weight"), **actual}, path)
    with pytest.raises(CheckpointError, match=r"no tensor matches 'lm_head\.weight'"):
        open_pool("llama", options)


def test_token_sources_can_be_pickled(tiny: Tiny, several: Callable[..., Options]) -> None:
    tokenizer = tiny.tokenizer()
    options = several("llama", {"base": tokenizer, "a": change_tokenizer(tokenizer, 5, "<|user|>")})
    pool = open_pool("llama", options, tokenizer="union", new_rows="subwords")
    for source in pool.by_name.values():
        again = pickle.loads(pickle.dumps(source))
        assert torch.equal(again.tensor("lm_head.weight"), source.tensor("lm_head.weight"))
        assert dict(again.origin.files) == dict(source.origin.files)
        assert source.origin.files


@pytest.mark.parametrize("twice", ["base", "a"])
def test_tied_matrices_may_be_stored_twice(
    tiny: Tiny, several: Callable[..., Options], twice: str, tmp_path: Path
) -> None:
    tokenizer, key = tiny.tokenizer(), TOKENS["qwen2"][0]
    options = several("qwen2", {"base": tokenizer, "a": change_tokenizer(tokenizer, 5, "<|user|>")})
    pool = open_pool("qwen2", options, tokenizer="union").aligned(AlignmentPolicy())
    path = tmp_path / twice / "model.safetensors"
    save_file({**load_file(path), "lm_head.weight": load_file(path)[key]}, path)
    again = open_pool("qwen2", options, tokenizer="union").aligned(AlignmentPolicy())
    for name in ("base", "a"):
        source = again.by_name[name]
        assert torch.equal(source.tensor(key), pool.by_name[name].tensor(key))
        assert "lm_head.weight" not in source.infos
    model = again.build(again.experts["a"])
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight


def test_rows_of_single_tokens(tiny: Tiny, several: Callable[..., Options], tmp_path: Path) -> None:
    tokenizer = tiny.tokenizer()
    tokenizers = {
        "base": tokenizer,
        "a": change_tokenizer(tokenizer, 5, "<|user|>"),
        "b": change_tokenizer(tokenizer, 6, "<|user|>", "<|b|>"),
    }
    options = several("llama", tokenizers)
    tokens = {
        "<|user|>": {"model": "b"},  # a keeps its own row
        "<|new|>": {"model": "a", "token": "the"},
        "<|id|>": {"model": "b", "id": 2, "force": True},
        "the": {"model": "a", "force": True},
        "and": {"force": True},
        "<|b|>": {},
    }
    pool = open_pool("llama", options, tokens=tokens)
    rows = {name: weights(path)["lm_head.weight"] for name, path in options["models"].items()}
    rows["base"] = weights(options["base"])["lm_head.weight"]
    known = {name: vocabulary(path) for name, path in options["models"].items()}
    known["base"] = vocabulary(options["base"])

    def row(model: str, token: str) -> torch.Tensor:
        return rows[model][known[model][token]]

    a = {name: row("a", token) for name, token in [("<|user|>", "<|user|>"), ("<|new|>", "the")]}
    nothing = torch.zeros_like(row("a", "the"))
    expected = {
        "base": {"<|user|>": row("b", "<|user|>"), "<|b|>": nothing},
        "a": {"<|user|>": a["<|user|>"], "<|b|>": nothing},
        "b": {"<|user|>": row("b", "<|user|>"), "<|b|>": row("b", "<|b|>")},
    }
    shared = {"<|new|>": a["<|new|>"], "<|id|>": rows["b"][2], "the": row("a", "the")}
    output = tmp_path / "out"
    run_fusion(algorithm=Mean(), model_pool=pool, output=output)
    numbers = vocabulary(output)
    for name, known_rows in expected.items():
        actual = pool.by_name[name].tensor("lm_head.weight")
        for token, value in {**known_rows, **shared, "and": nothing}.items():
            assert torch.equal(actual[numbers[token]], value), (name, token)
    assert AutoTokenizer.from_pretrained(output).encode("<|new|>") == [numbers["<|new|>"]]


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"model": "c"}, "tokens.<new>.model: unknown model 'c'"),
        ({"model": "a"}, "tokens.<new>: a has no token '<new>'"),
        ({"model": "a", "token": "<y>"}, "tokens.<new>: a has no token '<y>'"),
        ({"model": "a", "id": 9999}, "tokens.<new>: a has no row 9999"),
        ({"model": "a", "token": "the", "id": 1}, "expected one of token and id, got both"),
        ({"id": 1}, "missing model"),
    ],
)
def test_a_token_needs_a_row_that_exists(
    tiny: Tiny, several: Callable[..., Options], row: Options, problem: str
) -> None:
    options = several("llama", {"base": tiny.tokenizer(), "a": tiny.tokenizer()})
    with pytest.raises(RecipeError, match=problem):
        open_pool("llama", options, tokens={"<new>": row})


TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Who?"},
    {"role": "assistant", "content": " Me. "},
]
#: what each format makes of the talk, and of its question alone with the start of an answer
CHATS = {
    "chatml": (
        (
            "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nWho?<|im_end|>\n"
            "<|im_start|>assistant\n Me. <|im_end|>\n"
        ),
        "<|im_start|>user\nWho?<|im_end|>\n<|im_start|>assistant\n",
    ),
    "llama3": (
        (
            "<s><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>"
            "<|start_header_id|>user<|end_header_id|>\n\nWho?<|eot_id|>"
            "<|start_header_id|>assistant<|end_header_id|>\n\nMe.<|eot_id|>"
        ),
        (
            "<s><|start_header_id|>user<|end_header_id|>\n\nWho?<|eot_id|>"
            "<|start_header_id|>assistant<|end_header_id|>\n\n"
        ),
    ),
    "mistral": ("<s> [INST] Be brief.\n\nWho? [/INST]  Me. </s>", "<s> [INST] Who? [/INST]"),
    "alpaca": (
        "Be brief.\n\n### Instruction:\nWho?\n\n### Response:\nMe.",
        "### Instruction:\nWho?\n\n### Response:\n",
    ),
    "exaone": (
        "[|system|]Be brief.[|endofturn|]\n[|user|]Who?\n[|assistant|] Me. [|endofturn|]\n",
        "[|system|][|endofturn|]\n[|user|]Who?\n[|assistant|]",
    ),
}


@pytest.mark.parametrize("name", CHATS)
def test_a_format_of_chats_becomes_the_outputs_template(
    tiny: Tiny, several: Callable[..., Options], tmp_path: Path, name: str
) -> None:
    options = several("llama", {"base": tiny.tokenizer(), "a": tiny.tokenizer()})
    settings = Path(options["base"]) / "tokenizer_config.json"
    fields = {**json.loads(settings.read_text()), "chat_template": "{{ 'old' }}"}
    settings.write_text(json.dumps(fields))
    pool = {"name": "causal-lm", **options, "chat_template": name}
    run_fusion(algorithm="simple-average", model_pool=pool, output=tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    whole, question = CHATS[name]
    tokenizer.bos_token, tokenizer.eos_token = "<s>", "</s>"
    assert tokenizer.apply_chat_template(TALK, tokenize=False) == whole
    asked = tokenizer.apply_chat_template(TALK[1:2], tokenize=False, add_generation_prompt=True)
    assert asked == question


def test_a_union_that_looks_up_whole_words_is_reported(
    tiny: Tiny, several: Callable[..., Options]
) -> None:
    def warn(*, ignore_merges: bool) -> str:
        base, other = tiny.tokenizer(size=60), tiny.tokenizer(size=90)
        base.backend_tokenizer.model.ignore_merges = ignore_merges
        options = several("llama", {"base": base, "a": other})
        pool = open_pool("llama", options, tokenizer="union")
        return "\n".join(pool.aligned(AlignmentPolicy()).warnings)

    assert "looks whole words up" in warn(ignore_merges=True)
    assert "looks whole words up" not in warn(ignore_merges=False)


def test_markers_that_the_tokenizer_lacks_are_named(
    tiny: Tiny, several: Callable[..., Options]
) -> None:
    def warn(**options: Any) -> str:
        pool = open_pool("llama", shared, chat_template="chatml", **options)
        return "\n".join(pool.aligned(AlignmentPolicy()).warnings)

    shared = several("llama", {"base": tiny.tokenizer(), "a": tiny.tokenizer()})
    assert "the tokenizer has no token <|im_start|>, <|im_end|>" in warn()
    rows: Options = {"<|im_start|>": {}, "<|im_end|>": {}}
    assert "no token" not in warn(tokens=rows)


def test_auto_takes_the_most_frequent_template(tiny: Tiny, several: Callable[..., Options]) -> None:
    tokenizer = tiny.tokenizer()
    options = several("llama", dict.fromkeys(("base", "a", "b", "c"), tokenizer))
    for name, text in {"a": "{{ 'a' }}", "b": "{{ 'b' }}", "c": "\n{{ 'b' }}\n"}.items():
        (Path(options["models"][name]) / "chat_template.jinja").write_text(text)
    pool = open_pool("llama", options, chat_template="auto")
    assert pool.assets()["chat_template.jinja"] == b"{{ 'b' }}"
    assert "chat_template.jinja" not in open_pool("llama", options).assets()


def test_a_template_has_to_be_one(tiny: Tiny, several: Callable[..., Options]) -> None:
    with pytest.raises(RecipeError, match="expected auto, one of alpaca, chatml"):
        LanguageConfig(models={}, chat_template="chatlm")
    options = several("llama", {"base": tiny.tokenizer(), "a": tiny.tokenizer()})
    with pytest.raises(RecipeError, match="invalid Jinja template, line 1"):
        open_pool("llama", options, chat_template="{% for message in messages %}")
    marked = "{% generation %}{{ messages[0].content }}{% endgeneration %}"
    assert open_pool("llama", options, chat_template=marked).assets()["chat_template.jinja"]
    for path in (options["base"], options["models"]["a"]):
        for file in Path(path).glob("*token*"):
            file.unlink()
    with pytest.raises(RecipeError, match="no model has a tokenizer"):
        open_pool("llama", options, chat_template="chatml")


def test_a_tokens_text_is_split_without_a_space_in_front_of_it() -> None:
    """A piece inside a word is no beginning of a word, and a beginning gets no second blank."""
    tokenizer = Tokenizer(models.BPE(vocab={"▁": 0, "e": 1, "c": 2, "▁e": 3}, merges=[("▁", "e")]))
    tokenizer.normalizer = normalizers.Sequence(  # as Llama 2 has it
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    assert tokenizer.encode("ec").ids == [3, 2]
    assert worker.tokenize(tokenizer, ["ec", " ec", "e c"]) == [[1, 2], [3, 2], [1, 0, 2]]
    tokenizer.normalizer = None
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    assert worker.tokenize(tokenizer, ["ec", " ec"]) == [[1, 2], [3, 2]]
