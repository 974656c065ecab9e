"""Refusal of quantised checkpoints, whose packed integers no merge unpacks.

They are recognised by their configuration, by the names that common formats give to their tensors,
and, in any format, by integers in place of weights.
"""

from __future__ import annotations

from reprlib import repr as shorten
from typing import TYPE_CHECKING, Any

from fusion_core.errors import CheckpointError
from fusion_core.weights.reading._unsupported import DEQUANTISE, QUANTISED
from fusion_core.weights.reading.assets import CONFIG, parse_config

if TYPE_CHECKING:
    from collections.abc import Mapping

    from fusion_core.weights.reading.assets import Files
    from fusion_core.weights.source import TensorInfo, WeightSource

#: The hint for weights that were cast to eight bits, without scales.
_CAST_BACK = (
    "There are no scales to dequantise with: these weights were only cast. Cast them back, which "
    "loses nothing: load_file of safetensors.torch, .to(torch.bfloat16) for each, and save_file."
)
#: Files that only quantised models have.
QUANTISER_FILES = ("quantize_config.json", "quant_config.json", "hf_quant_config.json")
#: Keys of configurations that declare a quantisation.
QUANTISER_KEYS = frozenset({"compression_config", "quantization_config"})
#: Parts of tensor names, and the format that uses them.
_PARTS = {
    **dict.fromkeys(("qweight", "qzeros", "g_idx"), "GPTQ or AWQ"),
    **dict.fromkeys(("absmax", "quant_map", "quant_state", "SCB", "weight_format"), "bitsandbytes"),
    **dict.fromkeys(("nested_absmax", "nested_quant_map"), "bitsandbytes"),
    **dict.fromkeys(("weight_packed", "weight_zero_point"), "compressed-tensors"),
    **dict.fromkeys(("weight_scale", "weight_scale_inv", "weight_global_scale"), "scaled weights"),
}
#: Words in the names of integer buffers that full-precision models have.
_BUFFERS = frozenset(
    (
        *("id", "ids", "idx", "index", "indices", "position", "positions", "mask", "masks"),
        *("masked", "bias", "tracked", "count", "counts", "step", "steps", "length", "lengths"),
        "buckets",
    )
)
#: Integer matrices of other names are weights if they take more than this share of the bytes.
_SMALL_SHARE = 0.1


def refuse_quantised(models: Mapping[str, WeightSource], side_files: Mapping[str, Files]) -> None:
    """Raise `CheckpointError` naming every quantised model and the evidence.

    `side_files` holds the side files of each model.
    """
    messages: list[str] = []
    originals: dict[str, None] = {}
    is_cast = True
    for name, source in models.items():
        files = side_files.get(name, {})
        config = parse_config(files, CONFIG, name) or {}
        declaration = _find_declaration(files, config)
        reason = declaration or (None if source.is_delta else find_packed_tensor(source.infos))
        if reason is not None:
            label = f"{name} ({source.describe()})"
            messages.append(f"{label} is quantised, and cannot be merged: {reason}")
            is_cast &= declaration is None and _is_cast(source.infos)
            if isinstance(original := config.get("_name_or_path"), str):
                originals[original] = None
    if messages:
        advice = f" Their {CONFIG} names: {', '.join(originals)}." if any(originals) else ""
        hint = _CAST_BACK if is_cast else QUANTISED + advice
        raise CheckpointError("\n".join(messages), hint=hint)


def refuse_packed(source: WeightSource) -> None:
    """Raise `CheckpointError` if a source's tensors show that its weights are packed."""
    if (reason := find_packed_tensor(source.infos)) is not None:
        raise CheckpointError(f"{source.describe()} is quantised: {reason}", hint=DEQUANTISE)


def find_packed_tensor(infos: Mapping[str, TensorInfo]) -> str | None:
    """Describe a tensor that shows that weights are packed; return None if there is none."""
    for name, info in infos.items():
        parts = name.split(".")
        kind = next((_PARTS[part] for part in parts if part in _PARTS), None)
        if name.endswith("_blocks") and f"{name.removesuffix('_blocks')}_scales" in infos:
            kind = "MXFP4"
        if kind is not None:
            return f"tensor {name!r} ({kind})"
        if _is_float8(info) or (parts[-1] == "weight" and _is_integer(info)):
            return f"tensor {name!r} is {str(info.dtype).removeprefix('torch.')}"
    suspects = [info for info in infos.values() if _is_integer(info) and not _is_buffer(info)]
    if not suspects:
        return None
    total = sum(info.nbytes for info in infos.values())
    if sum(info.nbytes for info in suspects) <= _SMALL_SHARE * total:
        return None
    largest = max(suspects, key=lambda info: info.nbytes)
    return f"integers such as {largest.name!r} are a large part of it"


def find_config_value(config: Any, keys: frozenset[str]) -> Any:  # noqa: ANN401 - JSON
    """Return the first value, not empty, of one of `keys` in a configuration, at any depth."""
    if not isinstance(config, dict):
        return None
    values = (config[key] for key in sorted(keys & config.keys()))
    deeper = (find_config_value(value, keys) for value in config.values())
    return next(filter(None, values), None) or next(filter(None, deeper), None)


def _find_declaration(files: Files, config: Mapping[str, Any]) -> str | None:
    """Return how a configuration or another side file declares a quantisation."""
    for key in sorted(QUANTISER_KEYS):
        if (value := find_config_value(config, frozenset((key,)))) is not None:
            method = value.get("quant_method") if isinstance(value, dict) else None
            kind = f" of {shorten(method)}" if isinstance(method, str) else ""
            return f"its {CONFIG} has a {key}{kind}"
    name = next((name for name in QUANTISER_FILES if name in files), None)
    return None if name is None else f"it comes with {name}"


def _is_cast(infos: Mapping[str, TensorInfo]) -> bool:
    """Tell whether weights have eight bits and none of them has a scale, of whatever name."""
    weights = [name for name, info in infos.items() if _is_float8(info)]
    modules = {*weights, *(name.rpartition(".")[0] for name in weights)}
    scales = (name for name in infos if "scale" in name.rpartition(".")[2].lower())
    return bool(weights) and modules.isdisjoint(name.rpartition(".")[0] for name in scales)


def _is_float8(info: TensorInfo) -> bool:
    return info.dtype.is_floating_point and info.dtype.itemsize == 1


def _is_integer(info: TensorInfo) -> bool:
    # Integers of eight bytes are indices: nobody packs weights into those.
    is_number = info.dtype.is_floating_point or info.dtype.is_complex
    return not is_number and str(info.dtype) != "torch.bool" and info.dtype.itemsize <= 4  # noqa: PLR2004


def _is_buffer(info: TensorInfo) -> bool:
    words = info.name.rpartition(".")[2].lower().split("_")
    return len(info.shape) < 2 or not _BUFFERS.isdisjoint(words)  # noqa: PLR2004 - a matrix
