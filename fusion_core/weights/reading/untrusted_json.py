"""A parser for untrusted JSON: headers, indices and configurations of models.

It is stricter than Python's: no repeated keys, no deep nesting, no crowded text, and no NaN unless
the caller allows it.
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
#: The environment variable for another limit in bytes. The person who runs the program may raise
#: it; a recipe, which comes from anywhere, may not.
HEADER_VARIABLE = "FUSION_LARGEST_HEADER"
#: Bytes of the limit per JSON value. A value of a few characters costs Python fifty times its size,
#: and hostile input must not take hundreds of megabytes before it is refused. A tensor's
#: description has twelve values.
_BYTES_PER_VALUE = 40
_DEEPEST = 64
_LARGEST_NUMBER = 10**100
_SURROGATES = re.compile("[\ud800-\udfff]")


def parse_json(
    text: bytes, *, path: str, constants: bool = False, bytes_per_value: int = _BYTES_PER_VALUE
) -> dict[str, Any]:
    """Parse a JSON object; refuse repeated keys, deep nesting and crowded text.

    NaN and Infinity are refused too, unless `constants` is set, as for configurations. Because
    configurations hold anything, they are then also checked for values that cannot be written
    again.
    """
    count = sum(text.count(mark) for mark in (b",", b":", b"[", b"{"))
    if count > largest_header() // bytes_per_value:
        raise CheckpointError(
            f"{path}: {count} values in {len(text)} bytes of JSON are refused",
            hint=f"If you trust the file, set {HEADER_VARIABLE} to {count * bytes_per_value}.",
        )
    try:
        value = json.loads(
            text.decode("utf-8"),
            object_pairs_hook=_unique_keys,
            parse_float=_finite_float if constants else None,
            parse_constant=float if constants else _refuse_constant,
            parse_int=_parse_integer if b"-0" in text else None,
        )
        if constants:
            _check_writable(value, escaped=b"\\u" in text)
    except (ValueError, RecursionError) as error:
        reason = str(error) or type(error).__name__
        raise CheckpointError(f"{path}: malformed JSON: {reason[:200]}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: expected a JSON object, got another value")
    return value


def largest_header() -> int:
    """Return the most bytes that a header may have."""
    limit = os.environ.get(HEADER_VARIABLE) or str(LARGEST_HEADER)
    if not (limit.isascii() and limit.isdecimal()):
        raise RecipeError(f"{HEADER_VARIABLE}={limit!r} is not a number of bytes")
    return int(limit)


def is_string_map(value: object) -> bool:
    """Tell whether a value maps strings to strings, all of which can be encoded."""
    return isinstance(value, dict) and all(
        isinstance(text, str) and _is_unicode(text) for item in value.items() for text in item
    )


def _is_unicode(text: str) -> bool:
    # JSON can spell half of a surrogate pair, which is not a character.
    return text.isascii() or _SURROGATES.search(text) is None


def _check_writable(value: object, *, escaped: bool) -> None:
    """Raise `ValueError` for what cannot be written again, or would be read as another value."""
    containers = [value]
    for _ in range(_DEEPEST):
        items = [item for container in containers for item in _items(container, with_keys=escaped)]
        for item in items:
            if isinstance(item, int | float) and _LARGEST_NUMBER < abs(item) < math.inf:
                raise ValueError("a number is too large")
            if escaped and isinstance(item, str) and not _is_unicode(item):
                raise ValueError("a text holds half a character")
        containers = [item for item in items if isinstance(item, dict | list)]
    if containers:
        raise ValueError(f"it is nested more than {_DEEPEST} levels deep")


def _items(value: object, *, with_keys: bool) -> Iterable[object]:
    if isinstance(value, dict):
        return [*value, *value.values()] if with_keys else value.values()
    return value if isinstance(value, list) else ()


def _finite_float(digits: str) -> float:
    # 1e999 is not infinity, which is spelt Infinity.
    if math.isinf(number := float(digits)):
        raise ValueError(f"{digits[:20]} is too large a number")
    return number


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    mapping = dict(pairs)
    if len(mapping) != len(pairs):
        raise ValueError("a key is repeated")
    return mapping


def _parse_integer(digits: str) -> float:
    # In Python -0 is the integer 0. In safetensors it is not, so it is no size or offset.
    return -0.0 if digits == "-0" else int(digits)


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")
