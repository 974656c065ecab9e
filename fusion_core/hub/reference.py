"""References to repositories on the hub: `org/name@revision`. This module uses no network."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Literal, Self

from fusion_core.errors import RecipeError

Kind = Literal["model", "dataset"]

_PART = r"(?!.*(?:--|\.\.))[A-Za-z0-9_](?:[A-Za-z0-9_.-]{0,94}[A-Za-z0-9_])?"
_ID = re.compile(rf"(?P<repo>{_PART}/{_PART})(?:@(?P<revision>[A-Za-z0-9_][A-Za-z0-9_./-]*))?")
_COMMIT = re.compile(r"[0-9a-f]{40}")
#: Suffixes of file names, and of names that the hub does not allow.
_FORBIDDEN_SUFFIXES = (".safetensors", ".git")


@dataclass(frozen=True, slots=True)
class Reference:
    """A repository at a revision: a branch, a tag or, once resolved, a commit."""

    repo: str
    revision: str = "main"
    kind: Kind = "model"

    @property
    def is_pinned(self) -> bool:
        """Whether the revision is a commit, which cannot move."""
        return _COMMIT.fullmatch(self.revision) is not None

    def at(self, revision: str) -> Self:
        """Return the same repository at another revision."""
        return replace(self, revision=revision)

    @property
    def key(self) -> str:
        """The text that names this reference among models and data sets: see `parse_key`."""
        return f"{'datasets/' if self.kind == 'dataset' else ''}{self}"

    def __str__(self) -> str:
        return f"{self.repo}@{self.revision}"


def parse_key(text: str) -> Reference:
    """Parse `org/name@revision`, or `datasets/org/name@revision`; raise as `parse` does."""
    name = text.removeprefix("datasets/")
    is_dataset = name != text and name.count("/") > 0
    return parse(name, kind="dataset") if is_dataset else parse(text)


def looks_like_id(text: str) -> bool:
    """Tell whether a text can name a repository, with or without a revision."""
    match = _ID.fullmatch(text)
    return match is not None and not match["repo"].endswith(_FORBIDDEN_SUFFIXES)


def parse(text: str, *, kind: Kind = "model") -> Reference:
    """Parse `org/name` or `org/name@revision`; raise `RecipeError` for anything else."""
    match = _ID.fullmatch(text)
    if match is None or not looks_like_id(text):
        raise RecipeError(
            f"{text!r} does not name a repository on the hub",
            hint="Write org/name, or org/name@revision for a branch, tag or commit.",
        )
    return Reference(match["repo"], match["revision"] or "main", kind)
