"""JSON that nobody vouches for: headers, indices and configurations of models.

Stricter than Python: no key twice, nothing too deep or too crowded, no NaN unless it is asked for.
"""

from __future__ import annotations

import json
import os
import re
from typing import Any

from fusion_core.errors import CheckpointError, RecipeError

LARGEST_HEADER = 25_000_000
#: The environment variable that sets another limit, in bytes: whoever runs the program may raise
#: it, a recipe, which comes from anywhere, may not.
HEADER_VARIABLE = "FUSION_LARGEST_HEADER"
#: A value of JSON for so many bytes of the limit: one of a few characters costs Python fifty times
#: its size, and hostile input must not take hundreds of megabytes before it is refused. A tensor's
#: description has twelve.
_BYTES_A_VALUE = 40
_SURROGATES = re.compile("[\ud800-\udfff]")


def parse_json(text: bytes, *, path: str, constants: bool = False) -> dict[str, Any]:
    """Parse a JSON object, refusing repeated keys and anything too deep or too crowded.

    So are NaN and Infinity, which are no JSON, unless `constants`: configurations hold some.
    """
    values = sum(text.count(mark) for mark in (b",", b":", b"[", b"{"))
    if values > largest_header() // _BYTES_A_VALUE:
        raise CheckpointError(
            f"{path}: {values} values in {len(text)} bytes of JSON are refused",
            hint=f"If you trust the file, set {HEADER_VARIABLE} to {values * _BYTES_A_VALUE}.",
        )
    try:
        parsed = json.loads(
            text.decode("utf-8"),
            object_pairs_hook=_unique,
            parse_constant=float if constants else _no_constant,
            parse_int=_integer if b"-0" in text else None,
        )
    except (ValueError, RecursionError) as error:
        reason = str(error) or type(error).__name__
        raise CheckpointError(f"{path}: malformed JSON: {reason[:200]}") from error
    if not isinstance(parsed, dict):
        raise CheckpointError(f"{path}: the JSON is no object")
    return parsed


def largest_header() -> int:
    """Return how many bytes a header may have."""
    given = os.environ.get(HEADER_VARIABLE) or str(LARGEST_HEADER)
    if not (given.isascii() and given.isdecimal()):
        raise RecipeError(f"{HEADER_VARIABLE}={given!r} is no number of bytes")
    return int(given)


def is_text_map(value: object) -> bool:
    """Tell whether a value maps texts to texts, in characters that can be written."""
    return isinstance(value, dict) and all(
        isinstance(each, str) and _is_unicode(each) for pair in value.items() for each in pair
    )


def _is_unicode(text: str) -> bool:
    # JSON can spell half of a surrogate pair, which is no character.
    return text.isascii() or _SURROGATES.search(text) is None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key is repeated")
    return found


def _integer(digits: str) -> float:
    # To Python -0 is the integer 0; to safetensors it is none, and so no size or offset.
    return -0.0 if digits == "-0" else int(digits)


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")
