"""Results depend neither on padding nor on tokens that a model should predict."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import torch
import transformers

from fusion_core.errors import FusionError
from pools_lm.tasks.encoder import Encoder, Example
from pools_lm.tasks.generation import TextGenerator
from pools_lm.tasks.modules import Pooling
from pools_lm.tasks.prompts import Pair
from pools_lm.tasks.reading import limit_padding
from pools_lm.tasks.scoring import (
    greedy_tokens,
    log_likelihoods,
    next_token_scores,
    pad_rows,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

_SMALL = {"hidden_size": 16, "num_hidden_layers": 2}
_BERT = {**_SMALL, "num_attention_heads": 2, "intermediate_size": 32, "initializer_range": 1.0}
_ROWS = [list(range(5, 8 + 3 * number)) for number in range(6)]


def _build(name: str, config: str, options: Mapping[str, Any]) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = getattr(transformers, config)(vocab_size=60, **options)
        return getattr(transformers, name)(made).eval()


def _prompts() -> Any:
    return SimpleNamespace(is_seq2seq=False, ends=[2])


@pytest.mark.parametrize(
    ("name", "config", "options", "is_exact"),
    [
        ("BertModel", "BertConfig", _BERT, True),
        ("FNetModel", "FNetConfig", {**_SMALL, "initializer_range": 1.0}, False),
        ("ConvBertModel", "ConvBertConfig", {**_BERT, "num_attention_heads": 4}, False),
    ],
)
def test_embeddings_do_not_depend_on_padding(
    name: str,
    config: str,
    options: Mapping[str, Any],
    caplog: pytest.LogCaptureFixture,
    *,
    is_exact: bool,
) -> None:
    model = _build(name, config, options)
    rows = [{"input_ids": row, "attention_mask": [1] * len(row)} for row in _ROWS]
    prompts: Any = _prompts()
    encoder = Encoder(prompts, Pooling(), (), prompt="", length=99)
    examples = list(map(Example, rows))
    together, alone = (
        encoder.embed_all(model, examples, batch_size=size, label="") for size in (6, 1)
    )
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)
    assert (f"{name} reads texts one by one" in caplog.text) is not is_exact


def test_padding_by_whole_blocks_is_not_enough() -> None:
    """DeepSeek-V4 compresses blocks of tokens, and padding by whole blocks changes nothing."""

    def score(texts: list[str]) -> torch.Tensor:
        longest = max(map(len, texts))
        return torch.tensor([[1.0 + (longest - len(text)) % 4] for text in texts])

    model = torch.nn.Linear(1, 1)
    assert limit_padding(model, score, ["a", "abcde"], 8) == 8
    assert limit_padding(model, score, ["a", "abcd", "abcde"], 8) == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_rounding_is_no_change(
    dtype: torch.dtype, tiny: Any, caplog: pytest.LogCaptureFixture
) -> None:
    model = tiny.live("llama", 0).to(dtype)
    TextGenerator(_prompts(), model, 2, batch_size=6).generate_tokens(_ROWS, label="")
    assert not caplog.text


def test_generated_text_does_not_depend_on_padding() -> None:
    model = _build("RwkvForCausalLM", "RwkvConfig", {"hidden_size": 16, "num_hidden_layers": 2})
    for parameter in model.parameters():
        parameter.data.mul_(5)
    together, alone = (
        TextGenerator(_prompts(), model, 8, batch_size=size).generate_tokens(_ROWS, label="")
        for size in (6, 1)
    )
    assert together == alone


@pytest.mark.parametrize(
    ("name", "config", "options"),
    [
        ("BertLMHeadModel", "BertConfig", _BERT),
        ("XLNetLMHeadModel", "XLNetConfig", {"d_model": 16, "n_layer": 2, "n_head": 2}),
    ],
)
def test_a_model_that_reads_the_answer_has_no_likelihoods(
    name: str, config: str, options: Mapping[str, Any]
) -> None:
    model, pairs = _build(name, config, options), [Pair(row[:2], row[2:]) for row in _ROWS]
    for function in (log_likelihoods, greedy_tokens):
        with pytest.raises(FusionError, match=f"{name} reads the tokens that it should predict"):
            function(model, pairs, batch_size=4, label="")


def test_a_bert_that_is_a_decoder_has_likelihoods() -> None:
    model = _build("BertLMHeadModel", "BertConfig", {**_BERT, "is_decoder": True})
    pairs = [Pair(row[:2], row[2:]) for row in _ROWS]
    assert len(log_likelihoods(model, pairs, batch_size=4, label="")) == len(pairs)


def test_a_token_without_an_embedding_is_named() -> None:
    model = _build("GPT2LMHeadModel", "GPT2Config", {"n_embd": 16, "n_layer": 1, "n_head": 2})
    rows = model.get_input_embeddings().num_embeddings
    message = f"gives the token {rows}, but the model has embeddings of {rows} tokens"
    for function in (log_likelihoods, greedy_tokens):
        with pytest.raises(FusionError, match=message):
            function(model, [Pair([1, 2], [rows])], batch_size=4, label="")
    with pytest.raises(FusionError, match=message):
        next_token_scores(model, pad_rows([[1, rows]]))
    generator = TextGenerator(_prompts(), model, 8)
    with pytest.raises(FusionError, match=message):
        generator.generate_tokens([[1], [2, rows]], label="")
    with pytest.raises(FusionError, match=message):
        generator.sample_tokens([[1], [2, rows]], seed=0, key="")
