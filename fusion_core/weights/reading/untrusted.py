"""JSON that nobody vouches for: headers, indices and configurations of models.

Stricter than Python: no key twice, nothing too deep or too crowded, no NaN unless it is asked for.
"""

from __future__ import annotations

import json
import math
import os
import re
from typing import TYPE_CHECKING, Any

from fusion_core.errors import CheckpointError, RecipeError

if TYPE_CHECKING:
    from collections.abc import Iterable

LARGEST_HEADER = 25_000_000
#: The environment variable that sets another limit, in bytes: whoever runs the program may raise
#: it, a recipe, which comes from anywhere, may not.
HEADER_VARIABLE = "FUSION_LARGEST_HEADER"
#: A value of JSON for so many bytes of the limit: one of a few characters costs Python fifty times
#: its size, and hostile input must not take hundreds of megabytes before it is refused. A tensor's
#: description has twelve.
_BYTES_A_VALUE = 40
_DEEPEST = 64
_LARGEST_NUMBER = 10**100
_SURROGATES = re.compile("[\ud800-\udfff]")


def parse_json(
    text: bytes, *, path: str, constants: bool = False, bytes_a_value: int = _BYTES_A_VALUE
) -> dict[str, Any]:
    """Parse a JSON object, refusing repeated keys and anything too deep or too crowded.

    So are NaN and Infinity, which are not JSON, unless `constants`: configurations hold some. They
    may hold anything else, too, and are checked for what cannot be written again.
    """
    values = sum(text.count(mark) for mark in (b",", b":", b"[", b"{"))
    if values > largest_header() // bytes_a_value:
        raise CheckpointError(
            f"{path}: {values} values in {len(text)} bytes of JSON are refused",
            hint=f"If you trust the file, set {HEADER_VARIABLE} to {values * bytes_a_value}.",
        )
    try:
        parsed = json.loads(
            text.decode("utf-8"),
            object_pairs_hook=_unique,
            parse_float=_float if constants else None,
            parse_constant=float if constants else _no_constant,
            parse_int=_integer if b"-0" in text else None,
        )
        if constants:
            _check_writable(parsed, escaped=b"\\u" in text)
    except (ValueError, RecursionError) as error:
        reason = str(error) or type(error).__name__
        raise CheckpointError(f"{path}: malformed JSON: {reason[:200]}") from error
    if not isinstance(parsed, dict):
        raise CheckpointError(f"{path}: the JSON is not an object")
    return parsed


def largest_header() -> int:
    """Return how many bytes a header may have."""
    given = os.environ.get(HEADER_VARIABLE) or str(LARGEST_HEADER)
    if not (given.isascii() and given.isdecimal()):
        raise RecipeError(f"{HEADER_VARIABLE}={given!r} is not a number of bytes")
    return int(given)


def is_text_map(value: object) -> bool:
    """Tell whether a value maps texts to texts, in characters that can be written."""
    return isinstance(value, dict) and all(
        isinstance(each, str) and _is_unicode(each) for pair in value.items() for each in pair
    )


def _is_unicode(text: str) -> bool:
    # JSON can spell half of a surrogate pair, which is not a character.
    return text.isascii() or _SURROGATES.search(text) is None


def _check_writable(parsed: object, *, escaped: bool) -> None:
    """Raise `ValueError` for what cannot be written again, or would be read as another value."""
    level = [parsed]
    for _ in range(_DEEPEST):
        held = [each for value in level for each in _held(value, keys=escaped)]
        for each in held:
            if isinstance(each, int | float) and _LARGEST_NUMBER < abs(each) < math.inf:
                raise ValueError("a number is too large")
            if escaped and isinstance(each, str) and not _is_unicode(each):
                raise ValueError("a text holds half a character")
        level = [each for each in held if isinstance(each, dict | list)]
    if level:
        raise ValueError(f"it is nested more than {_DEEPEST} levels deep")


def _held(value: object, *, keys: bool) -> Iterable[object]:
    if isinstance(value, dict):
        return [*value, *value.values()] if keys else value.values()
    return value if isinstance(value, list) else ()


def _float(digits: str) -> float:
    # 1e999 is not infinity: whoever means that writes Infinity.
    if math.isinf(number := float(digits)):
        raise ValueError(f"{digits[:20]} is too large a number")
    return number


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key is repeated")
    return found


def _integer(digits: str) -> float:
    # To Python -0 is the integer 0; to safetensors it is not, and so not a size or offset.
    return -0.0 if digits == "-0" else int(digits)


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")
