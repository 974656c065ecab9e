"""The problems and warnings of one import, collected so that the user sees all of them at once."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from fusion_core.commands import similar_names
from fusion_core.errors import RecipeError

if TYPE_CHECKING:
    from collections.abc import Iterable

#: How similar an unknown key must be to a known one to be taken for it.
_CUTOFF = 0.75


@dataclass
class ImportFindings:
    """The problems and warnings of one import, each with its key in the file, in their order."""

    #: what the recipe cannot express
    problems: list[str] = field(default_factory=list)
    #: what has no effect, or a different one
    warnings: list[str] = field(default_factory=list)

    def refuse(self, key: str, reason: str) -> None:
        """Record that the recipe cannot express a key of the file."""
        self._add(self.problems, key, reason)

    def warn(self, key: str, reason: str) -> None:
        """Record that a key of the file has no effect, or a different one."""
        self._add(self.warnings, key, reason)

    def report_unknown(self, key: str, known: Iterable[str], noun: str = "key") -> None:
        """Record an unknown key: a problem if it resembles a known one, else a warning."""
        similar = similar_names(key.rpartition(".")[2], known, cutoff=_CUTOFF)
        if similar:
            self.refuse(key, f"unknown {noun}; did you mean {similar[0]}?")
        else:
            self.warn(key, f"unknown {noun}, ignored")

    def raise_problems(self, origin: str, page: str) -> None:
        """Raise `RecipeError` with all findings. `origin` is the file, `page` the documentation."""
        if self.problems:
            warnings = [f"warning: {warning}" for warning in self.warnings]
            lines = "\n".join(f"  {line}" for line in (*self.problems, *warnings))
            raise RecipeError(
                f"{origin}: a recipe cannot express all of this merge:\n{lines}",
                hint=f"See {page}.",
            )

    @staticmethod
    def _add(entries: list[str], key: str, reason: str) -> None:
        entry = f"{key}: {reason}"
        if entry not in entries:
            entries.append(entry)
