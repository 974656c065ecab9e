"""The vocabulary of a SentencePiece model: the little of protobuf's encoding that this takes."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_VARINT, _EIGHT_BYTES, _BYTES, _FOUR_BYTES = 0, 1, 2, 5
_LONGEST_VARINT = 10
_NORMALIZER = 3


def pieces(model: bytes, *, most: int) -> list[str]:
    """Return the pieces in the order of their numbers.

    A model has them in its field 1, a piece its text. Raises `ValueError` or `IndexError` for what
    is none, and for more than `most`.
    """
    found: list[str] = []
    for field, piece in _fields(model):
        if field == 1:
            found.append(next((text for one, text in _fields(piece) if one == 1), b"").decode())
        if len(found) > most:
            raise ValueError(f"more than {most} pieces")
    if not found:
        raise ValueError("no pieces")
    return found


def normalizer_of(model: bytes, *, most: int) -> bytes:
    """Return the rules by which a model normalizes texts, as they are stored; none are empty.

    A model has them in its field 3. Raises as `pieces` does for anything but a model, and for one
    with more than `most` fields before them.
    """
    for number, (field, rules) in enumerate(_fields(model)):
        if field == _NORMALIZER:
            return rules
        if number > most:
            raise ValueError(f"more than {most} fields")
    return b""


def _fields(message: bytes) -> Iterator[tuple[int, bytes]]:
    """Read a message's fields; numbers, which nobody asks for, come as no bytes."""
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        size, kind = 0, key & 7
        if kind == _VARINT:
            _, at = _varint(message, at)
        elif kind == _BYTES:
            size, at = _varint(message, at)
        elif kind in {_EIGHT_BYTES, _FOUR_BYTES}:
            at += 8 if kind == _EIGHT_BYTES else 4
        else:
            raise ValueError(f"a field of the kind {kind}")
        if at + size > len(message):
            raise ValueError("a field reaches beyond the end")
        yield key >> 3, message[at : at + size]
        at += size


def _varint(message: bytes, at: int) -> tuple[int, int]:
    value = message[at]
    if value < 128:  # noqa: PLR2004 - one byte is enough for most
        return value, at + 1
    value = 0
    for place in range(_LONGEST_VARINT):
        value |= (message[at + place] & 127) << (7 * place)
        if message[at + place] < 128:  # noqa: PLR2004
            return value, at + place + 1
    raise ValueError("a number is too long")
