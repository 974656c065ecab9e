"""Makes the module `transplant_models` importable, and saves a model and a donor."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent))

from transplant_models import (
    OTHER_TEXTS,
    TEXTS,
    Models,
    blanks,
    byte_level,
    save_model,
    save_tokenizer,
)


@pytest.fixture
def pair(tmp_path: Path) -> Models:
    """Return a byte-level model and a donor with SentencePiece's spelling."""
    models = Models(tmp_path)
    tokenizer = byte_level(340, TEXTS, "<|begin|>", "<|end|>")
    save_model(models.model, 340, tie_word_embeddings=False)
    save_tokenizer(tokenizer, models.model, bos_token="<|begin|>", eos_token="<|end|>")
    other = blanks(420, TEXTS + OTHER_TEXTS, "<s>", "</s>")
    save_model(
        models.donor,
        other.get_vocab_size(),
        seed=1,
        hidden_size=24,
        bos_token_id=1,
        tie_word_embeddings=False,
    )
    save_tokenizer(other, models.donor, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    return models
