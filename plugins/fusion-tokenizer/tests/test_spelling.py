"""The texts of tokens, against what the tokenizers themselves encode and decode."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from transplant_models import OTHER_TEXTS, TEXTS, blanks, byte_level, save_tokenizer, unigram

from fusion_tokenizer.vocabulary import read_vocabulary

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tokenizers import Tokenizer

    from fusion_tokenizer.vocabulary import Vocabulary


def read(tokenizer: Tokenizer, directory: Path) -> Vocabulary:
    save_tokenizer(tokenizer, directory)
    names = ("tokenizer.json", "tokenizer_config.json")
    return read_vocabulary({name: directory / name for name in names}, "model")


@pytest.mark.parametrize(
    ("make", "prefix"),
    [(byte_level, b""), (blanks, b" "), (unigram, b" ")],
    ids=["bytes", "blanks", "unigram"],
)
def test_the_texts_of_a_texts_tokens_are_the_text(
    make: Callable[..., Tokenizer], prefix: bytes, tmp_path: Path
) -> None:
    tokenizer = make(330, TEXTS, "<s>")
    vocabulary = read(tokenizer, tmp_path)
    texts = ["a quick dog and a tree", *(TEXTS if make is unigram else TEXTS + OTHER_TEXTS)]
    for text in texts:
        flat = " ".join(text.split()) if make is unigram else text
        tokens = tokenizer.encode(flat).tokens
        assert b"".join(vocabulary.texts[token].content for token in tokens) == (
            prefix + flat.encode()
        )
    assert vocabulary.texts["<s>"].content == b"<s>"
    assert vocabulary.special == {"<s>", "<unk>"} - ({"<unk>"} if make is byte_level else set())


def test_pieces_get_no_space_in_front(tmp_path: Path) -> None:
    for number, make in enumerate((byte_level, blanks, unigram)):
        vocabulary = read(make(330, TEXTS), tmp_path / str(number))
        for text in ("dog", " dog", "s"):
            (ids,) = vocabulary.encode([text], as_piece=True)
            tokens = {number: token for token, number in vocabulary.ids.items()}
            pieces = [vocabulary.texts[tokens[number]].content for number in ids]
            assert b"".join(pieces) == text.encode()
