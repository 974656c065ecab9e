"""The child's side: read a `tokenizer.json`, and split texts into tokens.

Only the child process imports this module. A tokenizer comes with a model: its regular expressions
may never finish, and its vocabulary may fill the memory.
"""

from __future__ import annotations

import hashlib
import json
import os
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pools_checkpoints import drop_prefix, walk_stages

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    Json = Mapping[str, Any]

#: Models of tokenizers whose tokens are plain pieces of text or bytes.
_MODELS = ("BPE", "Unigram", "WordLevel")
_AFFIXES = ("continuing_subword_prefix", "end_of_word_suffix")
#: The letter that stands for a space in SentencePiece's spelling.
_BLANK = "\u2581"


def serve() -> Callable[[Json], Any]:
    """Return the function that answers requests."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    os.environ["HF_HUB_OFFLINE"] = "1"
    functions: dict[str, Callable[..., Any]] = {
        "describe": describe,
        "encode": encode,
        "load": load,
    }

    def answer(request: Json) -> Any:  # noqa: ANN401 - JSON
        options = dict(request)
        return functions[options.pop("do")](**options)

    return answer


def describe(file: str) -> Json:
    """Return the tokens of a `tokenizer.json`, and how it spells their text."""
    description = _parse(file)
    tokenizer = _load(file, as_piece=False)
    added = tokenizer.get_added_tokens_decoder().values()
    ids = tokenizer.get_vocab(with_added_tokens=True)
    return {
        "ids": ids,
        "unknown": _unknown(description["model"], ids),
        "added": [token.content for token in added],
        "special": [token.content for token in added if token.special],
        "spelling": _spelling(description),
        "has_byte_tokens": bool(description["model"].get("byte_fallback")),
        "digest": hashlib.sha256(tokenizer.to_str().encode()).hexdigest(),
    }


def encode(file: str, texts: Sequence[str], *, as_piece: bool) -> list[list[int]]:
    """Return the token ids of each text, without the special tokens around it.

    With `as_piece`, a text is taken to continue another one, so it gets no space in front.
    """
    encoded = _load(file, as_piece).encode_batch(list(texts), add_special_tokens=False)
    return [list(encoding.ids) for encoding in encoded]


def load(directory: str, loader: str, texts: Sequence[str]) -> Json:
    """Return the class, tokens and ids of texts of a tokenizer that a class of transformers loads.

    `loader` is the name of that class. The code of a model never runs.
    """
    import transformers

    tokenizer = getattr(transformers, loader).from_pretrained(
        directory, local_files_only=True, trust_remote_code=False
    )
    return {
        "kind": type(tokenizer).__name__,
        "tokens": tokenizer.get_vocab(),
        "ids": tokenizer(list(texts), add_special_tokens=False)["input_ids"],
    }


@lru_cache(maxsize=4)
def _load(file: str, as_piece: bool) -> Any:  # noqa: ANN401, FBT001 - part of the cache's key
    from tokenizers import Tokenizer

    description = _parse(file)
    if as_piece:
        description = drop_prefix(description)
    return Tokenizer.from_str(json.dumps({**description, "truncation": None, "padding": None}))


def _parse(file: str) -> dict[str, Any]:
    """Read the file; raise `ValueError` for a tokenizer whose tokens do not have plain texts.

    The parent recognises a kind of tokenizer that is not supported by the first word of the error.
    """
    description: Any = json.loads(Path(file).read_bytes())
    model = description.get("model") if isinstance(description, dict) else None
    if not isinstance(model, dict):
        raise ValueError("expected an object with a model")  # noqa: TRY004 - of a file
    kind = model.get("type") or ("BPE" if "merges" in model else "Unigram")
    if kind not in _MODELS:
        raise ValueError(f"unsupported model {str(kind)[:40]!r}; expected {', '.join(_MODELS)}")
    for affix in _AFFIXES:
        if model.get(affix):
            raise ValueError(f"unsupported spelling of pieces, with a {affix}")
    return {**description}


def _unknown(model: Json, ids: Mapping[str, int]) -> int | None:
    """Return the id that stands for unknown text; None for a tokenizer without one."""
    number = model.get("unk_id")  # of Unigram
    return ids.get(model.get("unk_token") or "") if number is None else int(number)


def _spelling(description: Json) -> str:
    """Return how tokens are spelled: `bytes` (GPT-2's letters), `blanks` (SentencePiece), `plain`.

    The decoder tells, if there is one, because it turns tokens into text.
    """
    for sections in (("decoder",), ("pre_tokenizer", "normalizer")):
        stages = [stage for name in sections for stage in walk_stages(description.get(name))]
        if any(stage.get("type") == "ByteLevel" for stage in stages):
            return "bytes"
        if any(_is_metaspace(stage) for stage in stages):
            return "blanks"
    return "plain"


def _is_metaspace(stage: Json) -> bool:
    """Tell whether a stage exchanges a space and the letter that stands for it."""
    if stage.get("type") == "Replace":
        return _BLANK in (stage.get("content"), dict(stage.get("pattern") or {}).get("String"))
    return stage.get("type") == "Metaspace"
