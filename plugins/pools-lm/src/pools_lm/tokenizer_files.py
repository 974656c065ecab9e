"""Edit the tokenizer files of an output."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from fusion_core.errors import RecipeError
from pools_checkpoints import is_token_id, select_tokenizer_files
from pools_lm.confined.client import SETTINGS, TOKENIZER
from pools_lm.vocabularies import FILES_WITHOUT_IDS, read_json, read_vocabulary

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from fusion_core.weights import Files
    from pools_lm.target_tokens import TargetTokens
    from pools_lm.vocabularies import Vocabulary

CONFIG, GENERATION = "config.json", "generation_config.json"
_ADDED_TOKENS = "added_tokens.json"
#: Flags of a token that its own tokenizer matches as plain text.
_PLAIN = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": True}
#: Distance of new pieces below the score of any split into single characters.
_SCORE_GAP = 10.0
#: A code point that Unicode reserves and no text has.
_NONCHARACTER = "\uffff"
#: Fields of a configuration that hold the number of rows of token tables.
VOCABULARY_SIZES = ("vocab_size", "vocab_size_per_layer_input")


def has_tokenizer(files: Files) -> bool:
    """Tell whether a model's files include a tokenizer, not just settings and templates."""
    names = select_tokenizer_files(files)
    return any(not name.startswith((*FILES_WITHOUT_IDS, _ADDED_TOKENS)) for name in names)


def replace_tokenizer(files: Files, other: Files) -> dict[str, bytes | Path]:
    """Return a model's files with another model's tokenizer, chat template and settings.

    The token ids in `config.json`, at any depth, and `generation_config.json` become the other
    model's.
    """
    old_tokenizer = select_tokenizer_files(files)
    replaced = {
        name: content
        for name, content in files.items()
        if name not in old_tokenizer and name != GENERATION
    }
    replaced |= select_tokenizer_files(other)
    if GENERATION in other:
        replaced[GENERATION] = other[GENERATION]
    if CONFIG in files:
        others = read_json(other[CONFIG]) if CONFIG in other else {}
        replaced[CONFIG] = _dump(_replace_token_ids(read_json(files[CONFIG]), others))
    return replaced


def resize_vocabulary(files: Files, before: int, after: int) -> dict[str, bytes | Path]:
    """Return a model's files with another vocabulary size in the configuration."""
    if CONFIG not in files or before == after:
        return dict(files)
    return {**files, CONFIG: _dump(_replace_size(read_json(files[CONFIG]), before, after))}


def add_tokens(files: Files, target: TargetTokens) -> dict[str, bytes | Path]:
    """Return a tokenizer's files with the tokens that it lacks; reading them gives their ids.

    Added tokens of another tokenizer become added tokens with the same flags, and so do tokens of
    the option `tokens`. Other tokens go into the vocabulary and keep their meaning as ids. BPE has
    no merges that produce them, and Unigram gives them a score below that of any split into single
    characters, so both split text of known characters as before. WordPiece, WordLevel and BPE with
    `ignore_merges` look words up in the vocabulary, so they produce new words. Older files next to
    `tokenizer.json` get the added tokens, or stay the same.
    Raises `RecipeError` if the tokenizer cannot hold the tokens under their ids.
    """
    new = target.added
    if not new:
        return dict(files)
    added: dict[str, int] = {}
    entries: dict[int, dict[str, Any]] = {}
    for token, number in new.items():
        flags = [model.vocabulary.added.get(token) for model in target.models]
        listed: dict[str, Any] | None = {} if token in target.config.tokens else None
        first = next((flag for flag in flags if flag is not None), listed)
        if first is not None:
            added[token] = number
            entries[number] = {"content": token, **_PLAIN, "special": False, **first}
    extended = {**files, TOKENIZER: _extend(target.chosen.vocabulary, new, entries)}
    if _ADDED_TOKENS in files:
        extended[_ADDED_TOKENS] = _dump({**read_json(files[_ADDED_TOKENS]), **added})
    settings = read_json(files[SETTINGS]) if SETTINGS in files else {}
    if "added_tokens_decoder" in settings:
        more = {str(number): entry for number, entry in entries.items()}
        decoder = {**settings["added_tokens_decoder"], **more}
        extended[SETTINGS] = _dump({**settings, "added_tokens_decoder": decoder})
    _check_ids(extended, target)
    return extended


