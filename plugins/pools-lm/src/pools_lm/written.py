"""The files of the tokenizer that an output has, whatever model it comes from."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from fusion_core.weights import tokenizer_of
from pools_lm.confined.held import SETTINGS, TOKENIZER
from pools_lm.vocabularies import WITHOUT_NUMBERS, read_json

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from fusion_core.weights import Files
    from pools_lm.tokens import Tokens
    from pools_lm.vocabularies import Vocabulary

CONFIG, GENERATION = "config.json", "generation_config.json"
_ADDED = "added_tokens.json"
#: How a token is treated that was not added where it comes from: as the text that it is.
_PLAIN = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": True}
#: Behind every other piece of a vocabulary with scores.
_WORSE = 10.0


def has_tokenizer(files: Files) -> bool:
    """Tell whether a tokenizer is among a model's files, and more than settings and templates."""
    own = tokenizer_of(files)
    return any(not name.startswith((*WITHOUT_NUMBERS, _ADDED)) for name in own)


def with_tokenizer(files: Files, other: Files) -> dict[str, bytes | Path]:
    """Return a model's files with the tokenizer, chat template and settings of another's.

    The numbers of tokens that `config.json` and `generation_config.json` name are the other's.
    """
    kept = {name: each for name, each in files.items() if name not in tokenizer_of(files)}
    kept.pop(GENERATION, None)
    taken = {GENERATION: other[GENERATION]} if GENERATION in other else {}
    config = {CONFIG: _with_numbers_of(kept[CONFIG], other)} if CONFIG in kept else {}
    return {**kept, **tokenizer_of(other), **taken, **config}


def with_rows(files: Files, before: int, after: int) -> dict[str, bytes | Path]:
    """Return a model's files whose configuration names another number of tokens."""
    if CONFIG not in files or before == after:
        return dict(files)
    return {**files, CONFIG: _as_file(_resized(read_json(files[CONFIG]), before, after))}


def with_tokens(files: Files, tokens: Tokens) -> dict[str, bytes | Path]:
    """Return a tokenizer's files with the tokens that it lacks.

    Those that were added to another tokenizer are added to this one as they are there. Others go
    into the vocabulary, from which a tokenizer makes pieces by rules (merges, scores) that it has
    not got for them: they keep their meaning where they stand as numbers, and plain text is cut as
    before. Files of older kinds beside `tokenizer.json` list the added ones, or stay as they are.
    """
    new = tokens.added
    if not new:
        return dict(files)
    flags = {token: _flags(token, tokens) for token in new}
    added = {token: number for token, number in new.items() if flags[token] is not None}
    entries = {
        number: {"content": token, **(flags[token] or {})} for token, number in added.items()
    }
    found = {**files, TOKENIZER: _extended(tokens.chosen.vocabulary, new, entries)}
    if _ADDED in files:
        found[_ADDED] = _as_file({**read_json(files[_ADDED]), **added})
    settings = read_json(files[SETTINGS]) if SETTINGS in files else {}
    if "added_tokens_decoder" in settings:
        more = {str(number): entry for number, entry in entries.items()}
        decoder = {**settings["added_tokens_decoder"], **more}
        found[SETTINGS] = _as_file({**settings, "added_tokens_decoder": decoder})
    return found


def _flags(token: str, tokens: Tokens) -> dict[str, Any] | None:
    """Return how the first model treats a token to whose vocabulary it was added."""
    found = (model.vocabulary.added.get(token) for model in tokens.models)
    own = next((each for each in found if each is not None), None)
    return None if own is None else {**_PLAIN, "special": False, **own}


def _extended(
    vocabulary: Vocabulary, new: Mapping[str, int], entries: Mapping[int, Mapping[str, Any]]
) -> bytes:
    data = vocabulary.as_json()
    added = [*data["added_tokens"], *({"id": n, **entry} for n, entry in entries.items())]
    data["added_tokens"] = sorted(added, key=lambda each: int(each["id"]))
    model = data["model"]
    plain = {token: number for token, number in new.items() if number not in entries}
    if isinstance(model["vocab"], dict):
        model["vocab"] |= plain
    elif plain:  # a piece's number is its place
        numbers = {number: token for token, number in {**vocabulary.numbers, **new}.items()}
        worst = min(score for _, score in model["vocab"]) - _WORSE
        places = range(len(model["vocab"]), max(plain.values()) + 1)
        model["vocab"] += [[numbers.get(place, f"<{place}>"), worst] for place in places]
    return json.dumps(data, ensure_ascii=False).encode()


def _with_numbers_of(content: bytes | Path, other: Files) -> bytes:
    own = {k: v for k, v in read_json(content).items() if not _is_number(k)}
    theirs = read_json(other[CONFIG]) if CONFIG in other else {}
    return _as_file({**own, **{k: v for k, v in theirs.items() if _is_number(k)}})


def _is_number(key: str) -> bool:
    return key.endswith(("_token_id", "_token_ids"))


def _resized(value: Any, before: int, after: int) -> Any:  # noqa: ANN401 - JSON
    if not isinstance(value, dict):
        return value
    return {
        key: after if (key, each) == ("vocab_size", before) else _resized(each, before, after)
        for key, each in value.items()
    }


def _as_file(content: Mapping[str, Any]) -> bytes:
    return json.dumps(content, indent=2, ensure_ascii=False).encode() + b"\n"
