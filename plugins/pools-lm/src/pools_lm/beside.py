"""What lies beside a model's weights and what of it goes along, said where that is not all."""

from __future__ import annotations

import json
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from fusion_core.errors import CheckpointError
from fusion_core.weights import content_of

if TYPE_CHECKING:
    from collections.abc import Collection

    from fusion_core.weights import Files

MODULES = "modules.json"
#: What a SentenceTransformer has beside its encoder: settings, prompts, and a folder a module.
OF_ENCODERS = (
    MODULES,
    "config_sentence_transformers.json",
    "sentence_*_config.json",
    "[0-9]*_*/config.json",
    "[0-9]*_*/model.safetensors",
)
_FOLDERS = ("additional_chat_templates/*", "[0-9]*_*/*")
#: Neither loading nor serving needs these: weights, cards, what training and fuse leave.
_NOT_NEEDED = (
    *("*.safetensors", "*.index.json", "pytorch_model*", "*.pt", "*.pth", "*.ckpt", "*.h5"),
    *("*.msgpack", "*.onnx*", "*.gguf", "*.ot", "rust_model*", "training_args.bin", "*.md"),
    *("LICEN*", "NOTICE*", "USE_POLICY*", ".*", "*.png", "*.jpg", "*.svg", "*.pdf", "*.log"),
    *("trainer_state.json", "*_results.json", "adapter_*", "events.out*", "recipe.yaml"),
    *("provenance.json", "report.json", "outcomes.json", "metrics.jsonl"),
)
#: Bytes of the weights of a module behind an encoder.
_LARGEST_MODULE = 2**30
_OWN = "sentence_transformers."


def left_out(names: Collection[str], taken: Collection[str]) -> list[str]:
    """Return the files of a model's directory that loading may need and an output will not have."""
    known = (name for name in names if "/" not in name or _matches(name, _FOLDERS))
    inner = ((name, name.rpartition("/")[2]) for name in known if name not in taken)
    return [name for name, last in inner if "/" in name or not _matches(last, _NOT_NEEDED)]


def with_own_modules(files: Files) -> Files:
    """Return an encoder's files, without a list of modules that loading would run code for.

    sentence-transformers imports what `modules.json` names, from the hub if it says so. Without
    that file a directory is a plain encoder of transformers.
    """
    if MODULES not in files or all(kind.startswith(_OWN) for kind, _ in modules_in(files)):
        return files
    return {name: each for name, each in files.items() if name != MODULES}


def has_chat_template(files: Files) -> bool:
    """Tell whether a model's files say how a conversation is written, in any of the forms."""
    settings = "tokenizer_config.json"
    inside = settings in files and b'"chat_template"' in content_in(files, settings)
    return inside or any(name.startswith("chat_template.") for name in files)


def content_in(files: Files, name: str) -> bytes:
    """Return a file's bytes; a module's weights may be larger than other side files."""
    if name.endswith(".safetensors"):
        return content_of(files[name], _LARGEST_MODULE)
    return content_of(files[name])


def modules_in(files: Files) -> list[tuple[str, str]]:
    """Return the class of every module of a SentenceTransformer, and its folder."""
    listed = parsed(files, MODULES)
    try:
        return [(str(each["type"]), str(each["path"])) for each in listed]
    except (LookupError, TypeError) as error:
        raise _unreadable(MODULES, error) from error


def parsed(files: Files, name: str) -> Any:  # noqa: ANN401 - whatever JSON holds
    """Return what a file says; raises `CheckpointError` for one that is missing or torn."""
    try:
        return json.loads(content_in(files, name))
    except (LookupError, ValueError, RecursionError) as error:
        raise _unreadable(name, error) from error


def _unreadable(name: str, error: Exception) -> CheckpointError:
    return CheckpointError(
        f"{name} beside the base is missing or torn: {type(error).__name__}: {error}",
        hint="Save the base with sentence-transformers again.",
    )


def _matches(name: str, patterns: Collection[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)
