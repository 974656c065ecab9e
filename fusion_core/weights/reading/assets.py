"""The files beside the weights: configuration, tokenizer, processor, and the card's licence.

They are copied by name from fixed lists, never code. Configurations, the tokenizer's and the
processors' too, are copied without the fields that make a loader run code or pick an
implementation; one that has none of them keeps its bytes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fusion_core.errors import RecipeError
from fusion_core.recipe.text import load_yaml
from fusion_core.weights.reading.containment import member, read_whole, reading
from fusion_core.weights.reading.format import LARGEST_INDEX
from fusion_core.weights.reading.untrusted import parse_json

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Sequence

    import torch

#: Files by name, some in a folder: where each is, or what it holds.
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
#: The files that come along with the weights; in a folder, all that match.
SIDE_FILES = (
    CONFIG,
    "generation_config.json",
    "preprocessor_config.json",
    "video_preprocessor_config.json",
    "processor_config.json",
    *_TOKENIZER,
)
#: Bytes of a file that is read and not only copied: Gemma's tokenizer has 33 million.
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


def assets_of(
    directory: Path, *more: str, dtype: torch.dtype | None = None
) -> dict[str, bytes | Path]:
    """Return the side files of a model directory: name -> file, or new bytes for a configuration.

    `more` are patterns of files that models of a kind have. `dtype` replaces the one that the
    configuration names. Raises `CheckpointError` for a link that
    leads out of the directory: what it leads to would be copied.
    """
    found = _files(directory, (*SIDE_FILES, *more))
    if CONFIG in found:
        config = _safe(read_config(directory / CONFIG))
        if dtype is not None:
            config.pop("torch_dtype", None)
            config["dtype"] = str(dtype).removeprefix("torch.")
        found[CONFIG] = _as_file(config)
    return found


def beside(directory: Path, *more: str) -> dict[str, bytes | Path]:
    """Return the files of a model directory that say what the model is; none is read."""
    return dict(_members(directory, (*SIDE_FILES, *more)))


def content_of(
    file: bytes | Path, largest: int = LARGEST_TOKENIZER, *, hint: str | None = None
) -> bytes:
    """Return the bytes of a side file; one of more than `largest` is refused before it is read."""
    return file if isinstance(file, bytes) else read_whole(file, largest, hint=hint)


def parsed(files: Files, name: str, model: str) -> dict[str, Any] | None:
    """Read a configuration that lies beside a model; None if there is none."""
    given = files.get(name)
    if isinstance(given, bytes):
        return parse_json(given, path=f"{name} of {model}", constants=True)
    return None if given is None else read_config(given)


def safe_config(files: Files, model: str) -> dict[str, Any] | None:
    """Read a model's `config.json` without what would pick code; None if there is none."""
    config = parsed(files, CONFIG, model)
    return None if config is None else dict(_safe(config))


def with_vocabulary(files: Files, before: int, after: int) -> dict[str, bytes | Path]:
    """Return side files whose configuration names another number of tokens."""
    return with_config(files, lambda config: _with_vocabulary(config, before, after))


def with_config(
    files: Files, change: Callable[[dict[str, Any]], Mapping[str, Any]]
) -> dict[str, bytes | Path]:
    """Return side files with what a function makes of their configuration, if they have one."""
    config = parsed(files, CONFIG, "the base")
    return dict(files) if config is None else {**files, CONFIG: _as_file(change(config))}


def without_keys(config: Mapping[str, Any], keys: Collection[str]) -> dict[str, Any]:
    """Return a configuration, and those inside it, without some keys."""
    return {
        key: without_keys(value, keys) if isinstance(value, dict) else value
        for key, value in config.items()
        if key not in keys
    }


def tokenizer_of(files: Files) -> dict[str, bytes | Path]:
    """Return those of a model's side files that make its tokenizer."""
    return {
        name: content
        for name, content in files.items()
        if any(fnmatchcase(name, pattern) for pattern in _TOKENIZER)
    }


def licence_of(directory: Path) -> str | None:
    """Return the licence that the model card in a directory names; None if it names none."""
    card = directory / CARD
    with reading(card):
        if not card.is_file():
            return None
        with card.open(encoding="utf-8", errors="replace") as stream:
            matter = _FRONT_MATTER.match(stream.read(_LARGEST_CARD))
    if matter is None:
        return None
    named = "\n".join(found[0] for found in _LICENCE.finditer(matter[1]))
    try:
        fields = load_yaml(named, origin=str(card))
    except RecipeError:
        return None
    return _licence_in(fields) if isinstance(fields, dict) else None


def _licence_in(fields: dict[str, Any]) -> str | None:
    named = fields.get("license", fields.get("licence"))
    if isinstance(named, list):
        named = ", ".join(map(str, named))
    own = fields.get("license_name")
    return str(own) if named == "other" and own else (str(named) if named else None)


def _files(directory: Path, patterns: Sequence[str]) -> dict[str, bytes | Path]:
    return {name: _content(directory / name, real) for name, real in _members(directory, patterns)}


def _members(directory: Path, patterns: Sequence[str]) -> Iterator[tuple[str, Path]]:
    """Yield the files that match: what each is called from the directory on, where it lies."""
    for pattern in patterns:
        for path in sorted(directory.glob(pattern)):
            if path.is_file():
                if path.parent != directory:
                    member(path.parent)  # a folder may be a link, too
                yield path.relative_to(directory).as_posix(), member(path)


def _content(path: Path, real: Path) -> bytes | Path:
    """Return where a file lies or, if a loader might run code for what it says, safe new bytes."""
    if not path.name.endswith("config.json"):
        return real
    config = read_config(path)
    safe = _safe(config)
    return real if safe == config else _as_file(safe)


def _as_file(config: Mapping[str, Any]) -> bytes:
    return json.dumps(config, indent=2, ensure_ascii=False).encode() + b"\n"


def read_config(path: Path) -> dict[str, Any]:
    """Read a model's `config.json`, or one of its kind."""
    return parse_json(read_whole(path, LARGEST_INDEX), path=str(path), constants=True)


def _with_vocabulary(value: Any, before: int, after: int) -> Any:  # noqa: ANN401 - JSON
    if not isinstance(value, dict):
        return value
    return {
        key: after
        if (key, each) == ("vocab_size", before)
        else _with_vocabulary(each, before, after)
        for key, each in value.items()
    }


def _safe(value: Any) -> Any:  # noqa: ANN401 - JSON holds anything; models nest configurations
    if isinstance(value, list):
        return [_safe(each) for each in value]
    if not isinstance(value, dict):
        return value
    return {key: _safe(each) for key, each in value.items() if not key.startswith(_DANGEROUS)}
