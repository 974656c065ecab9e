"""Which tokens a model knows by which numbers, and how it cuts a text: read from its tokenizer."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from tokenizers import Tokenizer

from fusion_core.errors import CheckpointError
from fusion_core.weights import content_of, read_config

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from fusion_core.weights import Files

TOKENIZER, SETTINGS = "tokenizer.json", "tokenizer_config.json"
#: Files of a tokenizer that say nothing of tokens' numbers.
WITHOUT_NUMBERS = (SETTINGS, "special_tokens_map.json", "chat_template", "additional_chat")
_MOST_TOKENS = 10_000_000
#: What a piece of a word is put behind to see it as text: decoders treat the first one otherwise.
_BEFORE = "a"


@dataclass(frozen=True)
class Vocabulary:
    """What a tokenizer knows; the tokenizer itself, which is large, is read again when needed."""

    #: every token's number
    numbers: Mapping[str, int]
    #: how the tokens are treated that were added to a vocabulary, special ones among them
    added: Mapping[str, Mapping[str, Any]]
    read: Callable[[], Tokenizer]

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer, as tokenizers has it; kept from now on."""
        return self.read()

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


#: How a tokenizer treats an added token.
_FLAGS = ("content", "single_word", "lstrip", "rstrip", "normalized", "special")


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
    try:
        tokenizer = _tokenizer(files)
        found = Vocabulary(
            _numbers(tokenizer, files), _added(tokenizer, files), partial(_tokenizer, files)
        )
    except Exception as error:  # tokenizers raises plain ones, transformers any
        raise CheckpointError(
            f"{model}: its tokenizer cannot be read: {error}",
            hint=f"Save it with transformers as a {TOKENIZER}.",
        ) from error
    if max(found.numbers.values(), default=0) >= _MOST_TOKENS:
        raise CheckpointError(f"{model}: a token has a number of {_MOST_TOKENS:,} or more")
    return found


def _tokenizer(files: Files) -> Tokenizer:
    if TOKENIZER not in files:
        return _converted(files)
    return Tokenizer.from_buffer(content_of(files[TOKENIZER]))


def _numbers(tokenizer: Tokenizer, files: Files) -> dict[str, int]:
    """Return every token's number, those that only `tokenizer_config.json` adds included."""
    more = {str(each["content"]): int(n) for n, each in _added_by_settings(files).items()}
    return {**more, **tokenizer.get_vocab(with_added_tokens=True)}


def _added(tokenizer: Tokenizer, files: Files) -> dict[str, dict[str, Any]]:
    own = tokenizer.get_added_tokens_decoder().values()
    flags = ({flag: getattr(each, flag) for flag in _FLAGS} for each in own)
    found = [*_added_by_settings(files).values(), *flags]
    return {each["content"]: {k: v for k, v in each.items() if k in _FLAGS} for each in found}


def _converted(files: Files) -> Tokenizer:
    from transformers import AutoTokenizer  # seconds

    with TemporaryDirectory() as folder:
        for name, content in files.items():
            if "/" not in name:
                Path(folder, name).write_bytes(content_of(content))
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
