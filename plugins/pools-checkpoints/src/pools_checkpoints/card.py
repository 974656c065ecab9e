"""The facts that a model card states: licence and languages."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from fusion_core.commands import load_yaml
from fusion_core.errors import RecipeError
from fusion_core.files import report_unreadable

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

CARD = "README.md"
_LARGEST_CARD = 2**20
#: The fields that are read. The others of a card may be large, or no YAML that is accepted here.
_FIELDS = re.compile(
    r"^(?:licen[sc]e(?:_name|_link)?|language):.*(?:\r?\n(?:[ \t]|- ).*)*", re.MULTILINE
)
_FRONT_MATTER = re.compile(r"\A\ufeff?\s*---\r?\n(.*?)\r?\n---[ \t]*(?:\r?\n|\Z)", re.DOTALL)


def read_card(directory: Path) -> dict[str, Any]:
    """Return the facts that the model card in a directory states, as `ModelPool.cards` names them.

    A missing or unreadable YAML block has none. Raises `CheckpointError` for a file that cannot be
    opened.
    """
    fields = _read_fields(directory / CARD)
    facts = {
        "licence": _licence(fields),
        "licence_link": _text(fields.get("license_link")),
        "languages": _texts(fields.get("language")),
    }
    return {name: fact for name, fact in facts.items() if fact}


def _read_fields(card: Path) -> Mapping[str, Any]:
    with report_unreadable(card):
        if not card.is_file():
            return {}
        with card.open(encoding="utf-8", errors="replace") as stream:
            front_matter = _FRONT_MATTER.match(stream.read(_LARGEST_CARD))
    if front_matter is None:
        return {}
    lines = "\n".join(match[0] for match in _FIELDS.finditer(front_matter[1]))
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
