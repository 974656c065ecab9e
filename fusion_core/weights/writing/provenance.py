"""The provenance in an output: an in-toto statement of what a run read, did and wrote.

This module is the only reader of `provenance.json`, in the layout of every version. The room
`running` composes the content. docs/reference/provenance.md documents each field.
"""

from __future__ import annotations

import hashlib
import json
import re
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import (
    BaseModel,
    ConfigDict,
    StringConstraints,
    ValidationError,
)

from fusion_core.errors import CheckpointError
from fusion_core.recipe.config import LIVE
from fusion_core.weights.reading.containment import read_whole
from fusion_core.weights.reading.untrusted_json import LARGEST_HEADER, parse_json

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

PROVENANCE = "provenance.json"
STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
#: The type of the predicate. The number is the version of its layout.
PREDICATE_TYPE = "urn:fusion-core:provenance:2"
#: The names of digests of a subject: of a whole file, of a file of tensors, and (in schema 1) of
#: the header alone of a file of tensors.
FILE_DIGEST, SHARD_DIGEST, HEADER_DIGEST = "sha256", "shardBlake3", "headerSha256"

#: The place of the checksum while the checksum is computed.
_BLANK = b"0" * 64
_CHECKSUM = re.compile(rb'(?<="checksum": ")[0-9a-f]{64}(?="\s*[}])')

Digest = Annotated[str, StringConstraints(pattern="^[0-9a-f]{64}$")]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True)


class Subject(_Part):
    """A file that the run wrote."""

    #: by algorithm
    digest: dict[str, Digest] = {}
    bytes: int = 0


class InputFile(_Part):
    """A file that the run read: its size, and the hashes that are known of it."""

    model_config = ConfigDict(frozen=True, extra="allow")

    bytes: int = 0
    #: when the content last changed, in ns
    modified_ns: int | None = None
    #: of the whole file: of files on the hub, and of locked files
    sha256: Digest | None = None
    #: of the header alone
    header_sha256: Digest | None = None
    #: of the parts that the weights depend on, in the configuration of an adapter or a format
    content_sha256: Digest | None = None


class Input(_Part):
    """A merged model: its name or hub commit, its files, and the models of a nested recipe."""

    source: str = ""
    files: dict[str, InputFile] = {}
    inputs: dict[str, Input] = {}
    decoded_from: str = ""

    @property
    def size(self) -> int:
        """The size of the files in bytes; 0 if unknown."""
        return sum(file.bytes for file in self.files.values())


class Stage(_Part):
    """A stage of the algorithm."""

    name: str
    stage: str = "merge"
    plugin: str | None = None
    pipeline: str | None = None


class Outputs(_Part):
    """The digests of the written tensors."""

    tensors_blake3: Digest | None = None
    #: the BLAKE3 of each tensor's bytes, by file and name
    tensors: dict[str, dict[str, Digest]] = {}


class Evaluation(_Part):
    """The measurement that `report.json` holds."""

    tasks: list[str] = []
    measured_on: str | None = None
    transductive: bool | None = None
    #: the identity of each task's data
    data: dict[str, Any] = {}
    #: the SHA-256 of its files, by name
    files: dict[str, Digest] = {}


class RunDetails(_Part):
    """The fields that differ between equal runs."""

    finished: str = ""
    #: of the merge without evaluation
    seconds: float | None = None
    #: of the process until the end of the merge, in bytes
    peak_memory: int | None = None
    evaluation: Evaluation | None = None
    checksum: Digest | None = None


class Provenance(_Part):
    """The content of a `provenance.json`. Fields that an old version did not write are empty."""

    schema_version: int = 2
    #: the written files, by name
    subject: dict[str, Subject] = {}
    versions: dict[str, str] = {}
    plugins: dict[str, str] = {}
    machine: str = ""
    processor: str = ""
    device: str = ""
    threads: int | None = None
    #: the command of `fuse` that wrote the output, if not a run of a recipe
    command: str = ""
    recipe: dict[str, Any] = {}
    inputs: dict[str, Input] = {}
    #: what the models' cards say: licence, its link, languages
    cards: dict[str, dict[str, Any]] = {}
    tasks: dict[str, Any] = {}
    commits: dict[str, str] = {}
    stages: list[Stage] = []
    tensors: dict[str, int] = {}
    matrices: list[dict[str, Any]] = []
    fallbacks: list[dict[str, Any]] = []
    kernels: dict[str, int] = {}
    relaxed: dict[str, str] = {}
    trusted: list[str] = []
    warnings: list[str] = []
    output: dict[str, Any] = {}
    outputs: Outputs = Outputs()
    run: RunDetails = RunDetails()

    @property
    def size(self) -> int:
        """The size of all written files in bytes."""
        return sum(subject.bytes for subject in self.subject.values())

    @property
    def used_live_objects(self) -> bool:
        """Whether the run used live Python objects, so that its recipe cannot be run again."""
        return LIVE in str(self.recipe) or any(not stage.plugin for stage in self.stages)


