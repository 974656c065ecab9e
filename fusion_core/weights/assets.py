"""The files beside the weights: configuration, tokenizer, processor.

They are copied by name from a fixed list, never code. A configuration is copied without the fields
that make a loader run code or pick an implementation.
"""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

from fusion_core.weights.containment import member, open_member
from fusion_core.weights.format import LARGEST_INDEX, parse_json

if TYPE_CHECKING:
    from pathlib import Path

    import torch

_PATTERNS = (
    "config.json",
    "generation_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "chat_template*",
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "spiece.model",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
)
_DANGEROUS = (
    "auto_map",
    "trust_remote_code",
    "_attn_implementation",
    "attn_implementation",
    "experts_implementation",
    "_experts_implementation",
    "_name_or_path",
)


def assets_of(directory: Path, *, dtype: torch.dtype | None = None) -> dict[str, bytes | Path]:
    """Return the side files of a model directory: name -> file, the configuration as new bytes.

    `dtype` replaces the one that the configuration names. Raises `CheckpointError` for a link that
    leads out of the directory: what it leads to would be copied.
    """
    found: dict[str, bytes | Path] = {
        path.name: member(path)
        for pattern in _PATTERNS
        for path in sorted(directory.glob(pattern))
        if path.is_file()
    }
    config = found.get("config.json")
    if config is not None:
        found["config.json"] = _safe_config(directory / "config.json", dtype)
    return found


def read_config(path: Path) -> dict[str, Any]:
    """Read a model's `config.json`."""
    with os.fdopen(open_member(path), "rb") as stream:
        return parse_json(stream.read(LARGEST_INDEX), path=str(path))


def _safe_config(path: Path, dtype: torch.dtype | None) -> bytes:
    config: dict[str, Any] = _safe(read_config(path))
    if dtype is not None:
        config.pop("torch_dtype", None)
        config["dtype"] = str(dtype).removeprefix("torch.")
    return json.dumps(config, indent=2, ensure_ascii=False).encode() + b"\n"


def _safe(value: Any) -> Any:  # noqa: ANN401 - JSON holds anything; models nest configurations
    if isinstance(value, list):
        return [_safe(each) for each in value]
    if not isinstance(value, dict):
        return value
    return {key: _safe(each) for key, each in value.items() if not key.startswith(_DANGEROUS)}
