"""Everything that an import has to say: problems and warnings."""

from __future__ import annotations

from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable


@dataclass
class Findings:
    """The findings on one file, in the order of the file."""

    #: what the recipe cannot express, each with its key in the file
    problems: list[str] = field(default_factory=list)
    #: what has no effect, or a different one
    warnings: list[str] = field(default_factory=list)

    def refuse(self, key: str, reason: str) -> None:
        """Record that the recipe cannot express a key of the file."""
        self._add(self.problems, key, reason)

    def warn(self, key: str, reason: str) -> None:
        """Record that a key of the file has no effect, or a different one."""
        self._add(self.warnings, key, reason)

    @staticmethod
    def _add(entries: list[str], key: str, reason: str) -> None:
        entry = f"{key}: {reason}"
        if entry not in entries:
            entries.append(entry)


def guess(name: object, known: Iterable[str]) -> str | None:
    """Return the known name that a misspelt one resembles."""
    return next(iter(get_close_matches(str(name), list(known), n=1, cutoff=0.75)), None)