def read_provenance(directory: Path) -> Provenance:
    """Read the provenance in an output, in the layout of any version.

    Raises `CheckpointError` if it is missing, damaged, or of another tool. Does not compare
    checksums: see `has_valid_checksum`.
    """
    path = directory / PROVENANCE
    return parse_provenance(read_whole(path, LARGEST_HEADER), path=str(path))


def parse_provenance(text: bytes, *, path: str) -> Provenance:
    """Return the provenance that a file's content describes. Raises `CheckpointError`."""
    content = parse_json(text, path=path, constants=True)
    try:
        return Provenance.model_validate(_fields_of(content))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        problem = f"{'.'.join(map(str, first['loc']))}: {first['msg']}".lstrip(": ")
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        problem = str(error)
    raise CheckpointError(f"{path} is not a valid provenance: {problem}")


def encode_statement(statement: Mapping[str, Any]) -> bytes:
    """Return the bytes of a statement, with the checksum of all others in `run.checksum`."""
    predicate = statement["predicate"]
    run = {name: value for name, value in predicate["run"].items() if name != "checksum"}
    run["checksum"] = _BLANK.decode()  # the last key of the file
    content = {**statement, "predicate": {**predicate, "run": run}}
    text = json.dumps(content, indent=2).encode() + b"\n"
    before, _, after = text.rpartition(_BLANK)
    return before + hashlib.sha256(text).hexdigest().encode() + after


def has_valid_checksum(text: bytes) -> bool:
    """Tell whether the bytes of a `provenance.json` still have the checksum that they state."""
    stated = list(_CHECKSUM.finditer(text))
    if not stated:
        return False
    start, stop = stated[-1].span()
    blank = text[:start] + _BLANK + text[stop:]
    return hashlib.sha256(blank).hexdigest().encode() == text[start:stop]


def record_evaluation(text: bytes, evaluation: Evaluation) -> bytes:
    """Return a `provenance.json` with another evaluation.

    A file without a valid checksum stays as it is: one of schema 1, or a damaged one.
    """
    if not has_valid_checksum(text):
        return text
    content = json.loads(text)
    content["predicate"]["run"]["evaluation"] = evaluation.model_dump()
    return encode_statement(content)


def _fields_of(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of `Provenance` in a statement, or in a file of schema 1."""
    kind = content.get("predicateType", content.get("schema"))
    if "fusion-core" not in content.get("predicate", content)["versions"]:
        raise ValueError("versions: missing fusion-core")
    if content.get("_type") == STATEMENT_TYPE and kind == PREDICATE_TYPE:
        subjects = list(_read_subjects(content["subject"]))
        if len({name for name, _ in subjects}) != len(subjects):
            raise ValueError("subject: a name is repeated")
        return {**content["predicate"], "subject": dict(subjects), "schema_version": 2}
    if kind == 1:
        return _fields_of_schema_1(dict(content))
    raise ValueError(f"expected predicateType {PREDICATE_TYPE}, got {str(kind)[:80]!r}")


def _read_subjects(subjects: Iterable[Any]) -> Iterable[tuple[str, Any]]:
    for entry in subjects:
        size = entry.get("annotations", {}).get("bytes", 0)
        yield str(entry["name"]), {"digest": entry["digest"], "bytes": size}


def _fields_of_schema_1(content: dict[str, Any]) -> dict[str, Any]:
    """Rename the fields of schema 1. Its inputs could be lists, one entry per file source."""
    outputs = dict(content.pop("outputs", {}))
    names = {"sha256": FILE_DIGEST, "header_sha256": HEADER_DIGEST}
    subject = {
        name: {
            "bytes": file.get("bytes", 0),
            "digest": {names[key]: file[key] for key in names if key in file},
        }
        for name, file in outputs.get("files", {}).items()
    }
    inputs = {
        name: {"files": {file: data for part in value for file, data in part.items()}}
        if isinstance(value, list)
        else value
        for name, value in content.pop("inputs", {}).items()
    }
    run = content.pop("timings", {})
    return {
        **content,
        "schema_version": content["schema"],
        "subject": subject,
        "inputs": inputs,
        "outputs": outputs,
        "run": run,
    }
