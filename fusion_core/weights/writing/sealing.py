"""Seals: the mark of a text file that `fuse` adds to an output, and that users may edit.

The last line of a sealed file is a comment with the SHA-256 of the text above it. A file whose seal
matches holds nothing of its user's, so `fuse` may replace or delete it.
"""

from __future__ import annotations

import hashlib
import re

_SEAL = "written by fuse; SHA-256 of the text above: "
_DIGEST = re.compile(re.escape(_SEAL).encode() + rb"([0-9a-f]{64})")


def seal(text: str, comment: str) -> bytes:
    """Return a text as UTF-8, with a seal as its last line.

    `comment` is the format of a comment in the text's language: `# {}` in YAML, `<!-- {} -->` in
    Markdown.
    """
    content = f"{text.rstrip()}\n\n".encode()
    line = comment.format(f"{_SEAL}{hashlib.sha256(content).hexdigest()}")
    return content + f"{line}\n".encode()


def is_sealed(content: bytes) -> bool:
    """Tell whether a file's content has a seal and was not edited since."""
    start = content.rfind(b"\n", 0, -1) + 1
    match = _DIGEST.search(content, start)
    return match is not None and hashlib.sha256(content[:start]).hexdigest() == match[1].decode()
