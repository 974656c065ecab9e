"""Tokenizers are compared by tokens and ids, whatever files hold them."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from fusion_core import AlignmentPolicy
from fusion_core.errors import AlignmentError, CheckpointError
from fusion_core.weights import StateDictSource, list_side_files
from pools_checkpoints import CheckpointsConfig, CheckpointsPool
from pools_checkpoints.comparison.models import Model, Models
from pools_checkpoints.comparison.tokens import conflicts

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

WORDS = ["<unk>", "a", "b", "é", "▁c", "😀"]


def model(path: Path, files: Mapping[str, bytes | str | dict[str, Any]], rows: int = 6) -> str:
    path.mkdir(parents=True, exist_ok=True)
    save_file({"embed_tokens.weight": torch.zeros(rows, 2)}, path / "model.safetensors")
    for name, content in files.items():
        text = json.dumps(content) if isinstance(content, dict) else content
        (path / name).write_bytes(text.encode() if isinstance(text, str) else text)
    return str(path)


def number_words(words: Sequence[str]) -> dict[str, int]:
    return {word: number for number, word in enumerate(words)}


def hugging_face(kind: str, words: Sequence[str], added: Sequence[str] = ()) -> str:
    core: Any = {
        "bpe": lambda: models.BPE(vocab=number_words(words), merges=[("a", "b")][: "ab" in words]),
        "word level": lambda: models.WordLevel(number_words(words), unk_token="<unk>"),
        "word piece": lambda: models.WordPiece(number_words(words), unk_token="<unk>"),
        "unigram": lambda: models.Unigram([(word, -1.0) for word in words], unk_id=0),
    }[kind]()
    tokenizer = Tokenizer(core)
    tokenizer.add_special_tokens(list(added))
    return str(tokenizer.to_str(pretty=True))


def sentence_piece(words: Sequence[str]) -> bytes:
    """Return a stand-in for a SentencePiece model, which is never parsed."""
    return b"\x0a\x0e" + b"\0".join(word.encode() for word in words)


def tiktoken(words: Sequence[str]) -> bytes:
    tokens = (base64.b64encode(word.encode()) for word in words)
    return b"".join(b"%s %d\n" % (token, number) for number, token in enumerate(tokens))


FORMS: dict[str, Any] = {
    **{kind: lambda words, kind=kind: {"tokenizer.json": hugging_face(kind, words)}
       for kind in ("bpe", "word level", "word piece", "unigram")},
    "vocab.json": lambda words: {"vocab.json": number_words(words)},
    "vocab.txt": lambda words: {"vocab.txt": "\n".join(words) + "\n"},
    "tiktoken": lambda words: {"tokenizer.model": tiktoken(words)},
    "added_tokens.json": lambda words: {
        "vocab.json": number_words(words[:1]),
        "added_tokens.json": {word: n for n, word in enumerate(words) if n},
    },
    "added_tokens_decoder": lambda words: {
        "vocab.json": number_words(words[:1]),
        "tokenizer_config.json": {
            "added_tokens_decoder": {str(n): {"content": word} for n, word in enumerate(words)}
        },
    },
}  # fmt: skip


def messages(*models: str) -> list[str]:
    source = StateDictSource({})
    by_name = {
        f"m{n}": Model(f"m{n}", source, list_side_files(Path(p))) for n, p in enumerate(models)
    }
    return [str(conflict) for conflict in conflicts(Models(by_name))]


@pytest.mark.parametrize("form", FORMS)
def test_an_id_with_two_tokens_is_reported_in_every_form(tmp_path: Path, form: str) -> None:
    base = model(tmp_path / "base", FORMS[form](WORDS))
    assert messages(base, model(tmp_path / "same", FORMS[form](WORDS))) == []
    assert messages(base, model(tmp_path / "more", FORMS[form]([*WORDS, "more"]))) == []
    swapped = ["<unk>", "b", "a", *WORDS[3:]]
    (message,) = messages(base, model(tmp_path / "other", FORMS[form](swapped)))
    assert message.splitlines()[0] == "m1: tokenizer: 2 token ids stand for other tokens"
    if form != "tiktoken":
        assert message.splitlines()[1:] == ["    1: 'b', m0's is 'a'", "    2: 'a', m0's is 'b'"]


@pytest.mark.parametrize("one", ["bpe", "vocab.json", "vocab.txt", "added_tokens.json"])
@pytest.mark.parametrize("other", ["unigram", "vocab.txt", "vocab.json"])
def test_forms_are_compared_with_each_other(tmp_path: Path, one: str, other: str) -> None:
    base = model(tmp_path / "base", FORMS[one](WORDS))
    assert messages(base, model(tmp_path / "same", FORMS[other](WORDS))) == []
    assert len(messages(base, model(tmp_path / "other", FORMS[other](WORDS[::-1])))) == 1


def test_saved_tokenizers_are_read_like_tokenizers_reads_them(tmp_path: Path) -> None:
    """This includes the byte-level alphabet, escapes, and both spellings of merges."""
    tokenizer = Tokenizer(
        models.BPE(vocab={'"merges": [': 0, "\\": 1, "ab": 2, "a": 3, "b": 4}, merges=[("a", "b")])
    )
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(), decoders.ByteLevel()
    tokenizer.add_tokens(["<new>"])
    saved = json.loads(tokenizer.to_str())
    old = {**saved, "model": {**saved["model"], "merges": ["a b"]}}
    words = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().__getitem__)
    for number, content in enumerate((saved, old)):
        one = model(tmp_path / f"{number}", {"tokenizer.json": content})
        assert messages(model(tmp_path / "words", {"vocab.json": number_words(words)}), one) == []
        assert (
            len(messages(model(tmp_path / "words", {"vocab.json": number_words(words[::-1])}), one))
            == 1
        )


def test_tiktoken_is_spelled_like_byte_level_vocabularies(tmp_path: Path) -> None:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = {bytes([n]): n for n in range(256)}
    lines = b"".join(base64.b64encode(token) + b" %d\n" % n for token, n in tokens.items())
    one = model(tmp_path / "one", {"tokenizer.model": lines})
    letters = {decoders.ByteLevel().decode([letter]): letter for letter in alphabet}
    ascii_only = {letters[chr(n)]: n for n in range(128)}
    assert messages(model(tmp_path / "base", {"vocab.json": ascii_only}), one) == []


def test_experts_are_compared_where_the_base_has_no_token(tmp_path: Path) -> None:
    base = model(tmp_path / "base", {"vocab.json": number_words(WORDS)})
    one = model(tmp_path / "one", {"vocab.json": number_words([*WORDS, "x"])})
    other = model(tmp_path / "other", {"vocab.json": number_words([*WORDS, "y"])})
    assert messages(base, one, other) == [
        "m2: tokenizer: 1 token id stands for other tokens\n    6: 'y', m1's is 'x'"
    ]
    assert messages(model(tmp_path / "none", {}), one, other) != []


@pytest.mark.parametrize(
    "name",
    ["tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "spm.model", "source.spm"],
)
def test_sentencepiece_models_are_compared_as_a_whole(tmp_path: Path, name: str) -> None:
    base = model(tmp_path / "base", {name: sentence_piece(WORDS)})
    same = model(tmp_path / "same", {name: sentence_piece(WORDS)})
    assert messages(base, same) == []
    (message,) = messages(base, same, model(tmp_path / "other", {name: sentence_piece(WORDS[:-1])}))
    assert message.startswith(f"m2: tokenizer: {name} cannot be compared with {name} of m0: ")
    assert "Save the tokenizers of all models with transformers" in message


def test_a_sentencepiece_model_alone_does_not_fit_another_file(tmp_path: Path) -> None:
    saved = {"tokenizer.json": hugging_face("unigram", WORDS)}
    alone = {"spiece.model": sentence_piece(WORDS)}
    one = model(tmp_path / "one", saved)
    other = model(tmp_path / "other", alone)
    third = model(tmp_path / "third", {"vocab.json": number_words(WORDS[::-1])})
    first = "cannot be compared with spiece.model of m0"
    assert [first in message for message in messages(other, one, third)] == [True, True]
    alone_message, third_message = messages(one, other, third)
    assert (
        "m1: tokenizer: spiece.model cannot be compared with tokenizer.json of m0" in alone_message
    )
    assert "m2: tokenizer: 6 token ids stand for other tokens" in third_message
    both = model(tmp_path / "both", {**saved, **alone})
    assert messages(both, model(tmp_path / "copy", {**saved, "spiece.model": b"other"})) == []
    assert messages(both, other) == []


def test_shifted_ids_are_compared_only_with_each_other(tmp_path: Path) -> None:
    name = "sentencepiece.bpe.model"
    base = model(
        tmp_path / "base",
        {"tokenizer.json": hugging_face("unigram", ["<s>", *WORDS]), name: sentence_piece(WORDS)},
    )
    assert messages(base, model(tmp_path / "one", {name: sentence_piece(WORDS)})) == []
    assert len(messages(base, model(tmp_path / "two", {name: sentence_piece(WORDS[::-1])}))) == 1


def test_files_of_the_same_bytes_are_not_read(tmp_path: Path) -> None:
    files = {"tokenizer.json": "nonsense"}
    assert messages(model(tmp_path / "a", files), model(tmp_path / "b", files)) == []


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("tokenizer.json", "nonsense"),
        ("tokenizer.json", "[" * 900),
        ("tokenizer.json", '{"model": {"vocab": 5}}'),
        ("tokenizer.json", '{"model": {"vocab": [["a", 1], 5]}}'),
        ("tokenizer.json", '{"model": {"vocab": {"a": "b"}}}'),
        ("tokenizer.json", '{"model": {"vocab": {}}, "added_tokens": [{"id": Infinity}]}'),
        ("tokenizer.json", '{"model": {"vocab": {}}, "added_tokens": 5}'),
        ("vocab.json", '{"a": 1.5}'),
        ("vocab.json", '{"\\ud800": 1}'),
        ("vocab.txt", b"\xff"),
        ("tokenizer.model", b"IQ== 0\nIQ==\n"),
        ("added_tokens.json", '{"a": "b"}'),
        ("tokenizer.json", b" " * 50_000_001),
        ("tokenizer.model", b"IQ== 0\n" * 1_000_002),
        ("tokenizer.model", b"\x0a" * 50_000_001),
    ],
)
def test_an_error_names_an_invalid_tokenizer(tmp_path: Path, name: str, content: Any) -> None:
    main = {"vocab.json": number_words(WORDS)} if name == "added_tokens.json" else {}
    good = {**FORMS["tiktoken"](WORDS), "vocab.json": number_words(WORDS)}
    good |= {**FORMS["bpe"](WORDS), "vocab.txt": "a"}
    base = model(tmp_path / "base", good)
    with pytest.raises(CheckpointError, match=name):
        messages(base, model(tmp_path / "one", {**main, name: content}))


# --- as a policy --------------------------------------------------------------------------------


def align_tokens(base: str, *models: str, **policy: Any) -> tuple[str, ...]:
    config = CheckpointsConfig(base=base, models={f"m{n}": path for n, path in enumerate(models)})
    return CheckpointsPool(config).aligned(AlignmentPolicy(**policy)).warnings


@pytest.mark.parametrize("rows", [6, 7])
def test_conflicts_are_an_error_even_if_rows_are_padded(tmp_path: Path, rows: int) -> None:
    words = [*WORDS[::-1], "more"][:rows]
    base = model(tmp_path / "base", {"vocab.json": number_words(WORDS)})
    one = model(tmp_path / "one", {"vocab.json": number_words(words)}, rows)
    with pytest.raises(AlignmentError) as caught:
        align_tokens(base, one, vocab="pad")
    assert (
        "  tokenizer  m0: 6 token ids stand for other tokens\n    0: '😀'" in caught.value.message
    )
    assert "alignment.tokenizer=warn" in (caught.value.hint or "")
    assert len(align_tokens(base, one, vocab="pad", tokenizer="warn")) == 1
    assert align_tokens(base, one, vocab="pad", tokenizer="ignore") == ()


def test_ten_conflicts_are_shown_and_the_others_counted(tmp_path: Path) -> None:
    words = [f"w{n}" for n in range(30)]
    base = model(tmp_path / "base", {"vocab.json": number_words(words)})
    (message,) = align_tokens(
        base, model(tmp_path / "one", {"vocab.json": number_words(words[::-1])}), tokenizer="warn"
    )
    assert len(message.splitlines()) == 12
    assert message.endswith("    ... and 20 more")


def test_other_special_tokens_are_warnings(tmp_path: Path) -> None:
    files = {"vocab.json": number_words(WORDS), "special_tokens_map.json": {"eos_token": "a"}}
    base = model(tmp_path / "base", files)
    config = {"eos_token": {"content": "b"}, "pad_token": None, "bos_token": "a"}
    one = model(tmp_path / "one", {**files, "tokenizer_config.json": config})
    assert align_tokens(base, one) == (
        "m0: tokenizer_config.json eos_token: 'b', the base's is 'a' in special_tokens_map.json",
    )


@pytest.mark.plugins
def test_an_adapters_own_tokenizer_is_compared(tmp_path: Path) -> None:
    base = model(tmp_path / "base", {"vocab.json": number_words(WORDS)})
    config = {"peft_type": "LORA", "r": 1, "lora_alpha": 1}
    one = model(tmp_path / "one", {"adapter_config.json": config, "vocab.txt": "<unk>\nb\na"})
    (tmp_path / "one" / "model.safetensors").unlink()
    names = {"lora_embedding_A": (1, 6), "lora_embedding_B": (2, 1)}
    factors = {f"base_model.model.embed_tokens.{k}": torch.ones(v) for k, v in names.items()}
    save_file(factors, tmp_path / "one" / "adapter_model.safetensors")
    with pytest.raises(AlignmentError, match="2 token ids stand for other tokens"):
        align_tokens(base, one)
