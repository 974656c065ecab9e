"""Weights in forms that are not read, and what to do about each: by the names of files alone."""

from __future__ import annotations

import re
from pathlib import PurePath
from typing import TYPE_CHECKING

from fusion_core.errors import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Iterable

DEQUANTISE = (
    "Name the model that it was made from, or dequantise it first: with transformers, "
    "model.dequantize() and save_pretrained, then take quantization_config out of its config.json."
)
CONVERT = (
    "Convert it with transformers: from_pretrained, then save_pretrained(DIRECTORY). The hub's own "
    "conversion of a repository may be a revision: org/name@refs/pr/NUMBER."
)
_DISTRIBUTED = (
    "No installed format reads it (fuse list formats). Convert it with torch: "
    "python -m torch.distributed.checkpoint.format_utils dcp_to_torch DIRECTORY FILE, and save the "
    "tensors with safetensors."
)
#: Said where a configuration tells how weights are quantised.
QUANTISED = f"No installed format reads it (fuse list formats). {DEQUANTISE}"
_HINTS = {
    "a pickle, which can run code": CONVERT,
    "in the format of llama.cpp, mostly quantised": DEQUANTISE,
    "in the format of another library": CONVERT,
    "a distributed checkpoint of torch": _DISTRIBUTED,
}
_PICKLE, _LLAMA_CPP, _OTHER, _DCP = _HINTS
_KINDS = {
    **dict.fromkeys((".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle"), _PICKLE),
    **dict.fromkeys((".gguf", ".ggml"), _LLAMA_CPP),
    ".distcp": _DCP,
    **dict.fromkeys((".h5", ".keras", ".msgpack", ".npz", ".onnx", ".tflite"), _OTHER),
}
_SHARD = re.compile(r".*-\d+-of-\d+\.safetensors")


def kind_of(file: str) -> tuple[str, str] | None:
    """Return what a file of weights is that cannot be read, and what to do; None if it is none."""
    kind = _KINDS.get(PurePath(file).suffix.lower())
    return None if kind is None else (kind, _HINTS[kind])


def no_model(label: str, lacks: str, files: Iterable[str], otherwise: str) -> CheckpointError:
    """Say what a directory or repository holds in place of a model; `lacks` are the usual names.

    `otherwise` is how to name a safetensors file of another name; the name is put behind it.
    """
    found, said = sorted(files), f"{label} {lacks}"
    ours = [file for file in found if file.endswith(".safetensors")]
    theirs = [(file, *about) for file in found if (about := kind_of(file)) is not None]
    if ours and all(map(_SHARD.fullmatch, ours)):
        return CheckpointError(
            f"{said}; it has {len(ours)} shards, such as {ours[0]}, without their index",
            hint="Copy or download the index too: it says which tensor is in which shard.",
        )
    if "adapter_model.safetensors" in ours:
        return CheckpointError(
            f"{said}; it has an adapter's weights without adapter_config.json",
            hint="Copy or download adapter_config.json too: it says how the adapter is scaled.",
        )
    if ours:
        return CheckpointError(
            f"{said}; it has {', '.join(ours[:3])}{', ...' if ours[3:] else ''}",
            hint=f"{otherwise}{ours[0]}",
        )
    if theirs:
        file, kind, hint = theirs[0]
        return CheckpointError(f"{said}; it has {file}, {kind}", hint=hint)
    return CheckpointError(said, hint="Give a directory that save_pretrained wrote.")
