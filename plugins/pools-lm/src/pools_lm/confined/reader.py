"""The child's side: what reads tokenizers, cuts texts and renders chat templates.

Imported by the child process alone, which has no torch: so it starts in a second.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    Json = Mapping[str, Any]

#: How many tokenizers are kept; the parent has one that was dropped read again.
_KEPT = 2
#: What a piece of a word is put behind to see it as text: decoders treat the first one otherwise.
_BEFORE = "a"
#: How a tokenizer treats an added token.
_FLAGS = ("content", "single_word", "lstrip", "rstrip", "normalized", "special")


def serve() -> Callable[[Json], Any]:
    """Import transformers, and return what answers requests."""
    os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    modules: dict[str, Any] = sys.modules
    modules["torch"] = None  # as if it were not installed
    from transformers import AutoTokenizer

    return Reader(AutoTokenizer).answer


class Reader:
    """Tokenizers that were read, by the parent's key for them."""

    def __init__(self, kind: Any) -> None:  # noqa: ANN401 - transformers' class
        self._kind = kind
        self._read: dict[str, Any] = {}

    def answer(self, request: Json) -> Any:  # noqa: ANN401 - JSON
        """Do what a request names; None where its tokenizer has to be read first."""
        options = dict(request)
        do, key = options.pop("do"), options.pop("key")
        if do in _LOADS:
            while len(self._read) >= _KEPT:
                del self._read[next(iter(self._read))]
            self._read[key], about = _LOADS[do](self._kind, **options)
            return about
        return None if key not in self._read else _DOES[do](self._read[key], **options)


# --- reading -------------------------------------------------------------------------------------


def read_tokenizer(kind: Any, folder: str) -> tuple[Any, Json]:  # noqa: ANN401
    """Read a tokenizer as transformers has it, and say what it is."""
    found = _from_folder(kind, folder)
    about = {
        "bos": found.bos_token_id,
        "eos": found.eos_token_id,
        "has_template": found.chat_template is not None,
        "length": found.model_max_length,
    }
    return found, about


def read_vocabulary(kind: Any, folder: str) -> tuple[Any, Json]:  # noqa: ANN401
    """Read a tokenizer as tokenizers has it: every token's number, and how added ones behave.

    Where there is no `tokenizer.json`, transformers makes one of what there is.
    """
    from tokenizers import Tokenizer

    file = Path(folder, "tokenizer.json")
    found: Any = (
        Tokenizer.from_file(str(file))
        if file.is_file()
        else _from_folder(kind, folder).backend_tokenizer
    )
    added = found.get_added_tokens_decoder().values()
    about = {
        "numbers": found.get_vocab(with_added_tokens=True),
        "added": [{flag: getattr(token, flag) for flag in _FLAGS} for token in added],
    }
    return found, about


def _from_folder(kind: Any, folder: str) -> Any:  # noqa: ANN401
    return kind.from_pretrained(folder, trust_remote_code=False, local_files_only=True)


# --- work by a tokenizer of transformers ---------------------------------------------------------


def render(tokenizer: Any, conversations: Sequence[Any]) -> list[str]:  # noqa: ANN401
    """Write conversations through the chat template, up to where a model answers."""
    how = {"tokenize": False, "add_generation_prompt": True}
    return [
        str(tokenizer.apply_chat_template(conversation, **how)) for conversation in conversations
    ]


def encode(tokenizer: Any, texts: Sequence[str], *, special: bool) -> Any:  # noqa: ANN401
    """Return the tokens of texts, with those around them if `special`."""
    return tokenizer(texts, add_special_tokens=special).input_ids


def encode_rows(
    tokenizer: Any,  # noqa: ANN401
    texts: Sequence[str],
    pairs: Sequence[str] | None,
    length: int,
) -> list[dict[str, Any]]:
    """Return what a model reads of texts, or of pairs that are read together, without their end."""
    how = {"truncation": True, "max_length": length, "return_attention_mask": True}
    found = tokenizer(texts, pairs, **how)
    return [{name: found[name][row] for name in found} for row in range(len(texts))]


def decode(tokenizer: Any, rows: Sequence[Sequence[int]]) -> list[str]:  # noqa: ANN401
    """Return what tokens say, without special ones."""
    return [str(tokenizer.decode(row, skip_special_tokens=True)) for row in rows]


# --- work by a tokenizer of tokenizers -----------------------------------------------------------


def texts_of(tokenizer: Any, texts: Sequence[str]) -> list[str | None]:  # noqa: ANN401
    """Return the text of each piece of a vocabulary; None for a part of a character."""
    if tokenizer.decoder is None:
        return list(texts)
    found = (tokenizer.decoder.decode([_BEFORE, piece]) for piece in texts)
    return [None if "\ufffd" in text else text.removeprefix(_BEFORE) for text in found]


def pieces(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:  # noqa: ANN401
    """Return the numbers of the tokens that texts are cut into."""
    return [list(tokenizer.encode(text, add_special_tokens=False).ids) for text in texts]


def as_json(tokenizer: Any) -> str:  # noqa: ANN401
    """Return the tokenizer as the content of a `tokenizer.json`."""
    return str(tokenizer.to_str())


_LOADS: Mapping[str, Callable[..., tuple[Any, Json]]] = {
    "read_tokenizer": read_tokenizer,
    "read_vocabulary": read_vocabulary,
}
_DOES: Mapping[str, Callable[..., Any]] = {
    each.__name__: each for each in (render, encode, encode_rows, decode, texts_of, pieces, as_json)
}
