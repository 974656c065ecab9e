"""Vocabularies: the id of each token and how a tokenizer splits a text, read from its files."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, TypeAdapter

from fusion_core.errors import CheckpointError
from fusion_core.weights import read_config
from pools_checkpoints import WorkFailed, read_side_file
from pools_lm.confined.client import READING, SETTINGS, TOKENIZER, TokenizerClient

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from fusion_core.weights import Files

#: Tokenizer files, by prefix, that do not define token ids.
FILES_WITHOUT_IDS = (
    SETTINGS,
    "special_tokens_map.json",
    "chat_template",
    "additional_chat",
)
_MAX_TOKENS = 10_000_000


class _AddedToken(BaseModel):
    """How a tokenizer treats a token that was added to its vocabulary."""

    content: str
    single_word: bool
    lstrip: bool
    rstrip: bool
    normalized: bool
    special: bool


class _Contents(BaseModel):
    ids: dict[str, int]
    added: list[_AddedToken]


_CONTENTS = TypeAdapter(_Contents)
_TEXT = TypeAdapter[str | None](str | None)
_TEXTS = TypeAdapter[list[str | None] | None](list[str | None] | None)
_ROWS = TypeAdapter[list[list[int]] | None](list[list[int]] | None)


@dataclass(frozen=True)
class Vocabulary:
    """The tokens of a tokenizer, which itself runs in a child process.

    Each method raises `CheckpointError` if it exceeds a limit of time, memory or size.
    """

    #: the id of each token
    ids: Mapping[str, int]
    #: flags of the tokens that were added to the vocabulary, including special ones
    added: Mapping[str, Mapping[str, Any]]
    client: TokenizerClient

    def token_texts(self, tokens: Sequence[str]) -> list[str | None]:
        """Return the text of each token; None for a part of a character."""
        plain = [token for token in tokens if token not in self.added]
        texts = dict(zip(plain, self.client.map_texts("token_texts", plain, _TEXTS), strict=True))
        return [texts.get(token, token) for token in tokens]

    def tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the token ids of each text."""
        return self.client.map_texts("tokenize", texts, _ROWS)

    def as_json(self) -> Any:  # noqa: ANN401 - JSON
        """Return the content of an equivalent `tokenizer.json`."""
        return json.loads(self.client.ask("as_json", {}, _TEXT, READING))


def digest_token_ids(files: Files) -> str:
    """Return a digest of the files that define token ids, without parsing the tokenizer."""
    digest = hashlib.sha256(json.dumps(_added_by_settings(files), sort_keys=True).encode())
    for name in sorted(files):
        if not name.startswith(FILES_WITHOUT_IDS):
            digest.update(f"\0{name}\0".encode() + read_side_file(files[name]))
    return digest.hexdigest()


def read_vocabulary(files: Files, model: str) -> Vocabulary:
    """Read a model's tokenizer; `files` include `config.json` if the model has one.

    transformers converts older files if there is no `tokenizer.json`. Raises `CheckpointError` for
    files that are not a tokenizer, or that need code from the model.
    """
    client = TokenizerClient.of(files, model, "read_vocabulary")
    try:
        contents = client.read(_CONTENTS)
    except WorkFailed as error:
        raise CheckpointError(
            f"{model}: unreadable tokenizer: {error}",
            hint=f"Save it with transformers as {TOKENIZER}.",
        ) from error
    from_settings = _added_by_settings(files)
    ids = {str(token["content"]): int(number) for number, token in from_settings.items()}
    ids |= contents.ids
    known_flags = _AddedToken.model_fields
    added = {
        token["content"]: {flag: value for flag, value in token.items() if flag in known_flags}
        for token in (*from_settings.values(), *(token.model_dump() for token in contents.added))
    }
    if max(ids.values(), default=0) >= _MAX_TOKENS:
        raise CheckpointError(f"{model}: a token id is not below {_MAX_TOKENS:,}")
    return Vocabulary(ids, added, client)


def _added_by_settings(files: Files) -> dict[str, Any]:
    """Return the added tokens by id that `tokenizer_config.json` lists."""
    added = read_json(files[SETTINGS]).get("added_tokens_decoder") if SETTINGS in files else None
    return added if isinstance(added, dict) else {}


def read_json(content: bytes | Path) -> dict[str, Any]:
    """Read a side file that holds a JSON object."""
    if isinstance(content, Path):
        return read_config(content)
    fields: dict[str, Any] = json.loads(content)
    return fields
