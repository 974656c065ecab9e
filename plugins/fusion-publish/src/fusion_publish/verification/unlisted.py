"""The files that may lie in an output without being in its provenance."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

#: Texts for people, which are meant to be edited. Programs that load a model do not read them.
DOCUMENTS = ("*.md", "LICENSE*", "LICENCE*", "NOTICE*", "COPYING*", "*.png", "*.svg", "*.jpg")
#: Files that git and the hub's client keep for themselves. The hub refuses them.
LOCAL = (".git/*", ".cache/huggingface/*")
#: Files about an output that `fuse` and signing add.
MADE = (".eval_results/*.yaml", "report.html", "model.sig")
#: Files that git, the hub and its client, `fuse` and signing add.
ADDED = (*LOCAL, ".gitattributes", ".gitignore", *MADE)


def is_document(name: str) -> bool:
    """Tell whether a file is a text or picture for people."""
    return matches(name, DOCUMENTS)


def is_local(name: str) -> bool:
    """Tell whether a file belongs to git or to the hub's client, and not to the model."""
    return matches(name, LOCAL)


def is_allowed(name: str, patterns: Sequence[str] = ()) -> bool:
    """Tell whether a file may lie in an output although its run did not write it.

    `patterns` are further names with `*`, `?` and `[...]` that the user allows.
    """
    return matches(name, (*DOCUMENTS, *ADDED, *patterns))


def matches(name: str, patterns: Sequence[str]) -> bool:
    """Tell whether a name matches any pattern. `*` matches a `/`, too."""
    return any(fnmatchcase(name, pattern) for pattern in patterns)
