"""File formats that no reader supports, recognised by name, and what to do about each."""

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
#: The hint for a configuration that declares a quantisation.
QUANTISED = (
    "No installed format reads it (fuse list formats). The plugin formats-quantised reads fp8, "
    f"compressed-tensors, mxfp4, bitsandbytes, GPTQ and AWQ. {DEQUANTISE}"
)
_INSTALL_DCP = "Install formats-dcp, which reads it: pip install formats-dcp."
_INSTALL_LORA = "Install fusion-lora, which reads it: pip install fusion-lora."
_LOAD = "Without a configuration: torch.load(FILE, weights_only=True), then safetensors' save_file."
_PICKLE = ("a pickle, which can run code", f"{CONVERT} {_LOAD}")
_RENAMED = ("safetensors by another name, it seems", "If so, rename it to NAME.safetensors.")
_LLAMA_CPP = "in the format of llama.cpp, mostly quantised"
_OTHER_LIBRARY = ("in the format of another library", CONVERT)
_KINDS = {
    **dict.fromkeys((".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle"), _PICKLE),
    ".gguf": (_LLAMA_CPP, f"The plugin formats-quantised reads it. {DEQUANTISE}"),
    ".ggml": (_LLAMA_CPP, DEQUANTISE),
    **dict.fromkeys((".sft", ".safetensors"), _RENAMED),
    ".distcp": ("a distributed checkpoint of torch", _INSTALL_DCP),
    **dict.fromkeys((".h5", ".keras", ".msgpack", ".npz", ".onnx", ".tflite"), _OTHER_LIBRARY),
}
_SHARD = re.compile(r".*-\d+-of-\d+\.safetensors")


def unsupported_kind(file: str) -> tuple[str, str] | None:
    """Return what an unsupported file of weights is and a hint; None for any other file."""
    return _KINDS.get(PurePath(file).suffix.lower())


def no_model_error(
    label: str, problem: str, files: Iterable[str], name_file: str
) -> CheckpointError:
    """Return the error for a directory or repository without a model.

    `problem` names the missing files. `name_file` is the hint for a safetensors file of another
    name, which is appended.
    """
    names, message = sorted(files), f"{label} {problem}"
    safetensors = [name for name in names if name.endswith(".safetensors")]
    if safetensors and all(map(_SHARD.fullmatch, safetensors)):
        return CheckpointError(
            f"{message}; it has {len(safetensors)} shards, such as {safetensors[0]}, without their "
            "index",
            hint="Copy or download the index too: it says which tensor is in which shard.",
        )
    if "adapter_config.json" in names:
        return CheckpointError(
            f"{message}; it is an adapter (adapter_config.json)", hint=_INSTALL_LORA
        )
    if "adapter_model.safetensors" in safetensors:
        return CheckpointError(
            f"{message}; it has an adapter's weights without adapter_config.json",
            hint="Copy or download adapter_config.json too: it says how the adapter is scaled.",
        )
    if safetensors:
        return CheckpointError(
            f"{message}; it has {', '.join(safetensors[:3])}{', ...' if safetensors[3:] else ''}",
            hint=f"{name_file}{safetensors[0]}",
        )
    for name in names:
        if (kind := unsupported_kind(name)) is not None:
            return CheckpointError(f"{message}; it has {name}, {kind[0]}", hint=kind[1])
    return CheckpointError(message, hint="Give a directory that save_pretrained wrote.")
