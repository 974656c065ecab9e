"""The example for sentence-transformers, on models made of every kind of module."""

from __future__ import annotations

import copy
import re
import runpy
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from sentence_transformers import (
    CrossEncoder,
    MultiVectorEncoder,
    SentenceTransformer,
    SparseEncoder,
)
from sentence_transformers.base import modules as base_modules
from sentence_transformers.cross_encoder import modules as cross
from sentence_transformers.multi_vector_encoder import modules as multi
from sentence_transformers.sentence_transformer import modules as dense
from sentence_transformers.sentence_transformer.modules.tokenizer import WhitespaceTokenizer
from sentence_transformers.sparse_encoder import modules as sparse
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    BertConfig,
    BertForMaskedLM,
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPProcessor,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
)

from fusion_core.errors import AlignmentError

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.plugins

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "sentence_transformers_merge.py"
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "dog", "runs"]
SIZES: dict[str, Any] = {
    "hidden_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 8,
}
#: Classes that others derive from, and the old name of Router.
ABSTRACT = {"Module", "InputModule", "BaseTokenPooling", "Asym"}


def tokenizer(words: list[str] = WORDS) -> Any:
    core = Tokenizer(models.WordLevel({word: row for row, word in enumerate(words)}, "[UNK]"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    special = {f"{kind}_token": f"[{kind.upper()}]" for kind in ("pad", "unk", "cls", "sep")}
    return PreTrainedTokenizerFast(
        tokenizer_object=core, mask_token="[MASK]", model_max_length=16, **special
    )


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Directories of tiny models: an encoder, a decoder, and a CLIP."""
    folder = tmp_path_factory.mktemp("models")
    text = {**SIZES, "vocab_size": 8, "num_hidden_layers": 1}
    clip = CLIPConfig(
        text_config={**text, "max_position_embeddings": 16},
        vision_config={**SIZES, "num_hidden_layers": 1, "image_size": 8, "patch_size": 4},
        projection_dim=8,
    )
    live = {
        "bert": BertForMaskedLM(BertConfig(vocab_size=8, **SIZES)),
        "gpt": GPT2LMHeadModel(GPT2Config(vocab_size=8, n_embd=8, n_layer=1, n_head=2)),
        "clip": CLIPModel(clip),
    }
    for name, model in live.items():
        model.save_pretrained(folder / name)
        tokenizer().save_pretrained(folder / name)
    images = CLIPImageProcessor(size={"shortest_edge": 8}, crop_size=8)
    CLIPProcessor(images, tokenizer()).save_pretrained(folder / "clip")
    return {name: str(folder / name) for name in live}


Paths = dict[str, str]
KINDS: dict[str, tuple[type[Any], Callable[[Paths], list[Any]]]] = {
    "dense": (
        SentenceTransformer,
        lambda paths: [
            dense.Transformer(paths["bert"]),
            dense.WeightedLayerPooling(8, num_hidden_layers=2, layer_start=1),
            *(dense.Pooling(8), dense.Dense(8, 4), dense.LayerNorm(4)),
            *(dense.Dropout(), dense.Normalize()),
        ],
    ),
    "words": (
        SentenceTransformer,
        lambda paths: [
            dense.WordEmbeddings(WhitespaceTokenizer(WORDS[5:]), torch.rand(3, 6)),
            dense.WordWeights(WORDS[5:], {"a": 0.5}),
            *(dense.LSTM(6, 4), dense.CNN(8, 3), dense.Pooling(9)),
        ],
    ),
    "counts": (
        SentenceTransformer,
        lambda paths: [dense.BoW(WORDS[5:], {"a": 2.0}), dense.Dense(3, 2)],
    ),
    "router": (
        SentenceTransformer,
        lambda paths: [
            dense.Router.for_query_document(
                [dense.StaticEmbedding(tokenizer(), embedding_dim=8)],
                [dense.Transformer(paths["bert"]), dense.Pooling(8)],
            )
        ],
    ),
    "clip": (SentenceTransformer, lambda paths: [dense.CLIPModel(paths["clip"])]),
    "splade": (
        SparseEncoder,
        lambda paths: [sparse.MLMTransformer(paths["bert"]), sparse.SpladePooling()],
    ),
    "autoencoder": (
        SparseEncoder,
        lambda paths: [
            *(dense.Transformer(paths["bert"]), dense.Pooling(8)),
            sparse.SparseAutoEncoder(8, 16, k=4),
        ],
    ),
    "frequencies": (SparseEncoder, lambda paths: [sparse.SparseStaticEmbedding(tokenizer())]),
    "late": (
        MultiVectorEncoder,
        lambda paths: [
            dense.Transformer(paths["bert"]),
            dense.Dense(8, 4, module_input_name="token_embeddings"),
            *(multi.MultiVectorMask(), multi.HierarchicalTokenPooling(2)),
            multi.LambdaTokenPooling(torch.nn.Identity()),
        ],
    ),
    "reranker": (
        CrossEncoder,
        lambda paths: [
            cross.Transformer(paths["gpt"], transformer_task="text-generation"),
            cross.LogitScore(true_token_id=5, false_token_id=6),
        ],
    ),
}


def merge(*given: Any, **options: Any) -> Any:
    return runpy.run_path(str(EXAMPLE))["merge"](*given, **options)


def change(model: Any, seed: int) -> Any:
    """Return a copy of a model whose tensors all differ."""
    expert, generator = copy.deepcopy(model), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in {id(t): t for t in expert.state_dict(keep_vars=True).values()}.values():
            noise = torch.rand(tensor.shape, generator=generator)
            tensor.add_(noise if tensor.is_floating_point() else 1)
    return expert


@pytest.fixture
def make(saved: Paths) -> Callable[[str], list[Any]]:
    def make(kind: str) -> list[Any]:
        build, modules = KINDS[kind]
        with torch.random.fork_rng():
            torch.manual_seed(0)
            base = build(modules=modules(saved), device="cpu")
        return [base, change(base, 1), change(base, 2)]

    return make


def apply(model: Any) -> torch.Tensor:
    if isinstance(model, CrossEncoder):
        return torch.as_tensor(model.predict([("a dog", "runs")]))
    (vector,) = model.encode_document(["a dog runs"])
    tensor = torch.as_tensor(vector)
    return tensor.to_dense() if tensor.is_sparse else tensor


@pytest.mark.sampled(2)
@pytest.mark.parametrize("kind", KINDS)
def test_every_module_is_merged_saved_and_loaded(
    make: Callable[[str], list[Any]], kind: str, tmp_path: Path
) -> None:
    given = make(kind)
    before = copy.deepcopy(given[0].state_dict())
    merged = merge(*given, algorithm={"name": "task-arithmetic", "scale": 0.5})
    assert type(merged) is type(given[0])
    states = [model.state_dict() for model in given]
    for name, value in merged.state_dict().items():
        base, *experts = (state[name] for state in states)
        dense_truth = base + sum(0.5 * (expert - base) for expert in experts)
        is_merged = value.is_floating_point()
        torch.testing.assert_close(value, dense_truth.to(value.dtype) if is_merged else base)
        assert torch.equal(base, before[name])
        assert not (is_merged and torch.equal(value, base))
    if isinstance(merged[-1], multi.LambdaTokenPooling):
        del merged[-1]  # sentence-transformers cannot save a function
    merged.save_pretrained(str(tmp_path / "merged"), create_model_card=False)
    loaded = type(merged)(str(tmp_path / "merged"), device="cpu")
    if kind == "words":  # loading computes these from the configuration: see the page
        merged[1].load_state_dict(loaded[1].state_dict())
    assert loaded.state_dict().keys() == merged.state_dict().keys()
    # Loaded tensors lie in the mapped file, at addresses for which torch may round otherwise.
    torch.testing.assert_close(apply(copy.deepcopy(loaded)), apply(merged), rtol=0, atol=0)


def test_tied_weights_stay_tied_under_a_random_method(make: Callable[[str], list[Any]]) -> None:
    merged = merge(*make("splade"), algorithm={"name": "dare", "density": 0.5})
    model = merged[0].model
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight


def test_differing_modules_are_named(
    make: Callable[[str], list[Any]], caplog: pytest.LogCaptureFixture
) -> None:
    base, one, other = make("dense")
    one[2] = dense.Pooling(8, pooling_mode="cls")
    del other[-1]
    merge(base, one, other)
    assert "expert-1: module 2_Pooling pooling_mode: 'cls', the base's is 'mean'" in caplog.text
    assert "expert-2: modules.json modules: " in caplog.text


@pytest.mark.parametrize("kind", ["frequencies", "router"])
def test_other_tokens_are_found(
    make: Callable[[str], list[Any]], kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    base, one, other = make(kind)
    swapped = tokenizer([*WORDS[:5], "dog", "a", "runs"])
    if kind == "frequencies":  # rows of weights would be added to those of other words
        one[0].tokenizer = swapped
        with pytest.raises(AlignmentError, match="2 token ids stand for other tokens"):
            merge(base, one, other)
        return
    one[0].sub_modules["document"][0].processor = swapped
    merge(base, one, other)
    assert "module 0_sub_modules_document_0_Transformer tokens" in caplog.text


def test_the_page_has_a_rule_for_every_module() -> None:
    page = (ROOT / "docs/how-to/merge-sentence-encoders.md").read_text(encoding="utf-8")
    rows = "".join(re.findall(r"^\| `.*$", page, re.MULTILINE))
    packages = (base_modules, cross, dense, multi, sparse)
    exported = {name for package in packages for name in package.__all__} - ABSTRACT
    assert exported == set(re.findall(r"`([A-Z]\w+)`", rows))
    makers = "".join(str(make.__code__.co_names) for _, make in KINDS.values())
    assert not [name for name in exported if f"'{name}'" not in makers]


def test_the_example_runs_as_it_is(
    make: Callable[[str], list[Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert len(EXAMPLE.read_text(encoding="utf-8").splitlines()) < 40
    paths = [str(tmp_path / name) for name in ("base", "news", "law", "merged")]
    for model, path in zip(make("dense"), paths, strict=False):
        model.save_pretrained(path, create_model_card=False)
    monkeypatch.setattr(sys, "argv", [str(EXAMPLE), *paths])
    runpy.run_path(str(EXAMPLE), run_name="__main__")
    assert capsys.readouterr().out == f"{paths[-1]}: 4 dimensions\n"
