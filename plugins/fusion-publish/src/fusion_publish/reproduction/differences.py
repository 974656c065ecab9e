"""Differences between the provenance of an output and that of its reproduction."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter

from fusion_core import find_model
from fusion_core.commands import Input
from fusion_core.errors import FusionError
from fusion_publish.verification.record import RECIPE

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from fusion_core.commands import Provenance
    from fusion_core.weights import WeightSource

_INPUTS = TypeAdapter(dict[str, Input])
#: What provenances record of an input's file, and what it is called.
_COMPARED = {
    "bytes": "size",
    "sha256": "SHA-256",
    "header_sha256": "header",
    "content_sha256": "content",
}
#: Digests of a file that two provenances of different versions may share.
_DIGESTS = ("sha256", "shardBlake3", "headerSha256")


def parse_inputs(inputs: Mapping[str, Any]) -> dict[str, Input]:
    """Return the inputs of a planned run as those of a provenance."""
    return _INPUTS.validate_python(dict(inputs))


def compare_inputs(
    recorded: Mapping[str, Input], present: Mapping[str, Input], prefix: str = ""
) -> Iterator[str]:
    """Describe inputs that are certainly not the recorded ones: by headers, sizes and hashes."""
    for name in recorded:
        if name not in present:
            yield f"input {prefix}{name}: missing from the recipe"
    for name, source in present.items():
        if name not in recorded:
            yield f"input {prefix}{name}: not in the provenance"
            continue
        yield from compare_inputs(recorded[name].inputs, source.inputs, f"{prefix}{name}/")
        yield from _compare_files(f"{prefix}{name}", recorded[name], source)


def find_touched_inputs(
    recorded: Mapping[str, Input], present: Mapping[str, Input], prefix: str = ""
) -> Iterator[str]:
    """Describe inputs that may differ: files without a known hash that were written since."""
    for name in (name for name in recorded if name in present):
        nested = recorded[name].inputs, present[name].inputs
        yield from find_touched_inputs(*nested, f"{prefix}{name}/")
        for file, before in recorded[name].files.items():
            now = present[name].files.get(file)
            if now is None or (before.sha256 and before.sha256 == now.sha256):
                continue
            if before.modified_ns != now.modified_ns:
                yield (
                    f"input {prefix}{name}: {file} was written at another time than recorded; its "
                    "header and size are the same, its tensors may differ"
                )


def find_causes(recorded: Provenance, made: Provenance) -> list[str]:
    """Return the recorded differences that can make two results differ, as sentences."""
    before = {**recorded.versions, **recorded.plugins}
    now = {**made.versions, **made.plugins}
    causes = [*find_touched_inputs(recorded.inputs, made.inputs)]
    causes += [
        f"version: {name} was {before[name]}, and is {now.get(name, 'not used')}"
        for name in before
        if before[name] != now.get(name)
    ]
    if recorded.kernels != made.kernels:
        names = (", ".join(side.kernels) or "none" for side in (recorded, made))
        causes.append("kernels: then {}, now {}".format(*names))
    causes += [
        f"{field}: then {then}, now {getattr(made, field)}"
        for field in ("machine", "processor", "device", "threads")
        if (then := getattr(recorded, field)) not in {"", None, getattr(made, field)}
    ]
    return causes


def compare_files(recorded: Provenance, made: Provenance) -> dict[str, bool | None]:
    """Tell of each recorded file whether the reproduction has it with the same digest.

    None means that both have no common digest. The recipe is left out, because its paths start in
    its own directory, and so are files that `fuse run` does not write.
    """
    result: dict[str, bool | None] = {}
    for name in sorted({*recorded.subject, *made.subject} - {RECIPE}):
        digests = [side.subject[name].digest for side in (recorded, made) if name in side.subject]
        if len(digests) == 1:
            result[name] = False
            continue
        common = [key for key in _DIGESTS if key in digests[0] and key in digests[1]]
        result[name] = digests[0][common[0]] == digests[1][common[0]] if common else None
    return result


def find_different_tensors(recorded: Provenance, made: Provenance) -> list[str]:
    """Return the names of tensors with different bytes; none for a provenance of schema 1."""
    before, now = (
        {name: digest for file in side.outputs.tensors.values() for name, digest in file.items()}
        for side in (recorded, made)
    )
    names = before.keys() | now.keys() if before else ()
    return sorted(name for name in names if before.get(name) != now.get(name))


def find_largest_difference(before: Path, now: Path, names: Sequence[str]) -> float | None:
    """Return the largest difference between entries of two models' tensors of these names.

    It is relative to the largest magnitude of the tensor. None if there are no names, or if the
    tensors are not in both directories, as those of a repository on the hub.
    """
    if not names:
        return None
    try:
        old, new = (find_model(str(path), "model").open() for path in (before, now))
    except FusionError:
        return None
    shared = [name for name in names if old.infos.get(name) == new.infos.get(name) is not None]
    return max((_relative_difference(old, new, name) for name in shared), default=None)


def _relative_difference(old: WeightSource, new: WeightSource, name: str) -> float:
    largest = difference = 0.0
    for span in old.ranges(name):
        before, now = (source.read(name, *span).double() for source in (old, new))
        largest = max(largest, float(before.abs().max()))
        difference = max(difference, float((now - before).abs().max()))
    return difference / largest if largest else difference


def _compare_files(name: str, recorded: Input, present: Input) -> Iterator[str]:
    for file in sorted({*recorded.files, *present.files}):
        before, now = recorded.files.get(file), present.files.get(file)
        if before is None or now is None:
            yield f"input {name}: {file} is {'new' if before is None else 'missing'}"
            continue
        for field, what in _COMPARED.items():
            values = getattr(before, field), getattr(now, field)
            if all(values) and values[0] != values[1]:
                yield f"input {name}: {file} has another {what} than recorded"
                break