def describe_new_words(files: Files, target: TargetTokens) -> Iterator[str]:
    """Yield a warning if an extended BPE tokenizer looks up the words of other models."""
    if target.added and read_json(files[TOKENIZER])["model"].get("ignore_merges"):
        yield (
            f"tokenizer {target.chosen.name}: its BPE looks whole words up (ignore_merges), so "
            "words that only other models know become tokens of any text. Before, they were split"
        )


def _check_ids(files: Files, target: TargetTokens) -> None:
    """Raise `RecipeError` if a tokenizer, read from its files, has other ids than the target."""
    name = target.chosen.name
    ids = read_vocabulary(files, f"the extended tokenizer of {name}").ids
    wrong = [token for token, number in target.ids.items() if ids.get(token) != number]
    if wrong:
        raise RecipeError(
            f"the tokenizer of {name} cannot be extended: the id of {wrong[0]!r} would be "
            f"{ids.get(wrong[0])}, expected {target.ids[wrong[0]]}",
            hint="Choose one model's tokenizer (model_pool.tokenizer), without `tokens`.",
        )


def _extend(
    vocabulary: Vocabulary, new: Mapping[str, int], entries: Mapping[int, Mapping[str, Any]]
) -> bytes:
    """Return a `tokenizer.json` with new tokens; those in `entries` are added tokens."""
    data = vocabulary.as_json()
    added = [
        *data["added_tokens"],
        *({"id": number, **entry} for number, entry in entries.items()),
    ]
    data["added_tokens"] = sorted(added, key=lambda token: int(token["id"]))
    model = data["model"]
    plain = {token: number for token, number in new.items() if number not in entries}
    if isinstance(model["vocab"], dict):
        if plain:  # or added tokens that the vocabulary lacks would be numbered behind these
            contents = {token["content"]: token["id"] for token in data["added_tokens"]}
            model["vocab"] = contents | model["vocab"] | plain
    elif plain:  # a list of pieces, whose ids are their positions
        tokens = {number: token for token, number in {**vocabulary.ids, **new}.items()}
        numbers = range(len(model["vocab"]), max(plain.values()) + 1)
        pieces = [tokens.get(number, f"{_NONCHARACTER}{number}") for number in numbers]
        lowest = min(0.0, *(score for _, score in model["vocab"]))
        score = max(map(len, pieces)) * lowest - _SCORE_GAP
        model["vocab"] += [[piece, score] for piece in pieces]
    return json.dumps(data, ensure_ascii=False).encode()


def _replace_token_ids(fields: Mapping[str, Any], others: Mapping[str, Any]) -> dict[str, Any]:
    """Return a configuration with another's token ids, also in the parts that both have."""
    replaced = {
        key: _replace_token_ids(value, others[key])
        if isinstance(value, dict) and isinstance(others.get(key), dict)
        else value
        for key, value in fields.items()
        if not is_token_id(key)
    }
    return replaced | {key: value for key, value in others.items() if is_token_id(key)}


def _replace_size(value: Any, before: int, after: int) -> Any:  # noqa: ANN401 - JSON
    if not isinstance(value, dict):
        return value
    return {
        key: after
        if key in VOCABULARY_SIZES and field == before
        else _replace_size(field, before, after)
        for key, field in value.items()
    }


def _dump(fields: Mapping[str, Any]) -> bytes:
    return json.dumps(fields, indent=2, ensure_ascii=False).encode() + b"\n"
