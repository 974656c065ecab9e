"""The donor's tokenizer files, with the chat template that the user chose, or without one."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from fusion_core.errors import CheckpointError
from fusion_tokenizer.vocabulary import SETTINGS
from pools_checkpoints import read_side_file, select_tokenizer_files

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from fusion_core.weights import Files
    from fusion_tokenizer.models import Side
    from fusion_tokenizer.options import ChatTemplate

_KEY = "chat_template"
_FILES = ("chat_template.jinja", "chat_template.json", "additional_chat_templates/")


def compose_tokenizer(
    model: Side, donor: Side, chat_template: ChatTemplate
) -> tuple[dict[str, bytes | Path], list[str]]:
    """Return the files of the output's tokenizer, and warnings about its chat template.

    Raises `CheckpointError` if the chosen model has no chat template.
    """
    own_files = _template_files(donor)
    files = {
        name: content
        for name, content in select_tokenizer_files(donor.files).items()
        if name not in own_files
    }
    settings, warnings = donor.json(SETTINGS), list[str]()
    changed = {key: value for key, value in settings.items() if key != _KEY}
    if not settings.get("tokenizer_class"):
        # AutoTokenizer would take the class of the model's type, which has splits of its own.
        roles = {f"{role}_token": token for role, token in donor.vocabulary.roles.items()}
        changed = {**roles, **changed, "tokenizer_class": "PreTrainedTokenizerFast"}
    if chat_template == "none":
        warnings += _warn_of_left_out({"model": _texts(model), "donor": _texts(donor)})
    else:
        owner = {"model": model, "donor": donor}[chat_template]
        if not (text := _texts(owner)):
            raise CheckpointError(
                f"--chat-template {chat_template}: the {chat_template} has no chat template",
                hint="Leave the option out.",
            )
        files |= _template_files(owner)
        inside = owner.json(SETTINGS).get(_KEY)
        changed |= {_KEY: inside} if inside else {}
        warnings += _warn_of_lost_tokens(owner, donor, text)
    if changed != settings:
        files[SETTINGS] = dump(changed)
    return files, warnings


def dump(config: Mapping[str, Any]) -> bytes:
    """Return the content of a JSON file."""
    return json.dumps(config, indent=2, ensure_ascii=False).encode() + b"\n"


def _template_files(side: Side) -> Files:
    return {name: file for name, file in side.files.items() if name.startswith(_FILES)}


def _texts(side: Side) -> str:
    """Return the text of all chat templates of a model, empty if it has none."""
    inside = side.json(SETTINGS).get(_KEY)
    texts = [json.dumps(inside, ensure_ascii=False)] if inside else []
    files = _template_files(side).values()
    texts += [read_side_file(file).decode(errors="replace") for file in files]
    return "\n".join(texts)


def _warn_of_left_out(texts: Mapping[str, str]) -> list[str]:
    flags = [f"--chat-template {owner}" for owner, text in texts.items() if text]
    return [f"the output has no chat template: choose one by {' or '.join(flags)}"] if flags else []


def _warn_of_lost_tokens(owner: Side, donor: Side, template: str) -> list[str]:
    lost = [
        token
        for token in sorted(owner.vocabulary.special)
        if token in template and token not in donor.vocabulary.ids
    ]
    message = (
        f"the chat template uses tokens that the donor lacks: {', '.join(lost)}; the new "
        "tokenizer splits them into pieces"
    )
    return [message] if lost else []
