"""Where a model may be written: a free path, or a directory that `fuse` wrote itself.

`--overwrite` deletes what it replaces, so it relies on the provenance that every run leaves in its
output. A directory without one, or with files that it does not list, belongs to somebody else.
Files that `fuse` added after the run are known by their names or their seals.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from fusion_core.errors import CheckpointError, OutputError, RecipeError
from fusion_core.formatting import format_names
from fusion_core.weights.reading.untrusted_json import LARGEST_HEADER
from fusion_core.weights.writing.disk import report_disk_errors, target_of
from fusion_core.weights.writing.ownership import is_directory, read_own_file
from fusion_core.weights.writing.provenance import PROVENANCE, parse_provenance
from fusion_core.weights.writing.sealing import is_sealed

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

#: Files that an evaluation and `fuse report` add to an output.
_ADDED = ("report.json", "outcomes.json", "report.html")
#: The most parts of a side file's name: a folder, and the file in it.
_MOST_PARTS = 2
_WEIGHTS = {".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".gguf", ".h5", ".msgpack", ".onnx"}


def check_output(output: Path, *, overwrite: bool) -> None:
    """Raise `OutputError` if a run must not write to a path, `DiskError` if it cannot be read.

    Raises `RecipeError` for a path that cannot be a directory's.
    """
    try:
        with suppress(OSError):  # reported below
            output.lstat()
    except ValueError as error:  # a NUL, or a lone surrogate
        raise RecipeError(f"invalid output path {str(output)!r}: {error}") from error
    if output.suffix.lower() in _WEIGHTS:
        raise RecipeError(
            f"output {output} looks like a file, but an output is a directory of weights, "
            "configuration and tokenizer",
            hint=f"Leave out {output.suffix}: the weights go to model.safetensors in it.",
        )
    with report_disk_errors(output):
        _check_kind(output)
        _check_parents(output)
        if output.exists() and any(output.iterdir()):
            if not overwrite:
                raise output_exists(output)
            _check_written_by_fuse(output)


def is_side_file_name(name: str) -> bool:
    """Tell whether a side file may have this name: a plain name, or one inside a folder."""
    parts = name.split("/")
    return len(parts) <= _MOST_PARTS and all(
        part not in {"", ".."} and Path(part).name == part for part in parts
    )


def output_exists(output: Path) -> OutputError:
    """Return the error for an existing output that the run must not replace."""
    return OutputError(
        f"output {output} already exists",
        hint="Choose another with -o, or replace it with --overwrite.",
    )


def _check_kind(output: Path) -> None:
    """Raise `OutputError` for a path to which no directory can be renamed."""
    if output.is_symlink():
        raise OutputError(
            f"output {output} is a symbolic link", hint="Name the directory itself with -o."
        )
    if output.exists() and not output.is_dir():
        raise OutputError(f"output {output} is a file", hint="Name another directory with -o.")
    if os.path.ismount(output):
        raise OutputError(f"output {output} is a mount point", hint="Name a directory in it.")
    if Path.cwd().is_relative_to(output.resolve()):
        raise OutputError(
            f"output {output} is the working directory, or contains it",
            hint="Name a directory in it.",
        )


def _check_parents(output: Path) -> None:
    """Raise `OutputError` for a path inside a directory that a run wrote."""
    for parent in output.resolve().parents:
        if _written_files(parent / PROVENANCE) is not None:
            raise OutputError(
                f"output {output} is inside {parent}, which a run of fuse wrote",
                hint="The model there would no longer match its provenance. Choose another with "
                "-o, such as a directory next to it.",
            )


def _check_written_by_fuse(output: Path) -> None:
    """Raise `OutputError` for a directory with anything that no run wrote."""
    written = _written_files(output / PROVENANCE)
    if written is None:
        raise OutputError(
            f"output {output} was not written by fuse: it has no valid {PROVENANCE}",
            hint="--overwrite only replaces outputs of fuse. Choose another output with -o, or "
            "move this directory away.",
        )
    foreign = sorted(_foreign_files(output, written))
    if foreign:
        raise OutputError(
            f"output {output} holds files that fuse did not write: {format_names(foreign)}",
            hint="--overwrite would delete them. Move them away, or choose another output with -o.",
        )


def _foreign_files(output: Path, written: Collection[str]) -> Iterator[str]:
    """Yield the entries of an output, and of its folders, that `fuse` did not write."""
    folders = {name.partition("/")[0] for name in written if "/" in name}
    for path in output.iterdir():
        if not is_directory(path):
            if not (path.name in written or target_of(path) or _is_sealed_file(path)):
                yield path.name
            continue
        members = list(path.iterdir())
        if path.name not in folders and not (members and all(map(_is_sealed_file, members))):
            yield path.name
            continue
        for member in members:
            name = f"{path.name}/{member.name}"
            if (name not in written and not _is_sealed_file(member)) or is_directory(member):
                yield name


def _is_sealed_file(path: Path) -> bool:
    return is_sealed(read_own_file(path, LARGEST_HEADER) or b"")


def _written_files(provenance: Path) -> set[str] | None:
    """Return the names of an output's files, or None for a provenance that `fuse` did not write."""
    text = read_own_file(provenance, LARGEST_HEADER) or b""
    try:
        return {*parse_provenance(text, path=str(provenance)).subject, PROVENANCE, *_ADDED}
    except CheckpointError:
        return None
