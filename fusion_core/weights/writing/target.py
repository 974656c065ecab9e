"""Where a model may be written: a path that is free, or a directory that `fuse` wrote itself.

What is replaced is deleted, so `--overwrite` goes by the provenance that every run leaves in its
output: a directory without it, or with files that it does not list, is somebody's own.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from fusion_core.errors import CheckpointError, OutputError, RecipeError
from fusion_core.weights.reading.untrusted import LARGEST_HEADER, parse_json
from fusion_core.weights.writing.disk import target_of, writing
from fusion_core.weights.writing.ours import is_directory, read_ours

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

PROVENANCE = "provenance.json"
#: What an evaluation and `fuse report` add to an output.
_ADDED = ("report.json", "outcomes.json", "report.html")
#: The parts of a side file's name: a folder, and the file in it.
_DEEPEST = 2
_WEIGHTS = {".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".gguf", ".h5", ".msgpack", ".onnx"}


def check_output(output: Path, *, overwrite: bool) -> None:
    """Raise `OutputError` if a run must not write there, `DiskError` if that cannot be told.

    Raises `RecipeError` for a path that no directory should have.
    """
    _check_name(output)
    with writing(output):
        _check_kind(output)
        if output.exists() and any(output.iterdir()):
            if not overwrite:
                raise present(output)
            _check_ours(output)


def is_plain(name: str) -> bool:
    """Tell whether a side file may be called so: a plain name, or one in a folder."""
    parts = name.split("/")
    return len(parts) <= _DEEPEST and all(
        part not in {"", ".."} and Path(part).name == part for part in parts
    )


def present(output: Path) -> OutputError:
    """Return the error for an output that is not to be replaced."""
    return OutputError(
        f"output {output} is already there",
        hint="Choose another with -o, or replace it with --overwrite.",
    )


def _check_name(output: Path) -> None:
    try:
        with suppress(OSError):  # said later
            output.lstat()
    except ValueError as error:  # a NUL, or half of a character
        raise RecipeError(f"output {str(output)!r} cannot be a path: {error}") from error
    if output.suffix.lower() in _WEIGHTS:
        raise RecipeError(
            f"output {output} looks like a file, and an output is a directory: weights with their "
            "configuration and tokenizer",
            hint=f"Leave {output.suffix} out: the weights are in model.safetensors there.",
        )


def _check_kind(output: Path) -> None:
    """Raise `OutputError` for what cannot give its name to another directory."""
    if output.is_symlink():
        raise OutputError(f"output {output} is a symbolic link", hint="Name a directory itself.")
    if output.exists() and not output.is_dir():
        raise OutputError(f"output {output} is a file", hint="Name another directory with -o.")
    if os.path.ismount(output):  # nothing can be renamed to it
        raise OutputError(f"output {output} is a mount point", hint="Name a directory in it.")
    if Path.cwd().is_relative_to(output.resolve()):  # who works there would be left in no place
        raise OutputError(
            f"output {output} is the working directory, or holds it", hint="Name a directory in it."
        )


def _check_ours(output: Path) -> None:
    """Raise `OutputError` for a directory that holds anything that no run wrote."""
    written = _written(output / PROVENANCE)
    if written is None:
        raise OutputError(
            f"output {output} was not written by fuse: it has no {PROVENANCE} of ours",
            hint="--overwrite replaces nothing else. Choose another with -o, or move it away.",
        )
    others = sorted(_others(output, written))
    if others:
        names = ", ".join(others[:3]) + (f" and {len(others) - 3} more" if others[3:] else "")
        raise OutputError(
            f"output {output} holds what fuse did not write there: {names}",
            hint="--overwrite would delete that. Move it away, or choose another output with -o.",
        )


def _others(output: Path, written: Collection[str]) -> Iterator[str]:
    """Yield what lies in an output and was not written by its run; folders are looked into."""
    folders = {name.partition("/")[0] for name in written if "/" in name}
    for path in output.iterdir():
        if not is_directory(path):
            if path.name not in written and target_of(path) is None:
                yield path.name
        elif path.name not in folders:
            yield path.name
        else:
            inner = {f"{path.name}/{each.name}": each for each in path.iterdir()}
            yield from (n for n, each in inner.items() if n not in written or is_directory(each))


def _written(provenance: Path) -> set[str] | None:
    """Return the names of the files of an output; None if that is not what the file says."""
    try:
        said = parse_json(read_ours(provenance, LARGEST_HEADER) or b"", path=str(provenance))
    except CheckpointError:
        return None
    match said:
        case {
            "schema": int(),
            "versions": {"fusion-core": str()},
            "outputs": {"files": dict(files)},
        }:
            return {*files, PROVENANCE, *_ADDED}
    return None
