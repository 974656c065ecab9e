"""Compare the files of an output with its provenance."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from fusion_core.commands import has_valid_checksum
from fusion_core.errors import CheckpointError
from fusion_core.files import (
    hash_shard,
    open_named,
    report_unreadable,
    resolve_member,
    tensors_digest,
)
from fusion_publish.verification.findings import Finding, Status, Verification
from fusion_publish.verification.record import PROVENANCE, load_provenance
from fusion_publish.verification.unlisted import is_allowed, is_document

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence
    from pathlib import Path

    from fusion_core.commands import Provenance
    from fusion_core.weights import TensorInfo

_MOST_NAMES = 3
_NO_CHECKSUM = (
    "schema 1 has no checksum of its own, and none of report.json; one digest covers the tensors "
    "of all files"
)


def list_names(directory: Path) -> list[str]:
    """Return the files of a directory and of its folders, by relative path."""
    paths = sorted(path for path in directory.rglob("*") if path.is_symlink() or not path.is_dir())
    return [path.relative_to(directory).as_posix() for path in paths]


def verify(
    directory: Path,
    *,
    subject: str,
    names: Collection[str] | None = None,
    allow: Sequence[str] = (),
) -> Verification:
    """Compare a directory with the provenance in it.

    `names` are the files of the model, by default those of the directory. Files that match a
    pattern of `allow` may be added. Raises `IntegrityError` for a missing or malformed provenance.
    """
    text, provenance = load_provenance(directory, subject)
    present = frozenset(list_names(directory) if names is None else names)
    comparison = _Comparison(directory, provenance, present)
    findings = [
        _check_provenance(text, provenance),
        *(comparison.compare(name) for name in sorted(provenance.subject)),
        *comparison.compare_report(),
    ]
    findings += _check_tensors(provenance, comparison.tensors, findings)
    by_name = {finding.file: finding for finding in findings}  # the last one counts
    by_name |= {name: _judge(directory, name, allow) for name in sorted(present - by_name.keys())}
    limits = (_NO_CHECKSUM,) if provenance.schema_version == 1 else ()
    return Verification(subject, tuple(by_name.values()), len(comparison.tensors), limits)


def check_record(directory: Path, text: bytes, provenance: Provenance, name: str) -> Finding:
    """Compare one file that the run wrote, and the provenance itself, with the provenance."""
    finding = _check_provenance(text, provenance)
    if finding.status.is_fault:
        return finding
    present = frozenset({name} if (directory / name).is_file() else ())
    return _Comparison(directory, provenance, present).compare(name)


def _check_provenance(text: bytes, provenance: Provenance) -> Finding:
    if provenance.schema_version == 1:
        return Finding(PROVENANCE, Status.NOT_COVERED, "schema 1")
    shards = {name for name, file in provenance.subject.items() if "shardBlake3" in file.digest}
    if not has_valid_checksum(text):
        return Finding(PROVENANCE, Status.CHANGED, "checksum mismatch")
    if provenance.outputs.tensors.keys() != shards:
        return Finding(PROVENANCE, Status.CHANGED, "outputs.tensors and subject differ in files")
    return Finding(PROVENANCE, Status.OK)


@dataclass
class _Comparison:
    """The comparison of a directory's files with their digests."""

    directory: Path
    provenance: Provenance
    present: frozenset[str]
    #: the tensors of all readable files: description and digest
    tensors: dict[str, tuple[TensorInfo, str]] = field(default_factory=dict)

    def compare(self, name: str) -> Finding:
        """Compare a file that the run wrote."""
        return self._compare(name, self.provenance.subject[name].digest)

    def compare_report(self) -> Iterator[Finding]:
        """Compare the files of the evaluation."""
        evaluation = self.provenance.run.evaluation
        files = {} if evaluation is None else evaluation.files
        for name, digest in files.items():
            yield self._compare(name, {"sha256": digest})
        if self.provenance.schema_version == 1:
            for name in sorted(self.present & {"report.json", "outcomes.json"}):
                yield Finding(name, Status.NOT_COVERED, "schema 1")

    def _compare(self, name: str, digests: Mapping[str, str]) -> Finding:
        if name not in self.present:
            return Finding(name, Status.MISSING)
        try:
            if "sha256" in digests:
                return self._compare_content(name, digests["sha256"])
            return self._compare_shard(name, digests)
        except CheckpointError as error:
            is_refused = isinstance(error.__cause__, PermissionError)
            status = Status.UNREADABLE if is_refused else Status.CHANGED
            return Finding(name, status, error.message)

    def _compare_content(self, name: str, expected: str) -> Finding:
        path = resolve_member(self.directory / name)
        with report_unreadable(path), os.fdopen(open_named(path), "rb") as stream:
            actual = hashlib.file_digest(stream, "sha256").hexdigest()
        if actual == expected:
            return Finding(name, Status.OK)
        status = Status.EDITED if is_document(name) else Status.CHANGED
        return Finding(name, status, f"expected SHA-256 {expected[:12]}..., got {actual[:12]}...")

    def _compare_shard(self, name: str, digests: Mapping[str, str]) -> Finding:
        shard = hash_shard(self.directory / name)
        self.tensors |= shard.tensors
        recorded = self.provenance.outputs.tensors.get(name, {})
        actual = {tensor: digest for tensor, (_, digest) in shard.tensors.items()}
        changes = list(_describe_changes(recorded, actual)) if recorded else []
        expected_header = digests.get("headerSha256")  # of schema 1
        if expected_header is not None:
            is_same = hashlib.sha256(shard.header).hexdigest() == expected_header
        else:
            is_same = shard.digest == digests.get("shardBlake3")
        if not is_same and not changes:
            changes.append("the header differs")
        return Finding(name, Status.CHANGED if changes else Status.OK, "; ".join(changes))


def _describe_changes(recorded: Mapping[str, str], actual: Mapping[str, str]) -> Iterator[str]:
    """Describe the tensors that differ from their record."""
    groups = {
        "missing": [name for name in recorded if name not in actual],
        "unexpected": [name for name in actual if name not in recorded],
        "changed": [name for name in actual if recorded.get(name, actual[name]) != actual[name]],
    }
    for kind, names in groups.items():
        if names:
            more = f" and {len(names) - _MOST_NAMES} more" if names[_MOST_NAMES:] else ""
            yield f"{kind}: {', '.join(names[:_MOST_NAMES])}{more}"


def _check_tensors(
    provenance: Provenance,
    tensors: Mapping[str, tuple[TensorInfo, str]],
    findings: Sequence[Finding],
) -> Iterator[Finding]:
    """Compare the digest of all tensors, unless a file of tensors is known to differ."""
    shards = [name for name, file in provenance.subject.items() if "sha256" not in file.digest]
    if any(finding.status.is_fault for finding in findings if finding.file in shards):
        return
    if tensors_digest(tensors) == provenance.outputs.tensors_blake3:
        return
    detail = "outputs.tensors_blake3 is not the digest of the tensors"
    files = shards if provenance.schema_version == 1 else [PROVENANCE]
    yield from (Finding(name, Status.CHANGED, detail) for name in files)


def _judge(directory: Path, name: str, allow: Sequence[str]) -> Finding:
    path = directory / name
    try:
        if path.is_symlink():  # it could lead to any file, and be published
            resolve_member(path)
    except CheckpointError as error:
        return Finding(name, Status.UNEXPECTED, error.message)
    if is_allowed(name, allow):
        return Finding(name, Status.NOT_COVERED)
    return Finding(name, Status.UNEXPECTED, "the run did not write it")
