"""The files next to the weights: configuration, tokenizer, processor.

They are copied by name from fixed lists, and code is never copied. Configurations, including those
of tokenizers and processors, lose the fields that make a loader run code or pick an implementation.
A configuration without such fields keeps its bytes.
"""

from __future__ import annotations

import filecmp
import json
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fusion_core.errors import CheckpointError
from fusion_core.files import read_whole, report_unreadable, resolve_member
from fusion_core.weights import (
    TOKENIZER_FILES,
    change_config,
    drop_dangerous_fields,
    list_side_files,
    read_config,
)

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    import torch

    from fusion_core.weights import Files

CONFIG = "config.json"
#: The most bytes of a file that is parsed, not only copied: Gemma's tokenizer has 33 million.
_LARGEST_FILE = 50_000_000


def is_token_id(key: str) -> bool:
    """Tell whether a key of a configuration has ids of tokens as its value."""
    return key.endswith(("_token_id", "_token_ids", "_token_index"))


def collect_side_files(directory: Path, *more: str) -> dict[str, bytes | Path]:
    """Return the side files of a model directory by name, configurations without dangerous fields.

    `more` are patterns of further files. Raises `CheckpointError` for a link out of the directory,
    whose target would be copied.
    """
    files: dict[str, bytes | Path] = {}
    for name, path in list_side_files(directory, *more).items():
        files[name] = path
        if name.endswith("config.json"):
            config = read_config(directory / name)
            safe = drop_dangerous_fields(config)
            if name == CONFIG or safe != config:
                content = json.dumps(safe, indent=2, ensure_ascii=False)
                files[name] = content.encode() + b"\n"
    return files


def read_side_file(
    file: bytes | Path, largest: int = _LARGEST_FILE, *, hint: str | None = None
) -> bytes:
    """Return the bytes of a side file; raise `CheckpointError` if it exceeds `largest` bytes."""
    return file if isinstance(file, bytes) else read_whole(file, largest, hint=hint)


def is_same_content(
    one: bytes | Path | None, other: bytes | Path | None, largest: float = _LARGEST_FILE
) -> bool:
    """Tell whether two side files hold the same bytes; files of more than `largest` never do."""
    if one is None or other is None:
        return one is other
    sizes = {len(file) if isinstance(file, bytes) else _size_of(file) for file in (one, other)}
    if len(sizes) > 1 or max(sizes) > largest:
        return False
    if isinstance(one, bytes) or isinstance(other, bytes):
        return read_side_file(one, max(sizes)) == read_side_file(other, max(sizes))
    with report_unreadable(one):
        return filecmp.cmp(one, other, shallow=False)


def check_side_files(directory: str, option: str, *more: str) -> Path:
    """Return a directory of side files, which an option names.

    Raises `CheckpointError` if it is missing or holds no side files.
    """
    path = Path(directory)
    if path.is_dir() and list_side_files(path, *more):
        return path
    problem = "has no config.json or tokenizer" if path.is_dir() else "is not a directory"
    raise CheckpointError(
        f"{option}: {directory} {problem}",
        hint="Name a directory with the models' config.json, such as one of save_pretrained.",
    )


def _size_of(file: Path) -> int:
    with report_unreadable(file):
        return resolve_member(file).stat().st_size


def select_tokenizer_files(files: Files) -> dict[str, bytes | Path]:
    """Return the side files that make up the tokenizer."""
    return {
        name: content
        for name, content in files.items()
        if any(fnmatchcase(name, pattern) for pattern in TOKENIZER_FILES)
    }


def resize_vocabulary(files: Files, before: int, after: int) -> dict[str, bytes | Path]:
    """Return side files whose configuration has another vocabulary size, at any depth."""

    def resize(value: Any) -> Any:  # noqa: ANN401 - JSON
        if not isinstance(value, dict):
            return value
        return {
            key: after if (key, inner) == ("vocab_size", before) else resize(inner)
            for key, inner in value.items()
        }

    return change_config(files, resize)


def set_dtype(config: Mapping[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    """Return a configuration that states a dtype."""
    others = {key: value for key, value in config.items() if key != "torch_dtype"}
    return {**others, "dtype": str(dtype).removeprefix("torch.")}


def remove_keys(config: Mapping[str, Any], keys: Collection[str]) -> dict[str, Any]:
    """Return a configuration without some keys, at any depth."""
    return {
        key: remove_keys(value, keys) if isinstance(value, dict) else value
        for key, value in config.items()
        if key not in keys
    }
