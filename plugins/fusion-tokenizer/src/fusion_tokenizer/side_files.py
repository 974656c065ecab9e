"""The files next to the weights: the donor's tokenizer, and the model's configuration for it.

Ids in configurations mean tokens, so every id of a token is translated, or the model is refused.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from fusion_core.errors import CheckpointError
from fusion_core.weights import read_side_file, select_tokenizer_files
from fusion_tokenizer.models import CONFIG
from fusion_tokenizer.vocabulary import ROLES, SETTINGS

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from fusion_core.weights import Files
    from fusion_tokenizer.models import Side
    from fusion_tokenizer.options import ChatTemplate

GENERATION = "generation_config.json"
_TEMPLATE = "chat_template"
_TEMPLATE_FILES = ("chat_template.jinja", "chat_template.json", "additional_chat_templates/")
_ROLE_KEYS = frozenset(f"{role}_token_id" for role in ROLES)
#: Keys that a configuration always gets, because a model's class has defaults for them.
_MAIN_KEYS = ("bos_token_id", "eos_token_id", "pad_token_id")
_ID_ENDINGS = ("_token_id", "_token_index", "_token_ids")
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
    own = {**model.files}
    for name in select_tokenizer_files(own):
        del own[name]
    files, warnings = _compose_tokenizer(model, donor, chat_template)
    files = {**own, **files}
    config = model.json(CONFIG)
    if not config:
        raise CheckpointError(
            f"{model.label}: missing {CONFIG}",
            hint="Copy it from the model: it states the size of the vocabulary.",
        )
    ids = dict.fromkeys(_MAIN_KEYS) | _ids_by_role(donor) | _stated_ids(donor, CONFIG)
    configs = {CONFIG: _resize(config, rows)}
    if GENERATION in own:
        configs[GENERATION] = model.json(GENERATION)
    for name, content in configs.items():
        ids |= _stated_ids(donor, name)
        kept = {key: value for key, value in content.items() if key not in _ID_LISTS}
        dropped = [key for key in content if key in _ID_LISTS and content[key] is not None]
        if dropped:
            warnings.append(
                f"{name}: left out {', '.join(dropped)}, which list ids of the old tokenizer"
            )
        main = {key: ids[key] for key in _MAIN_KEYS}
        files[name] = _dump({**_translate(kept, ids, model, donor), **main})
    return files, warnings


# --- the tokenizer -------------------------------------------------------------------------------


def _compose_tokenizer(
    model: Side, donor: Side, chat_template: ChatTemplate
) -> tuple[dict[str, bytes | Path], list[str]]:
    """Return the donor's tokenizer files, with the chosen chat template or without one."""
    files = {
        name: content
        for name, content in select_tokenizer_files(donor.files).items()
        if chat_template == "donor" or not name.startswith(_TEMPLATE_FILES)
    }
    settings, warnings = donor.json(SETTINGS), list[str]()
    if chat_template != "donor" and _TEMPLATE in settings:
        files[SETTINGS] = _dump({key: settings[key] for key in settings if key != _TEMPLATE})
    texts = {"donor": _templates(donor), "model": _templates(model)}
    if chat_template == "model":
        files |= {
            name: content
            for name, content in select_tokenizer_files(model.files).items()
            if name.startswith(_TEMPLATE_FILES)
        }
        own_settings = model.json(SETTINGS)
        if _TEMPLATE in own_settings:
            settings = {key: settings[key] for key in settings if key != _TEMPLATE}
            files[SETTINGS] = _dump({**settings, _TEMPLATE: own_settings[_TEMPLATE]})
        warnings += _warn_of_lost_tokens(model, donor, texts["model"])
    if chat_template != "none" and not texts[chat_template]:
        raise CheckpointError(
            f"--chat-template {chat_template}: the {chat_template} has no chat template",
            hint="Leave the option out.",
        )
    if chat_template == "none" and any(texts.values()):
        owners = " and the ".join(owner for owner in ("model", "donor") if texts[owner])
        warnings.append(
            f"the output has no chat template; the {owners} has one: --chat-template"
            if owners in texts
            else f"the output has no chat template; the {owners} have one: --chat-template"
        )
    return files, warnings


def _templates(side: Side) -> str:
    """Return the text of all chat templates of a model, empty if it has none."""
    inside = side.json(SETTINGS).get(_TEMPLATE)
    texts = [json.dumps(inside, ensure_ascii=False)] if inside else []
    texts += [
        read_side_file(content).decode(errors="replace")
        for name, content in side.files.items()
        if name.startswith(_TEMPLATE_FILES)
    ]
    return "\n".join(texts)


def _warn_of_lost_tokens(model: Side, donor: Side, template: str) -> list[str]:
    lost = [
        token
        for token in sorted(model.vocabulary.special)
        if token in template and token not in donor.vocabulary.ids
    ]
    if not lost:
        return []
    return [
        f"the model's chat template uses tokens that the donor lacks: {', '.join(lost)}; the new "
        "tokenizer splits them into pieces"
    ]


# --- ids in configurations -----------------------------------------------------------------------


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
        if known.issuperset(value if isinstance(value, list) else [value])
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
        elif key.endswith(_ID_ENDINGS) and inner is not None:
            numbers = inner if isinstance(inner, list) else [inner]
            others = [_translate_id(key, number, model, donor) for number in numbers]
            translated[key] = others if isinstance(inner, list) else others[0]
        else:
            translated[key] = inner
    return translated


def _translate_id(key: str, number: Any, model: Side, donor: Side) -> int:  # noqa: ANN401 - JSON
    """Return the donor's id of the token with the same text."""
    own = model.vocabulary
    token = next((token for token, known in own.ids.items() if known == number), None)
    twins = (
        twin for twin, text in donor.vocabulary.texts.items() if text == own.texts.get(token or "")
    )
    twin = next(twins, None)
    if token is None or twin is None:
        raise CheckpointError(
            f"{model.label}: {key} is {number}, the token {token!r}, which the donor lacks",
            hint="Add the token to the donor's tokenizer and embeddings, or remove the key from "
            "the model's configuration if nothing needs it.",
        )
    return donor.vocabulary.ids[twin]


def _dump(config: Mapping[str, Any]) -> bytes:
    return json.dumps(config, indent=2, ensure_ascii=False).encode() + b"\n"
