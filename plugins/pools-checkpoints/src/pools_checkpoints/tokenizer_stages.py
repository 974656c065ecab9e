"""The stages of a `tokenizer.json` that put a space in front of a text.

This module imports nothing heavy: child processes that read tokenizers import it.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping


def walk_stages(stage: Any) -> Iterator[dict[str, Any]]:  # noqa: ANN401 - JSON
    """Yield a stage of a tokenizer and all stages inside it."""
    if not isinstance(stage, dict):
        return
    yield stage
    for value in stage.values():
        for inner in value if isinstance(value, list) else ():
            yield from walk_stages(inner)


def drop_prefix(description: Mapping[str, Any]) -> dict[str, Any]:
    """Return the content of a `tokenizer.json` that puts no space in front of a text.

    It splits the text of a token into the pieces that continue a word.
    """
    changed: dict[str, Any] = json.loads(json.dumps(description))
    for section in ("normalizer", "pre_tokenizer"):
        changed[section] = _drop_prepend(changed.get(section))
        for stage in walk_stages(changed[section]):
            if stage.get("type") == "Metaspace":
                stage["prepend_scheme"] = "never"
                stage.pop("add_prefix_space", None)
            elif stage.get("type") == "ByteLevel":
                stage["add_prefix_space"] = False
    return changed


def _drop_prepend(stage: Any) -> Any:  # noqa: ANN401 - JSON
    """Return a stage without those that prepend a text; None if nothing is left."""
    if not isinstance(stage, dict):
        return stage
    if stage.get("type") == "Prepend":
        return None
    return {
        key: [part for part in map(_drop_prepend, value) if part is not None]
        if isinstance(value, list)
        else value
        for key, value in stage.items()
    }
