"""The child's side: read tokenizers, tokenize texts and render chat templates.

Only the child process imports this module. It runs without torch, so that it starts in a second.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pools_checkpoints import drop_prefix

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    Json = Mapping[str, Any]

#: Number of tokenizers in memory. The parent asks again for one that was evicted.
_CACHE_SIZE = 2
#: Text before a piece when it is decoded, because decoders treat the first piece differently.
_PREFIX = "a"
#: The most tokens besides special ones, such as a mark of spaces, of an empty tokenizer.
_MARKS = 2
#: Flags of an added token.
_FLAGS = ("content", "single_word", "lstrip", "rstrip", "normalized", "special")


def serve() -> Callable[[Json], Any]:
    """Import transformers without torch, and return the function that answers requests."""
    os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    modules: dict[str, Any] = sys.modules
    modules["torch"] = None  # as if it were not installed
    from transformers import AutoTokenizer

    return Worker(AutoTokenizer).answer


class Worker:
    """The tokenizers that the child has read, under the parent's keys."""

    def __init__(self, auto_class: Any) -> None:  # noqa: ANN401 - transformers' class
        self._auto_class = auto_class
        self._tokenizers: dict[str, Any] = {}

    def answer(self, request: Json) -> Any:  # noqa: ANN401 - JSON
        """Call the function that a request names; return None if its tokenizer must be read."""
        options = dict(request)
        do, key = options.pop("do"), options.pop("key")
        if do in _READERS:
            while len(self._tokenizers) >= _CACHE_SIZE:
                del self._tokenizers[next(iter(self._tokenizers))]
            self._tokenizers[key], contents = _READERS[do](self._auto_class, **options)
            return contents
        if key not in self._tokenizers:
            return None
        return _FUNCTIONS[do](self._tokenizers[key], **options)


# --- reading -------------------------------------------------------------------------------------


def read_tokenizer(auto_class: Any, directory: str) -> tuple[Any, Json]:  # noqa: ANN401
    """Read a tokenizer with transformers, and describe it.

    Raises `ValueError` without a vocabulary: transformers then returns one without tokens for many
    types of models, and all texts are empty.
    """
    tokenizer = _load(auto_class, directory)
    declared = getattr(tokenizer, "vocab_files_names", {}).values()
    names = sorted({*declared, "tokenizer.json"})
    is_empty = len(tokenizer) <= len(tokenizer.all_special_ids) + _MARKS
    if declared and is_empty and not any(Path(directory, name).is_file() for name in names):
        raise ValueError(f"{type(tokenizer).__name__} needs one of the files {', '.join(names)}")
    added = getattr(tokenizer, "added_tokens_decoder", {})
    special = {number for number, token in added.items() if token.special}
    facts = {
        "bos": tokenizer.bos_token_id,
        "eos": tokenizer.eos_token_id,
        "has_template": tokenizer.chat_template is not None,
        "length": tokenizer.model_max_length,
        "special": sorted(special.union(tokenizer.all_special_ids)),
    }
    return tokenizer, facts


def read_vocabulary(auto_class: Any, directory: str) -> tuple[Any, Json]:  # noqa: ANN401
    """Read a tokenizer with tokenizers; return its token ids and the flags of added tokens.

    transformers converts older files if there is no `tokenizer.json`.
    """
    from tokenizers import Tokenizer

    file = Path(directory, "tokenizer.json")
    tokenizer: Any = (
        Tokenizer.from_file(str(file))
        if file.is_file()
        else _load(auto_class, directory).backend_tokenizer
    )
    added = tokenizer.get_added_tokens_decoder().values()
    contents = {
        "ids": tokenizer.get_vocab(with_added_tokens=True),
        "added": [{flag: getattr(token, flag) for flag in _FLAGS} for token in added],
    }
    return tokenizer, contents


def _load(auto_class: Any, directory: str) -> Any:  # noqa: ANN401
    return auto_class.from_pretrained(directory, trust_remote_code=False, local_files_only=True)


# --- functions of a transformers tokenizer -------------------------------------------------------


def render(tokenizer: Any, conversations: Sequence[Any]) -> list[str]:  # noqa: ANN401
    """Render conversations with the chat template, up to the start of the model's answer."""
    options = {"tokenize": False, "add_generation_prompt": True}
    return [
        str(tokenizer.apply_chat_template(conversation, **options))
        for conversation in conversations
    ]


def encode(tokenizer: Any, texts: Sequence[str], *, special: bool) -> Any:  # noqa: ANN401
    """Return the token ids of texts, with special tokens around them if `special`."""
    return tokenizer(texts, add_special_tokens=special).input_ids


def encode_rows(
    tokenizer: Any,  # noqa: ANN401
    texts: Sequence[str],
    pairs: Sequence[str] | None,
    length: int,
) -> list[dict[str, Any]]:
    """Return a model's inputs for texts, or for pairs of texts, truncated to `length` tokens."""
    inputs = tokenizer(texts, pairs, truncation=True, max_length=length, return_attention_mask=True)
    return [{name: inputs[name][row] for name in inputs} for row in range(len(texts))]


def decode(tokenizer: Any, rows: Sequence[Sequence[int]]) -> list[str]:  # noqa: ANN401
    """Return the text of each row of token ids, without special tokens."""
    return [str(tokenizer.decode(row, skip_special_tokens=True)) for row in rows]


# --- functions of a tokenizers tokenizer ---------------------------------------------------------


def token_texts(tokenizer: Any, texts: Sequence[str]) -> list[str | None]:  # noqa: ANN401
    """Return the text of each piece of a vocabulary; None for a part of a character."""
    if tokenizer.decoder is None:
        return list(texts)
    decoded = (tokenizer.decoder.decode([_PREFIX, piece]) for piece in texts)
    return [None if "\ufffd" in text else text.removeprefix(_PREFIX) for text in decoded]


def tokenize(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:  # noqa: ANN401
    """Return the token ids of each text, which continues another: no space is put in front."""
    plain = type(tokenizer).from_str(json.dumps(drop_prefix(json.loads(tokenizer.to_str()))))
    return [list(plain.encode(text, add_special_tokens=False).ids) for text in texts]


def as_json(tokenizer: Any) -> str:  # noqa: ANN401
    """Return the content of the tokenizer's `tokenizer.json`."""
    return str(tokenizer.to_str())


_READERS: Mapping[str, Callable[..., tuple[Any, Json]]] = {
    "read_tokenizer": read_tokenizer,
    "read_vocabulary": read_vocabulary,
}
_FUNCTIONS: Mapping[str, Callable[..., Any]] = {
    function.__name__: function
    for function in (render, encode, encode_rows, decode, token_texts, tokenize, as_json)
}
