"""The fields of a card: a model's licence and languages, a data set's configurations."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from fusion_core.commands import load_yaml
from fusion_core.errors import RecipeError
from fusion_core.files import report_unreadable

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

CARD = "README.md"
_LARGEST_CARD = 2**20
_FACTS = ("license", "licence", "license_name", "license_link", "language")
_FRONT_MATTER = re.compile(r"\A\ufeff?\s*---\r?\n(.*?)\r?\n---[ \t]*(?:\r?\n|\Z)", re.DOTALL)


def read_card(directory: Path) -> dict[str, Any]:
    """Return the facts that the model card in a directory states, as `ModelPool.cards` names them.

    A missing or unreadable YAML block has none. Raises `CheckpointError` for a file that cannot be
    opened.
    """
    fields = read_card_fields(directory / CARD, _FACTS)
    facts = {
        "licence": _licence(fields),
        "licence_link": _text(fields.get("license_link")),
        "languages": _texts(fields.get("language")),
    }
    return {name: fact for name, fact in facts.items() if fact}


def read_card_fields(card: Path, names: Sequence[str]) -> Mapping[str, Any]:
    """Return some fields of the YAML block of a card, none if it is missing or unreadable.

    The other fields are not parsed: they may be large, or no YAML that is accepted here. Raises
    `CheckpointError` for a file that cannot be opened.
    """
    with report_unreadable(card):
        if not card.is_file():
            return {}
        with card.open(encoding="utf-8", errors="replace") as stream:
            front_matter = _FRONT_MATTER.match(stream.read(_LARGEST_CARD))
    if front_matter is None:
        return {}
    field = re.compile(rf"^(?:{'|'.join(names)}):.*(?:\r?\n(?:[ \t]|- ).*)*", re.MULTILINE)
    lines = "\n".join(match[0] for match in field.finditer(front_matter[1]))
    try:
        fields = load_yaml(lines, origin=str(card))
    except RecipeError:
        return {}
    return fields if isinstance(fields, dict) else {}


def _licence(fields: Mapping[str, Any]) -> str | None:
    licence = ", ".join(_texts(fields.get("license", fields.get("licence"))))
    return _text(fields.get("license_name")) or licence if licence == "other" else licence


def _texts(value: object) -> list[str]:
    values = value if isinstance(value, list) else [value]
    return [text for text in map(_text, values) if text]


def _text(value: object) -> str | None:
    return None if value is None else str(value)
