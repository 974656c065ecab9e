"""Which tensors of a compressed-tensors checkpoint are quantised, and how.

A configuration has groups of settings, and a group applies to modules by patterns. Patterns of an
untrusted file are not evaluated: the shapes of a tensor's scales tell which group applies.
"""

from __future__ import annotations

from dataclasses import dataclass
from reprlib import repr as shorten
from typing import TYPE_CHECKING, Any

import torch

from formats_quantised.compressed import Compressed
from formats_quantised.declaration import open_quantised
from formats_quantised.grids import Grid, is_side
from fusion_core import TensorInfo

if TYPE_CHECKING:
    from collections.abc import Iterator

    from formats_quantised.declaration import Quantised
    from formats_quantised.source import DequantisedSource
    from fusion_core.weights import Location

#: The formats whose values are compared with the library's.
_FORMATS = (
    *("dense", "float-quantized", "int-quantized", "naive-quantized", "pack-quantized"),
    *("nvfp4-pack-quantized", "mxfp4-pack-quantized", "mxfp8-quantized", "mixed-precision"),
)
#: Suffixes of tensors that only inference with quantised activations or caches needs.
_ACTIVATIONS = tuple(
    f".{kind}_{part}"
    for kind in ("input", "output", "q", "k", "v")
    for part in ("scale", "zero_point", "global_scale")
)
_SCALES = (torch.float32, torch.bfloat16, torch.float16)
_CODES = (torch.float8_e4m3fn, torch.int8)
_PACKED_BITS = (4, 8)


