"""The files next to the weights: configuration, tokenizer, processor, and the card's licence.

They are copied by name from fixed lists, and code is never copied. Configurations, including those
of tokenizers and processors, lose the fields that make a loader run code or pick an implementation.
A configuration without such fields keeps its bytes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fusion_core.errors import CheckpointError, RecipeError
from fusion_core.recipe.text import load_yaml
from fusion_core.weights.reading.containment import read_whole, report_unreadable, resolve_member
from fusion_core.weights.reading.format import LARGEST_INDEX
from fusion_core.weights.reading.untrusted_json import parse_json

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Sequence

    import torch

#: Files by name, with `/` for those in folders. A value is a path, or the content itself.
Files = Mapping[str, bytes | Path]

CONFIG = "config.json"
_TOKENIZER = (
    "chat_template.jinja",
    "additional_chat_templates/*.jinja",
    "chat_template.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "spiece.model",
    "spm.model",
    "sentencepiece.bpe.model",
    "source.spm",
    "target.spm",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "bpe.codes",
    "tekken.json",
    "normalizer.json",
)
#: Names and patterns of the files that accompany the weights.
SIDE_FILES = (
    CONFIG,
    "generation_config.json",
    "preprocessor_config.json",
    "video_preprocessor_config.json",
    "processor_config.json",
    *_TOKENIZER,
)
#: The most bytes of a file that is parsed, not only copied: Gemma's tokenizer has 33 million.
LARGEST_TOKENIZER = 50_000_000
#: The model card: read for its licence, never copied.
CARD = "README.md"
_LARGEST_CARD = 2**20
_LICENCE = re.compile(r"^licen[sc]e(_name)?:.*(?:\r?\n(?:[ \t]|- ).*)*", re.MULTILINE)
_FRONT_MATTER = re.compile(r"\A\ufeff?\s*---\r?\n(.*?)\r?\n---[ \t]*(?:\r?\n|\Z)", re.DOTALL)
_DANGEROUS = (
    "auto_map",
    "trust_remote_code",
    "_attn_implementation",
    "attn_implementation",
    "experts_implementation",
    "_experts_implementation",
    "_name_or_path",
)


def collect_side_files(directory: Path, *more: str) -> dict[str, bytes | Path]:
    """Return the side files of a model directory by name, configurations without dangerous fields.

    `more` are patterns of further files. Raises `CheckpointError` for a link out of the directory,
    whose target would be copied.
    """
    files: dict[str, bytes | Path] = {}
    for name, path in _list_members(directory, (*SIDE_FILES, *more)):
        files[name] = path
        if name.endswith("config.json"):
            config = read_config(directory / name)
            safe = _without_dangerous_fields(config)
            if name == CONFIG or safe != config:
                files[name] = _to_json(safe)
    return files


def list_side_files(directory: Path, *more: str) -> dict[str, bytes | Path]:
    """Return the paths of a model directory's side files by name, and of those matching `more`."""
    return dict(_list_members(directory, (*SIDE_FILES, *more)))


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


def read_side_file(
    file: bytes | Path, largest: int = LARGEST_TOKENIZER, *, hint: str | None = None
) -> bytes:
    """Return the bytes of a side file; raise `CheckpointError` if it exceeds `largest` bytes."""
    return file if isinstance(file, bytes) else read_whole(file, largest, hint=hint)


def parse_config(files: Files, name: str, model: str) -> dict[str, Any] | None:
    """Parse a configuration among a model's files; return None if it is missing."""
    file = files.get(name)
    if isinstance(file, bytes):
        return parse_json(file, path=f"{name} of {model}", constants=True)
    return None if file is None else read_config(file)


def parse_safe_config(files: Files, model: str) -> dict[str, Any] | None:
    """Parse a model's `config.json`, without dangerous fields; return None if it is missing."""
    config = parse_config(files, CONFIG, model)
    return None if config is None else dict(_without_dangerous_fields(config))


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


def change_config(
    files: Files, change: Callable[[dict[str, Any]], Mapping[str, Any]]
) -> dict[str, bytes | Path]:
    """Return side files with a changed configuration, if they have one."""
    config = parse_config(files, CONFIG, "the base")
    return dict(files) if config is None else {**files, CONFIG: _to_json(change(config))}


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


def select_tokenizer_files(files: Files) -> dict[str, bytes | Path]:
    """Return the side files that make up the tokenizer."""
    return {
        name: content
        for name, content in files.items()
        if any(fnmatchcase(name, pattern) for pattern in _TOKENIZER)
    }


def read_licence(directory: Path) -> str | None:
    """Return the licence that the model card in a directory names, None if it names none."""
    card = directory / CARD
    with report_unreadable(card):
        if not card.is_file():
            return None
        with card.open(encoding="utf-8", errors="replace") as stream:
            front_matter = _FRONT_MATTER.match(stream.read(_LARGEST_CARD))
    if front_matter is None:
        return None
    lines = "\n".join(match[0] for match in _LICENCE.finditer(front_matter[1]))
    try:
        fields = load_yaml(lines, origin=str(card))
    except RecipeError:
        return None
    if not isinstance(fields, dict):
        return None
    licence = fields.get("license", fields.get("licence"))
    if isinstance(licence, list):
        licence = ", ".join(map(str, licence))
    if licence == "other":
        licence = fields.get("license_name") or licence
    return str(licence) if licence else None


def read_config(path: Path) -> dict[str, Any]:
    """Parse a model's `config.json`, or a similar file."""
    return parse_json(read_whole(path, LARGEST_INDEX), path=str(path), constants=True)


def _list_members(directory: Path, patterns: Sequence[str]) -> Iterator[tuple[str, Path]]:
    """Yield each matching file's name relative to the directory, and its resolved path."""
    for pattern in patterns:
        for path in sorted(directory.glob(pattern)):
            if path.is_file():
                if path.parent != directory:
                    resolve_member(path.parent)  # a folder may be a link, too
                yield path.relative_to(directory).as_posix(), resolve_member(path)


def _to_json(config: Mapping[str, Any]) -> bytes:
    return json.dumps(config, indent=2, ensure_ascii=False).encode() + b"\n"


def _without_dangerous_fields(value: Any) -> Any:  # noqa: ANN401 - JSON; configurations nest
    if isinstance(value, list):
        return [_without_dangerous_fields(item) for item in value]
    if not isinstance(value, dict):
        return value
    return {
        key: _without_dangerous_fields(inner)
        for key, inner in value.items()
        if not key.startswith(_DANGEROUS)
    }
