"""Which tokens a model knows by which numbers, and how it cuts a text: read from its tokenizer."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import BaseModel, TypeAdapter

from fusion_core.errors import CheckpointError
from fusion_core.files import Refused
from fusion_core.weights import content_of, read_config
from pools_lm.confined.held import READING, SETTINGS, TOKENIZER, Held, in_parts

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from fusion_core.weights import Files

T = TypeVar("T")

#: Files of a tokenizer that say nothing of tokens' numbers.
WITHOUT_NUMBERS = (SETTINGS, "special_tokens_map.json", "chat_template", "additional_chat")
_MOST_TOKENS = 10_000_000


class _Added(BaseModel):
    """How a tokenizer treats a token that was added to its vocabulary."""

    content: str
    single_word: bool
    lstrip: bool
    rstrip: bool
    normalized: bool
    special: bool


class _About(BaseModel):
    numbers: dict[str, int]
    added: list[_Added]


_ABOUT = TypeAdapter(_About)
_TEXT = TypeAdapter[str | None](str | None)
_TEXTS = TypeAdapter[list[str | None] | None](list[str | None] | None)
_ROWS = TypeAdapter[list[list[int]] | None](list[list[int]] | None)


@dataclass(frozen=True)
class Vocabulary:
    """What a tokenizer knows; the tokenizer itself is held by a child process.

    Each method raises `CheckpointError` where a limit of time, memory or size is hit.
    """

    #: every token's number
    numbers: Mapping[str, int]
    #: how the tokens are treated that were added to a vocabulary, special ones among them
    added: Mapping[str, Mapping[str, Any]]
    held: Held

    def texts_of(self, tokens: Sequence[str]) -> list[str | None]:
        """Return the texts that tokens stand for; None for a part of a character."""
        plain = [token for token in tokens if token not in self.added]
        texts = dict(zip(plain, self._work("texts_of", _TEXTS, plain), strict=True))
        return [texts.get(token, token) for token in tokens]

    def pieces(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the numbers of the tokens that texts are cut into."""
        return self._work("pieces", _ROWS, texts)

    def as_json(self) -> Any:  # noqa: ANN401 - JSON
        """Return the content of a `tokenizer.json` that is the same."""
        return json.loads(self.held.ask("as_json", {}, _TEXT, READING))

    def _work(self, do: str, answer: TypeAdapter[list[T] | None], texts: Sequence[str]) -> list[T]:
        answers: list[T] = []
        for part in in_parts(list(map(len, texts))):
            given = list(texts[part])
            answers += self.held.work(do, {"texts": given}, answer, len(given))
        return answers


def identity(files: Files) -> str:
    """Tell the files of tokenizers apart that number tokens differently, without parsing them."""
    digest = hashlib.sha256(json.dumps(_added_by_settings(files), sort_keys=True).encode())
    for name in sorted(files):
        if not name.startswith(WITHOUT_NUMBERS):
            digest.update(f"\0{name}\0".encode() + content_of(files[name]))
    return digest.hexdigest()


def read_vocabulary(files: Files, model: str) -> Vocabulary:
    """Read a model's tokenizer, `config.json` among its files if it has one.

    Where there is no `tokenizer.json`, transformers makes one of what there is. Raises
    `CheckpointError` for what is not a tokenizer, or what only code of its own can make.
    """
    held = Held.of(files, model, "read_vocabulary")
    try:
        about = held.read(_ABOUT)
    except Refused as error:
        raise CheckpointError(
            f"{model}: its tokenizer cannot be read: {error}",
            hint=f"Save it with transformers as a {TOKENIZER}.",
        ) from error
    found = Vocabulary(_numbers(about, files), _added(about, files), held)
    if max(found.numbers.values(), default=0) >= _MOST_TOKENS:
        raise CheckpointError(f"{model}: a token has a number of {_MOST_TOKENS:,} or more")
    return found


def _numbers(about: _About, files: Files) -> dict[str, int]:
    """Return every token's number, those that only `tokenizer_config.json` adds included."""
    more = {str(each["content"]): int(n) for n, each in _added_by_settings(files).items()}
    return {**more, **about.numbers}


def _added(about: _About, files: Files) -> dict[str, dict[str, Any]]:
    found = [*_added_by_settings(files).values(), *(each.model_dump() for each in about.added)]
    known = _Added.model_fields
    return {each["content"]: {k: v for k, v in each.items() if k in known} for each in found}


def _added_by_settings(files: Files) -> dict[str, Any]:
    added = read_json(files[SETTINGS]).get("added_tokens_decoder") if SETTINGS in files else None
    return added if isinstance(added, dict) else {}


def read_json(content: bytes | Path) -> dict[str, Any]:
    """Read a side file that holds a JSON object."""
    if isinstance(content, Path):
        return read_config(content)
    found: dict[str, Any] = json.loads(content)
    return found
