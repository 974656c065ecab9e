"""What a repository on the hub is called: `org/name@revision`; plain data, no network."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Literal, Self

from fusion_core.errors import RecipeError

Kind = Literal["model", "dataset"]

_PART = r"(?!.*(?:--|\.\.))[A-Za-z0-9_](?:[A-Za-z0-9_.-]{0,94}[A-Za-z0-9_])?"
_ID = re.compile(rf"(?P<repo>{_PART}/{_PART})(?:@(?P<revision>[A-Za-z0-9_][A-Za-z0-9_./-]*))?")
_COMMIT = re.compile(r"[0-9a-f]{40}")
#: What ends like this is a file's name, or none that the hub gives.
_NO_NAMES = (".safetensors", ".git")


@dataclass(frozen=True, slots=True)
class Reference:
    """A repository at a revision: a branch, a tag or, once it is resolved, a commit."""

    repo: str
    revision: str = "main"
    kind: Kind = "model"

    @property
    def is_pinned(self) -> bool:
        """Whether the revision is a commit, which nothing can move."""
        return _COMMIT.fullmatch(self.revision) is not None

    def at(self, revision: str) -> Self:
        """Return the same repository at another revision."""
        return replace(self, revision=revision)

    def __str__(self) -> str:
        return f"{self.repo}@{self.revision}"


def looks_like_id(text: str) -> bool:
    """Tell whether a text can be the name of a repository, with or without a revision."""
    found = _ID.fullmatch(text)
    return found is not None and not found["repo"].endswith(_NO_NAMES)


def parse(text: str, *, kind: Kind = "model") -> Reference:
    """Read `org/name` or `org/name@revision`; raises `RecipeError` for anything else."""
    found = _ID.fullmatch(text)
    if found is None or not looks_like_id(text):
        raise RecipeError(
            f"{text!r} does not name a repository on the hub",
            hint="Write org/name, or org/name@revision for a branch, tag or commit.",
        )
    return Reference(found["repo"], found["revision"] or "main", kind)
