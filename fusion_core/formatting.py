"""Formatting for people: sizes, suggestions, and text that is safe to print."""

import difflib
import re
from collections.abc import Iterable, Sequence

#: The credentials in front of a URL's host, with a scheme or without, and tokens of the hub.
_SECRETS = re.compile(
    r"""(?<=://)(?:[^\s/@]*|[^\s/@:]*:\S*)(?=@)|[^\s:/@'"]+:[^\s:/@'"]+(?=@[\w\[])"""
    r"""|\bhf_[A-Za-z0-9]{30,}"""
)
#: Names that a long list is cut to.
_MOST_NAMED = 3
_UNITS = ((10**9, "GB"), (10**6, "MB"), (10**3, "kB"))


def format_bytes(count: int) -> str:
    """Format a number of bytes, as in `3.3 MB`."""
    for size, unit in _UNITS:
        if count >= size:
            return f"{count / size:,.1f} {unit}"
    return f"{count} B"


def format_names(names: Sequence[str]) -> str:
    """Format names, the first of many, as in `a, b, c and 2 more`."""
    more = len(names) - _MOST_NAMED
    return ", ".join(names[:_MOST_NAMED]) + (f" and {more} more" if more > 0 else "")


def similar_names(name: str, known: Iterable[str], *, cutoff: float = 0.6) -> list[str]:
    """Return up to three known names similar to `name`, the closest first."""
    return difflib.get_close_matches(name, list(known), cutoff=cutoff)


def suggest(name: str, known: Iterable[str]) -> str:
    """Return a suggestion such as `did you mean ties?`, or "" if no known name is similar."""
    matches = similar_names(name, known)
    return f"did you mean {' or '.join(matches)}?" if matches else ""


def redact_secrets(text: str) -> str:
    """Replace the credentials of URLs and hub tokens in a text by `[...]`."""
    return _SECRETS.sub("[...]", text)


def escape_control(text: str) -> str:
    """Escape control characters, which a terminal would obey: names and paths are untrusted."""
    return "".join(
        char if char.isprintable() or char == "\n" else char.encode("unicode_escape").decode()
        for char in text
    )
