"""Side files of a checkpoint: which ones an output copies, and how they are read."""

from __future__ import annotations

import json
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from fusion_core.errors import CheckpointError
from pools_checkpoints import read_side_file

if TYPE_CHECKING:
    from collections.abc import Collection

    from fusion_core.weights import Files

MODULES = "modules.json"
#: Files of a SentenceTransformer: its settings, its prompts, and one directory per module.
ENCODER_FILES = (
    MODULES,
    "config_sentence_transformers.json",
    "sentence_*_config.json",
    "[0-9]*_*/config.json",
    "[0-9]*_*/model.safetensors",
)
_DIRECTORIES = ("additional_chat_templates/*", "[0-9]*_*/*")
#: Files that neither loading nor serving needs: weights, cards, traces of training and of fuse.
_NOT_NEEDED = (
    *("*.safetensors", "*.index.json", "pytorch_model*", "*.pt", "*.pth", "*.ckpt", "*.h5"),
    *("*.msgpack", "*.onnx*", "*.gguf", "*.ot", "rust_model*", "training_args.bin", "*.md"),
    *("LICEN*", "NOTICE*", "USE_POLICY*", ".*", "*.png", "*.jpg", "*.svg", "*.pdf", "*.log"),
    *("trainer_state.json", "*_results.json", "adapter_*", "events.out*", "recipe.yaml"),
    *("provenance.json", "report.json", "outcomes.json", "metrics.jsonl"),
)
#: Largest size of a module's weights, in bytes.
_MAX_MODULE_BYTES = 2**30
_OWN_PACKAGE = "sentence_transformers."


def files_not_copied(names: Collection[str], copied: Collection[str]) -> list[str]:
    """Return the files of a model directory that loading may need and the output will lack."""
    return [
        name
        for name in names
        if name not in copied
        and (_matches(name, _DIRECTORIES) if "/" in name else not _matches(name, _NOT_NEEDED))
    ]


def drop_foreign_modules(files: Files) -> Files:
    """Return an encoder's files, without a module list that makes loading run foreign code.

    sentence-transformers imports the classes in `modules.json`, even from the hub. Without this
    file, a directory is a plain encoder of transformers.
    """
    if MODULES not in files or all(
        class_name.startswith(_OWN_PACKAGE) for class_name, _ in list_modules(files)
    ):
        return files
    return {name: content for name, content in files.items() if name != MODULES}


def has_chat_template(files: Files) -> bool:
    """Tell whether a model's files contain a chat template, in any of its forms."""
    settings = "tokenizer_config.json"
    inside = settings in files and b'"chat_template"' in read_content(files, settings)
    return inside or any(name.startswith("chat_template.") for name in files)


def read_content(files: Files, name: str) -> bytes:
    """Return a file's bytes. A module's weights may be larger than other side files."""
    if name.endswith(".safetensors"):
        return read_side_file(files[name], _MAX_MODULE_BYTES)
    return read_side_file(files[name])


def list_modules(files: Files) -> list[tuple[str, str]]:
    """Return the class and the directory of each module of a SentenceTransformer."""
    modules = load_json(files, MODULES)
    try:
        return [(str(module["type"]), str(module["path"])) for module in modules]
    except (LookupError, TypeError) as error:
        raise _unreadable(MODULES, error) from error


def load_json(files: Files, name: str) -> Any:  # noqa: ANN401 - any JSON value
    """Parse a JSON file; raise `CheckpointError` if it is missing or invalid."""
    try:
        return json.loads(read_content(files, name))
    except (LookupError, ValueError, RecursionError) as error:
        raise _unreadable(name, error) from error


def _unreadable(name: str, error: Exception) -> CheckpointError:
    return CheckpointError(
        f"missing or invalid {name} next to the base: {type(error).__name__}: {error}",
        hint="Save the base with sentence-transformers again.",
    )


def _matches(name: str, patterns: Collection[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)
