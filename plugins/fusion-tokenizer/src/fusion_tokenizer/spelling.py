"""The text of a token behind its spelling, so that tokens of different tokenizers compare.

Byte-level vocabularies write each byte as one letter: " hello" is spelled "Ġhello". SentencePiece
writes a space as "▁", and the bytes of characters that are not in the vocabulary as "<0x0A>".
"""

from __future__ import annotations

import re
from typing import Literal, NamedTuple

Spelling = Literal["bytes", "blanks", "plain"]

_BLANK = "\u2581"
_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class Text(NamedTuple):
    """The text of a token in UTF-8; a part of a character is not a valid text."""

    content: bytes
    #: whether it is a token for one byte, next to tokens for texts
    is_byte: bool = False


def text_of(token: str, spelling: Spelling, *, has_byte_tokens: bool) -> Text:
    """Return the text of a token that is not an added one."""
    if spelling == "bytes":
        try:
            return Text(bytes(_BYTE_OF_LETTER[letter] for letter in token))
        except KeyError:  # not in the byte-level alphabet: a text as it is
            return Text(token.encode(errors="replace"))
    if has_byte_tokens and (match := _BYTE.fullmatch(token)):
        return Text(bytes([int(match[1], 16)]), is_byte=True)
    if spelling == "blanks":
        token = token.replace(_BLANK, " ")
    return Text(token.encode(errors="replace"))


def _letters() -> dict[str, int]:
    """Return the bytes of GPT-2's letters: printable ones as they are, others from 256 on."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = sorted({*range(256)} - {*printable})
    return {
        **{chr(byte): byte for byte in printable},
        **{chr(256 + number): byte for number, byte in enumerate(others)},
    }


_BYTE_OF_LETTER = _letters()
