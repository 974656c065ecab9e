"""The files next to the weights: the donor's tokenizer, and the model's configuration for it.

Ids in configurations mean tokens, so every id of a token is translated, or the model is refused.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fusion_core.errors import CheckpointError
from fusion_tokenizer.chat_template import compose_tokenizer, dump
from fusion_tokenizer.models import CONFIG
from fusion_tokenizer.vocabulary import ROLES
from pools_checkpoints import is_token_id, select_tokenizer_files

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from fusion_tokenizer.models import Side
    from fusion_tokenizer.options import ChatTemplate

GENERATION = "generation_config.json"
_ROLE_KEYS = frozenset(f"{role}_token_id" for role in ROLES)
#: Keys that a configuration always gets, because a model's class has defaults for them.
_MAIN_KEYS = ("bos_token_id", "eos_token_id", "pad_token_id")
#: Settings of generation that list ids of tokens, which another tokenizer does not have.
_ID_LISTS = frozenset(
    (
        *("suppress_tokens", "begin_suppress_tokens", "forced_decoder_ids", "bad_words_ids"),
        *("force_words_ids", "sequence_bias", "forced_bos_token_id", "forced_eos_token_id"),
    )
)


def compose_files(
    model: Side, donor: Side, rows: int, chat_template: ChatTemplate
) -> tuple[dict[str, bytes | Path], list[str]]:
    """Return the side files of the output, and warnings about what they leave out.

    Raises `CheckpointError` for a configuration that names a token which the donor lacks.
    """
    old = select_tokenizer_files(model.files)
    others = {name: content for name, content in model.files.items() if name not in old}
    files, warnings = compose_tokenizer(model, donor, chat_template)
    files = {**others, **files}
    config = model.json(CONFIG)
    if not config:
        raise CheckpointError(
            f"{model.label}: missing {CONFIG}",
            hint="Copy it from the model: it states the size of the vocabulary.",
        )
    ids = dict.fromkeys(_MAIN_KEYS) | _ids_by_role(donor) | _stated_ids(donor, CONFIG)
    configs = {CONFIG: _resize(config, rows)}
    if GENERATION in others:
        configs[GENERATION] = model.json(GENERATION)
    for name, content in configs.items():
        ids |= _stated_ids(donor, name)
        usable = {key: value for key, value in content.items() if key not in _ID_LISTS}
        dropped = [key for key in content if key in _ID_LISTS and content[key] is not None]
        if dropped:
            warnings.append(
                f"{name}: left out {', '.join(dropped)}, which list ids of the old tokenizer"
            )
        main = {key: ids[key] for key in _MAIN_KEYS}
        files[name] = dump({**_translate(usable, ids, model, donor), **main})
    return files, warnings


def _ids_by_role(donor: Side) -> dict[str, Any]:
    """Return the ids of the donor's tokens by the keys of their roles."""
    known = donor.vocabulary
    return {f"{role}_token_id": known.ids[token] for role, token in known.roles.items()}


def _stated_ids(donor: Side, file: str) -> dict[str, Any]:
    """Return the ids that a configuration of the donor states, if they are those of tokens."""
    config, known = donor.json(file), frozenset(donor.vocabulary.ids.values())
    stated = {key: config[key] for key in _ROLE_KEYS if config.get(key) is not None}
    return {
        key: value
        for key, value in stated.items()
        if all(
            isinstance(number, int) and number in known
            for number in (value if isinstance(value, list) else [value])
        )
    }


def _resize(config: Mapping[str, Any], rows: int) -> dict[str, Any]:
    """Return a configuration with another vocabulary size, in the part for texts."""
    inner = config.get("text_config")
    if not isinstance(inner, dict):
        return {**config, "vocab_size": rows}
    outer = {"vocab_size": rows} if "vocab_size" in config else {}
    return {**config, **outer, "text_config": _resize(inner, rows)}


def _translate(
    value: Mapping[str, Any], ids: Mapping[str, Any], model: Side, donor: Side
) -> dict[str, Any]:
    """Return a configuration whose ids of tokens are the donor's, at any depth."""
    translated: dict[str, Any] = {}
    for key, inner in value.items():
        if isinstance(inner, dict):
            translated[key] = _translate(inner, ids, model, donor)
        elif key in _ROLE_KEYS:
            translated[key] = ids.get(key)
        elif is_token_id(key) and inner is not None:
            numbers = inner if isinstance(inner, list) else [inner]
            new_ids = [_translate_id(key, number, model, donor) for number in numbers]
            translated[key] = new_ids if isinstance(inner, list) else new_ids[0]
        else:
            translated[key] = inner
    return translated


def _translate_id(key: str, number: Any, model: Side, donor: Side) -> int:  # noqa: ANN401 - JSON
    """Return the donor's id of the token with the same text."""
    vocabulary = model.vocabulary
    token = next((token for token, known in vocabulary.ids.items() if known == number), None)
    text = vocabulary.texts.get(token or "")
    twin = next((twin for twin, other in donor.vocabulary.texts.items() if other == text), None)
    if token is None or twin is None:
        raise CheckpointError(
            f"{model.label}: {key} is {number}, the token {token!r}, which the donor lacks",
            hint="Add the token to the donor's tokenizer and embeddings, or remove the key from "
            "the model's configuration if nothing needs it.",
        )
    return donor.vocabulary.ids[twin]
