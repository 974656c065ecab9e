"""How numbers and names are shown to people."""

import difflib
import re
from collections.abc import Iterable

#: What stands before the host of a URL, with a scheme or without, and tokens of the hub.
_SECRETS = re.compile(
    r"""(?<=://)(?:[^\s/@]*|[^\s/@:]*:\S*)(?=@)|[^\s:/@'"]+:[^\s:/@'"]+(?=@[\w\[])"""
    r"""|\bhf_[A-Za-z0-9]{30,}"""
)

_UNITS = ((10**9, "GB"), (10**6, "MB"), (10**3, "kB"))


def amount(count: int) -> str:
    """Show a number of bytes, as in `3.3 MB`."""
    for size, unit in _UNITS:
        if count >= size:
            return f"{count / size:,.1f} {unit}"
    return f"{count} B"


def close_to(name: str, known: Iterable[str], *, cutoff: float = 0.6) -> list[str]:
    """Return up to three known names that somebody may have meant, the closest first."""
    return difflib.get_close_matches(name, list(known), cutoff=cutoff)


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Ask after the names that are close, as in `did you mean ties?`; empty where none is."""
    close = close_to(name, known)
    return f"did you mean {' or '.join(close)}?" if close else ""


def without_secrets(text: str) -> str:
    """Return a text without the credentials that URLs and tokens in it hold."""
    return _SECRETS.sub("[...]", text)


def printable(text: str) -> str:
    """Escape what a terminal would obey: names and paths may come from anywhere."""
    return "".join(
        each if each.isprintable() or each == "\n" else each.encode("unicode_escape").decode()
        for each in text
    )