@dataclass(frozen=True)
class _Group:
    """The settings of the weights in a group of modules."""

    strategy: str
    bits: int
    #: rows and columns of a block; None stands for all
    block: tuple[int | None, int | None]

    def blocks_of(self, shape: tuple[int, ...]) -> tuple[tuple[int, int], tuple[int, int]] | None:
        """Return the number of blocks of a matrix and their size; None if they do not fit."""
        rows, width = self.block[0] or shape[0], self.block[1] or shape[1]
        if "group" in self.strategy and shape[1] % width:
            return None
        return (-(-shape[0] // rows), -(-shape[1] // width)), (rows, width)


def open_compressed(location: Location) -> DequantisedSource:
    """Open a checkpoint of compressed-tensors."""
    model = open_quantised(location)
    groups = _read_groups(model)
    for dtype in _CODES:
        model.check_scales(dtype, ".weight", ".weight_scale")
    used: set[str] = set()
    encodings = []
    for prefix in _find_prefixes(model):
        encoding = _encoding(model, prefix, groups)
        encodings.append(encoding)
        used |= {f"{prefix}.weight_shape", encoding.codes, encoding.scales.name}
        used |= {encoding.zeros.name} if encoding.zeros else set()
        used |= {encoding.global_scale} if encoding.global_scale else set()
    used |= {name for name in model.stored.infos if name.endswith(_ACTIVATIONS)}
    label = f"compressed-tensors {model.settings.get('format', 'dense')}"
    return model.decode(encodings, used=used, label=label)


def _read_groups(model: Quantised) -> list[_Group]:
    """Return the settings of all groups; refuse what has not been compared with the library."""
    form = model.setting("format", str, "dense")
    sparsity = model.setting("sparsity_config", dict) or {}
    if sparsity.get("format", "dense") != "dense":
        raise model.refuse(f"sparsity_config {shorten(sparsity)}")
    if model.settings.get("transform_config"):
        raise model.refuse("transform_config")
    groups = []
    for group in (model.setting("config_groups", dict) or {}).values():
        fields = group if isinstance(group, dict) else {}
        for name in (form, fields.get("format") or form):
            if name not in _FORMATS:
                raise model.refuse(f"the format {shorten(name)}")
        weights = fields.get("weights")
        if weights is not None:
            groups.append(_read_group(model, weights))
    return list(dict.fromkeys(groups))


def _read_group(model: Quantised, weights: Any) -> _Group:  # noqa: ANN401 - JSON
    fields = weights if isinstance(weights, dict) else {}
    bits, structure = fields.get("num_bits"), fields.get("block_structure")
    sizes = structure if isinstance(structure, list) and len(structure) == 2 else [0, 0]  # noqa: PLR2004
    blocks: dict[str, tuple[Any, Any]] = {
        "tensor": (None, None),
        "channel": (1, None),
        "group": (1, fields.get("group_size") or 0),
        "tensor_group": (1, fields.get("group_size") or 0),
        "block": (sizes[0], sizes[1]),
    }
    strategy = str(fields.get("strategy"))
    block = blocks.get(strategy, (0, 0))
    if type(bits) is not int or not all(size is None or is_side(size) for size in block):
        raise model.refuse(f"a group of config_groups with {shorten(fields)}")
    return _Group(strategy, bits, block)


def _find_prefixes(model: Quantised) -> Iterator[str]:
    """Yield the name of every module with a quantised weight."""
    names = model.stored.infos
    for prefix, _ in model.pairs(".weight_packed"):
        yield prefix
    for prefix, _ in model.pairs(".weight_scale"):
        if f"{prefix}.weight_packed" not in names:
            yield prefix


def _encoding(model: Quantised, prefix: str, groups: list[_Group]) -> Compressed:
    names, weight = model.stored.infos, f"{prefix}.weight"
    if f"{prefix}.weight_g_idx" in names:
        raise model.refuse(f"{prefix}.weight_g_idx (actorder: group)")
    is_packed = f"{prefix}.weight_packed" in names
    codes = model.matrix(f"{weight}_packed" if is_packed else weight)
    zeros = f"{weight}_zero_point" if f"{weight}_zero_point" in names else None
    factor = f"{weight}_global_scale"
    if factor in names and codes.dtype is not torch.uint8:
        raise model.refuse(f"{factor} of {codes.dtype}")
    if not is_packed:
        model.info(weight, *_CODES)
        scale = model.info(f"{weight}_scale", *_SCALES, torch.uint8)
        return _fit(model, (weight, codes.shape, 8), scale, groups, zeros)
    if codes.dtype is torch.int32:
        scale = model.info(f"{weight}_scale", *_SCALES)
        shape, bits = _unpacked_shape(model, codes, groups)
        return _fit(model, (codes.name, shape, bits), scale, groups, zeros)
    model.info(codes.name, torch.uint8)
    if zeros is not None:
        raise model.refuse(f"{zeros} of packed fp4")
    shape = (codes.shape[0], 2 * codes.shape[1])
    if factor in names:
        scale = model.info(f"{weight}_scale", torch.float8_e4m3fn)
        model.info(factor, torch.float32)
        model.check_shape(factor, (), (1,))
    else:
        scale = model.info(f"{weight}_scale", torch.uint8)
    return _fit(model, (codes.name, shape, 4), scale, groups, None)


def _unpacked_shape(
    model: Quantised, codes: TensorInfo, groups: list[_Group]
) -> tuple[tuple[int, int], int]:
    """Return the shape that `weight_shape` states, and the bits that fit the packed shape."""
    name = codes.name.removesuffix("packed") + "shape"
    model.info(name, torch.int64, torch.int32)
    model.check_shape(name, (2,))
    rows, width = model.stored.read(name, 0, 2).tolist()
    declared = {group.bits for group in groups if group.bits in _PACKED_BITS}
    fitting = [bits for bits in sorted(declared) if -(-width * bits // 32) == codes.shape[1]]
    if not declared:
        raise model.refuse(f"num_bits other than {_PACKED_BITS} in config_groups")
    if rows != codes.shape[0] or width < 1 or len(fitting) != 1:
        problem = f"has shape {list(codes.shape)}, which {name} {[rows, width]} does not fit"
        raise model.error(codes.name, problem)
    return (rows, width), fitting[0]


def _fit(
    model: Quantised,
    codes: tuple[str, tuple[int, ...], int],
    scale: TensorInfo,
    groups: list[_Group],
    zeros: str | None,
) -> Compressed:
    """Return the encoding by the group whose blocks fit the scales."""
    name, shape, bits = codes
    prefix = scale.name.removesuffix(".weight_scale")
    for group in groups:
        blocks = group.blocks_of(shape)
        whole = group.strategy == "tensor" and scale.numel == 1
        if group.bits != bits or blocks is None or not (whole or scale.shape == blocks[0]):
            continue
        grid = Grid(scale.name, *blocks, rows=shape[0])
        is_packed = bits < 8 or model.info(name).dtype is torch.int32  # noqa: PLR2004
        packs_zeros = is_packed and group.strategy in ("group", "channel")
        if zeros is not None:
            model.info(zeros, torch.int32 if packs_zeros else torch.int8)
            words = -(-shape[0] * bits // 32)
            expected = (words, blocks[0][1]) if packs_zeros else scale.shape
            model.check_shape(zeros, expected)
        special = f"{prefix}.weight_global_scale"
        return Compressed(
            info=TensorInfo(f"{prefix}.weight", shape, model.dtype),
            codes=name,
            bits=bits,
            scales=grid,
            zeros=None if zeros is None else Grid(zeros, *blocks, rows=shape[0]),
            has_packed_zeros=packs_zeros,
            global_scale=special if special in model.stored.infos else None,
        )
    raise model.error(
        scale.name, f"has shape {list(scale.shape)}, which no group of config_groups explains"
    )
