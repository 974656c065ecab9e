"""Which tokens a model knows by which numbers, and how it cuts a text: read from its tokenizer."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from tokenizers import Tokenizer

from fusion_core.errors import CheckpointError
from fusion_core.weights import read_config

if TYPE_CHECKING:
    from collections.abc import Mapping

    from fusion_core.weights import Files

TOKENIZER, SETTINGS = "tokenizer.json", "tokenizer_config.json"
#: Files of a tokenizer that say nothing of tokens' numbers.
WITHOUT_NUMBERS = (SETTINGS, "special_tokens_map.json", "chat_template", "additional_chat")
_MOST_TOKENS = 10_000_000
#: What a piece of a word is put behind to see it as text: decoders treat the first one otherwise.
_BEFORE = "a"


@dataclass(frozen=True)
class Vocabulary:
    """A tokenizer, as tokenizers has it and as `tokenizer.json` says it."""

    tokenizer: Tokenizer
    #: tokens that only `tokenizer_config.json` adds, as it says them, by their numbers
    settings: Mapping[int, Mapping[str, Any]] = field(default_factory=dict)

    @cached_property
    def data(self) -> dict[str, Any]:
        """The content of `tokenizer.json`."""
        found: dict[str, Any] = json.loads(self.tokenizer.to_str())
        return found

    @cached_property
    def numbers(self) -> dict[str, int]:
        """Every token's number."""
        more = {str(each["content"]): number for number, each in self.settings.items()}
        return {**more, **self.tokenizer.get_vocab(with_added_tokens=True)}

    @cached_property
    def added(self) -> dict[str, dict[str, Any]]:
        """How the tokens are treated that were added to a vocabulary, special ones among them."""
        own = [each for each in self.data["added_tokens"] if each["content"] in self.numbers]
        flags = [*self.settings.values(), *own]
        return {
            each["content"]: {key: value for key, value in each.items() if key not in _NOT_FLAGS}
            for each in flags
        }

    def text_of(self, token: str) -> str | None:
        """Return the text that a token stands for; None for a part of a character."""
        decoder = self.tokenizer.decoder
        if token in self.added or decoder is None:
            return token
        text: str = decoder.decode([_BEFORE, token])
        return None if "\ufffd" in text else text.removeprefix(_BEFORE)

    def pieces(self, text: str) -> list[int]:
        """Return the numbers of the tokens that a text is cut into."""
        return list(self.tokenizer.encode(text, add_special_tokens=False).ids)


_NOT_FLAGS = ("id", "__type")


def identity(files: Files) -> str:
    """Tell the files of tokenizers apart that number tokens differently, without parsing them."""
    digest = hashlib.sha256(json.dumps(_added_by_settings(files), sort_keys=True).encode())
    for name in sorted(files):
        if not name.startswith(WITHOUT_NUMBERS):
            digest.update(f"\0{name}\0".encode() + _bytes(files[name]))
    return digest.hexdigest()


def read_vocabulary(files: Files, model: str) -> Vocabulary:
    """Read a model's tokenizer, `config.json` among its files if it has one.

    Where there is no `tokenizer.json`, transformers makes one of what there is. Raises
    `CheckpointError` for what is not a tokenizer, or what only code of its own can make.
    """
    try:
        has_json = TOKENIZER in files
        made = Tokenizer.from_str(_bytes(files[TOKENIZER]).decode()) if has_json else None
        added = {int(number): each for number, each in _added_by_settings(files).items()}
        found = Vocabulary(made or _converted(files), added)
    except Exception as error:  # tokenizers raises plain ones, transformers any
        raise CheckpointError(
            f"{model}: its tokenizer cannot be read: {error}",
            hint=f"Save it with transformers as a {TOKENIZER}.",
        ) from error
    if max(found.numbers.values(), default=0) >= _MOST_TOKENS:
        raise CheckpointError(f"{model}: a token has a number of {_MOST_TOKENS:,} or more")
    return found


def _converted(files: Files) -> Tokenizer:
    from transformers import AutoTokenizer  # seconds

    with TemporaryDirectory() as folder:
        for name, content in files.items():
            if "/" not in name:
                Path(folder, name).write_bytes(_bytes(content))
        found = AutoTokenizer.from_pretrained(
            folder, trust_remote_code=False, local_files_only=True
        )
        made: Tokenizer = found.backend_tokenizer
        return made


def _added_by_settings(files: Files) -> dict[str, Any]:
    added = read_json(files[SETTINGS]).get("added_tokens_decoder") if SETTINGS in files else None
    return added if isinstance(added, dict) else {}


def read_json(content: bytes | Path) -> dict[str, Any]:
    """Read a side file that holds a JSON object."""
    if isinstance(content, Path):
        return read_config(content)
    found: dict[str, Any] = json.loads(content)
    return found


def _bytes(content: bytes | Path) -> bytes:
    return content if isinstance(content, bytes) else content.read_bytes()
