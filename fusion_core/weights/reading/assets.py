"""The files next to the weights, such as configuration and tokenizer: their names, and readers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fusion_core.weights.reading.containment import read_whole, resolve_member
from fusion_core.weights.reading.format import LARGEST_INDEX
from fusion_core.weights.reading.untrusted_json import parse_json

if TYPE_CHECKING:
    from collections.abc import Callable

#: Files by name, with `/` for those in folders. A value is a path, or the content itself.
Files = Mapping[str, bytes | Path]

CONFIG = "config.json"
#: Names and patterns of the files that make up a tokenizer.
TOKENIZER_FILES = (
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
    *TOKENIZER_FILES,
)
#: The model card, which names the licence.
CARD = "README.md"
_DANGEROUS = (
    "auto_map",
    "trust_remote_code",
    "_attn_implementation",
    "attn_implementation",
    "experts_implementation",
    "_experts_implementation",
    "_name_or_path",
)


def list_side_files(directory: Path, *more: str) -> dict[str, bytes | Path]:
    """Return the paths of a model directory's side files by name, and of those matching `more`.

    Raises `CheckpointError` for a link out of the directory.
    """
    files: dict[str, bytes | Path] = {}
    for pattern in (*SIDE_FILES, *more):
        for path in sorted(directory.glob(pattern)):
            if path.is_file():
                if path.parent != directory:
                    resolve_member(path.parent)  # a folder may be a link, too
                files[path.relative_to(directory).as_posix()] = resolve_member(path)
    return files


def parse_config(files: Files, name: str, model: str) -> dict[str, Any] | None:
    """Parse a configuration among a model's files; return None if it is missing."""
    file = files.get(name)
    if isinstance(file, bytes):
        return parse_json(file, path=f"{name} of {model}", constants=True)
    return None if file is None else read_config(file)


def parse_safe_config(files: Files, model: str) -> dict[str, Any] | None:
    """Parse a model's `config.json`, without dangerous fields; return None if it is missing."""
    config = parse_config(files, CONFIG, model)
    return None if config is None else dict(drop_dangerous_fields(config))


def change_config(
    files: Files, change: Callable[[dict[str, Any]], Mapping[str, Any]]
) -> dict[str, bytes | Path]:
    """Return side files with a changed configuration, if they have one."""
    config = parse_config(files, CONFIG, "the base")
    return dict(files) if config is None else {**files, CONFIG: _to_json(change(config))}


def read_config(path: Path) -> dict[str, Any]:
    """Parse a model's `config.json`, or a similar file."""
    return parse_json(read_whole(path, LARGEST_INDEX), path=str(path), constants=True)


def _to_json(config: Mapping[str, Any]) -> bytes:
    return json.dumps(config, indent=2, ensure_ascii=False).encode() + b"\n"


def drop_dangerous_fields(value: Any) -> Any:  # noqa: ANN401 - JSON; configurations nest
    """Return a configuration without fields that make a loader run code or pick an implementation.

    Fields at any depth count.
    """
    if isinstance(value, list):
        return [drop_dangerous_fields(item) for item in value]
    if not isinstance(value, dict):
        return value
    return {
        key: drop_dangerous_fields(inner)
        for key, inner in value.items()
        if not key.startswith(_DANGEROUS)
    }
