"""Quantised checkpoints: they pack integers where weights should stand, and no merge unpacks them.

They are known by what their configuration says, by the names that the usual formats give their
parts, and, whatever the format, by integers that take the place of weights.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fusion_core.errors import CheckpointError
from fusion_core.weights.reading._foreign import QUANTISED
from fusion_core.weights.reading.assets import CONFIG, parsed

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from fusion_core.weights.reading.assets import Files
    from fusion_core.weights.source import TensorInfo, WeightSource

#: Files that exist only beside quantised weights.
QUANTISERS_FILES = ("quantize_config.json", "quant_config.json", "hf_quant_config.json")
_KEYS = frozenset({"quantization_config", "compression_config"})
_PARTS = {
    **dict.fromkeys(("qweight", "qzeros", "g_idx"), "GPTQ or AWQ"),
    **dict.fromkeys(("absmax", "quant_map", "quant_state", "SCB", "weight_format"), "bitsandbytes"),
    **dict.fromkeys(("nested_absmax", "nested_quant_map"), "bitsandbytes"),
    **dict.fromkeys(("weight_packed", "weight_zero_point"), "compressed-tensors"),
    **dict.fromkeys(("weight_scale", "weight_scale_inv", "weight_global_scale"), "scaled weights"),
}
#: Words in the names of integer buffers that any full-precision model may hold.
_BUFFERS = frozenset(
    (
        *("id", "ids", "idx", "index", "indices", "position", "positions", "mask", "masks"),
        *("masked", "bias", "tracked", "count", "counts", "step", "steps", "length", "lengths"),
        "buckets",
    )
)
#: Integer matrices of other names are weights if they take more than this share of the bytes.
_SMALL_SHARE = 0.1


def refuse_quantised(models: Mapping[str, WeightSource], beside: Mapping[str, Files]) -> None:
    """Raise `CheckpointError` naming every model that is quantised, and how that shows."""
    reasons = {name: _reason(name, source, beside) for name, source in models.items()}
    found = {name: reason for name, reason in reasons.items() if reason is not None}
    if not found:
        return
    lines = (
        f"{name} ({models[name].describe()}) is quantised, and cannot be merged: {reason}"
        for name, reason in found.items()
    )
    configs = (parsed(beside.get(name, {}), CONFIG, name) or {} for name in found)
    originals = [each for config in configs if isinstance(each := config.get("_name_or_path"), str)]
    named = (
        f" Their {CONFIG} names: {', '.join(dict.fromkeys(originals))}." if any(originals) else ""
    )
    raise CheckpointError("\n".join(lines), hint=QUANTISED + named)


def _reason(name: str, source: WeightSource, beside: Mapping[str, Files]) -> str | None:
    said = _said_by(beside.get(name, {}), name)
    return said or (None if source.is_delta else packed(source.infos))


def packed(infos: Mapping[str, TensorInfo]) -> str | None:
    """Say which tensor shows that weights are packed; None if none does."""
    signs = (_sign(name, info, infos) for name, info in infos.items())
    return next(filter(None, signs), None) or _many_integers(infos.values())


def _said_by(files: Files, name: str) -> str | None:
    key = key_in(parsed(files, CONFIG, name), _KEYS)
    if key is not None:
        return f"its {CONFIG} has a {key}"
    return next(
        (
            f"{quantisers_file} lies beside it"
            for quantisers_file in QUANTISERS_FILES
            if quantisers_file in files
        ),
        None,
    )


def key_in(config: Any, keys: frozenset[str]) -> str | None:  # noqa: ANN401 - JSON
    """Return the key among `keys` that a configuration, or one inside it, gives a value."""
    if not isinstance(config, dict):
        return None
    key = next((key for key in sorted(keys & config.keys()) if config[key]), None)
    return key or next(filter(None, (key_in(value, keys) for value in config.values())), None)


def _sign(name: str, info: TensorInfo, infos: Mapping[str, TensorInfo]) -> str | None:
    parts = name.split(".")
    kind = next((_PARTS[part] for part in parts if part in _PARTS), None)
    if name.endswith("_blocks") and f"{name.removesuffix('_blocks')}_scales" in infos:
        kind = "MXFP4"
    if kind is not None:
        return f"tensor {name!r} ({kind})"
    eight_bits = info.dtype.is_floating_point and info.dtype.itemsize == 1
    if eight_bits or (parts[-1] == "weight" and _is_integer(info)):
        return f"tensor {name!r} is {str(info.dtype).removeprefix('torch.')}"
    return None


def _many_integers(infos: Iterable[TensorInfo]) -> str | None:
    infos = list(infos)
    suspects = [info for info in infos if _is_integer(info) and not _is_buffer(info)]
    if sum(info.nbytes for info in suspects) <= _SMALL_SHARE * sum(info.nbytes for info in infos):
        return None
    largest = max(suspects, key=lambda info: info.nbytes)
    return f"integers such as {largest.name!r} are a large part of it"


def _is_integer(info: TensorInfo) -> bool:
    # Of eight bytes are indices: nobody packs weights into those.
    is_number = info.dtype.is_floating_point or info.dtype.is_complex
    return not is_number and str(info.dtype) != "torch.bool" and info.dtype.itemsize <= 4  # noqa: PLR2004


def _is_buffer(info: TensorInfo) -> bool:
    words = info.name.rpartition(".")[2].lower().split("_")
    return len(info.shape) < 2 or not _BUFFERS.isdisjoint(words)  # noqa: PLR2004 - a matrix
