"""The findings of a verification, one per file."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

from fusion_core.errors import IntegrityError


class Status(StrEnum):
    """The state of a file, compared with the provenance."""

    OK = "ok"
    CHANGED = "changed"
    MISSING = "missing"
    #: a file that the system does not let this user read
    UNREADABLE = "unreadable"
    UNEXPECTED = "unexpected"
    #: a document that was changed, which is allowed
    EDITED = "edited"
    #: a file that the provenance does not describe, which is allowed
    NOT_COVERED = "not covered"

    @property
    def is_fault(self) -> bool:
        """Whether a directory with such a file does not verify."""
        return self in {
            Status.CHANGED,
            Status.MISSING,
            Status.UNREADABLE,
            Status.UNEXPECTED,
        }


@dataclass(frozen=True, slots=True)
class Finding:
    """A file and its state."""

    file: str
    status: Status
    detail: str = ""


@dataclass(frozen=True)
class Verification:
    """The findings about a model directory, or about a repository at a commit."""

    subject: str
    findings: tuple[Finding, ...]
    tensors: int
    #: limits of the provenance that was compared
    limits: tuple[str, ...] = ()

    @property
    def faults(self) -> list[Finding]:
        """The files because of which the directory does not verify."""
        return [finding for finding in self.findings if finding.status.is_fault]

    def raise_faults(self) -> None:
        """Raise `IntegrityError` naming every file that is not as the provenance says."""
        if not self.faults:
            return
        names = ", ".join(f"{fault.file} ({fault.status})" for fault in self.faults)
        raise IntegrityError(
            f"{self.subject} is not as its provenance describes it: {names}",
            hint="Restore the files, or make the model again: fuse run recipe.yaml -o DIR. "
            "Move added files away; fuse verify accepts them with --allow PATTERN.",
        )

    def as_json(self) -> dict[str, Any]:
        """Return the data that `--json` prints."""
        return {
            "subject": self.subject,
            "verified": not self.faults,
            "tensors": self.tensors,
            "files": [asdict(finding) for finding in self.findings],
            "limits": list(self.limits),
        }
