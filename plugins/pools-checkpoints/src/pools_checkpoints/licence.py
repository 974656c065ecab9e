"""The licence that a model card names."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from fusion_core.commands import load_yaml
from fusion_core.errors import RecipeError
from fusion_core.files import report_unreadable

if TYPE_CHECKING:
    from pathlib import Path

CARD = "README.md"
_LARGEST_CARD = 2**20
_LICENCE = re.compile(r"^licen[sc]e(_name)?:.*(?:\r?\n(?:[ \t]|- ).*)*", re.MULTILINE)
_FRONT_MATTER = re.compile(r"\A\ufeff?\s*---\r?\n(.*?)\r?\n---[ \t]*(?:\r?\n|\Z)", re.DOTALL)


def read_licence(directory: Path) -> str | None:
    """Return the licence that the model card in a directory names, None if it names none."""
    card = directory / CARD
    with report_unreadable(card):
        if not card.is_file():
            return None
        with card.open(encoding="utf-8", errors="replace") as stream:
            front_matter = _FRONT_MATTER.match(stream.read(_LARGEST_CARD))
    if front_matter is None:
        return None
    lines = "\n".join(match[0] for match in _LICENCE.finditer(front_matter[1]))
    try:
        fields = load_yaml(lines, origin=str(card))
    except RecipeError:
        return None
    if not isinstance(fields, dict):
        return None
    licence = fields.get("license", fields.get("licence"))
    if isinstance(licence, list):
        licence = ", ".join(map(str, licence))
    if licence == "other":
        licence = fields.get("license_name") or licence
    return str(licence) if licence else None
