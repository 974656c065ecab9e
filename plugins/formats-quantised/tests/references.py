"""Quantised checkpoints made by the reference libraries, and the values that these libraries read.

Each function needs its library, which the test session `quantised` installs. `build/make_values.py`
stores small results for the tests that run without them.
"""

from __future__ import annotations

import importlib.util
import json
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

if TYPE_CHECKING:
    from collections.abc import Callable

Tensors = dict[str, torch.Tensor]
#: Files with a small checkpoint of each case and the values that its library reads.
VALUES = Path(__file__).parent / "values"
#: A seed, a number of rows and a number of columns.
Size = tuple[int, int, int]
NAME = "model.layers.0.self_attn.q_proj"


@dataclass
class Reference:
    """A quantised checkpoint, and what the library makes of it."""

    config: dict[str, Any]
    tensors: Tensors
    expected: Tensors
    library: str
    dtype: str = "bfloat16"

    def write(self, directory: Path) -> None:
        """Write the checkpoint as a directory."""
        directory.mkdir(exist_ok=True)
        config = {"model_type": "llama", "dtype": self.dtype, "quantization_config": self.config}
        (directory / "config.json").write_text(json.dumps(config))
        save_file(self.tensors, directory / "model.safetensors")


def read_reference(path: Path) -> Reference:
    """Return a stored checkpoint and the values that its library read."""
    with safe_open(path, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
        metadata = file.metadata()
    split = {
        kind: {name.removeprefix(kind): tensor for name, tensor in tensors.items() if kind in name}
        for kind in ("stored/", "expected/")
    }
    config = json.loads(metadata["config"])
    return Reference(
        config, split["stored/"], split["expected/"], metadata["library"], metadata["dtype"]
    )


def random_weight(size: Size, dtype: torch.dtype) -> torch.Tensor:
    """Return a matrix with rows of different magnitude, as weights have."""
    seed, rows, width = size
    random = torch.Generator().manual_seed(seed)
    magnitudes = torch.logspace(-3, 1, rows).unsqueeze(1)
    return (torch.randn(rows, width, generator=random) * magnitudes).to(dtype)


# --- fp8 of transformers --------------------------------------------------------------------------


def block_fp8(size: Size, block: list[int] | None) -> Reference:
    """fp8 as `Fp8Dequantize` of transformers reads it."""
    from transformers.integrations.finegrained_fp8 import Fp8Dequantize

    _, rows, width = size
    weight = random_weight(size, torch.float32)
    height, length = block or (rows, width)
    grid = weight.view(rows // height, height, width // length, length)
    scales = grid.abs().amax((1, 3)) / 448
    codes = (grid / scales[:, None, :, None]).view(rows, width).to(torch.float8_e4m3fn)
    scales = scales if block else scales.reshape(())
    expected = Fp8Dequantize(None)._dequantize_one(codes, scales, torch.bfloat16)  # noqa: SLF001
    return Reference(
        {"quant_method": "fp8", "weight_block_size": block, "activation_scheme": "dynamic"},
        {f"{NAME}.weight": codes, f"{NAME}.weight_scale_inv": scales},
        {f"{NAME}.weight": expected},
        "transformers",
    )


# --- mxfp4 of transformers ------------------------------------------------------------------------


def mxfp4(size: Size, experts: int, dtype: str = "bfloat16") -> Reference:
    """Packed experts as `convert_moe_packed_tensors` of transformers reads them."""
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    seed, outputs, inputs = size
    random = torch.Generator().manual_seed(seed)
    shape = (experts, outputs, inputs // 32)
    octets = torch.randint(0, 256, (*shape, 16), dtype=torch.uint8, generator=random)
    scales = torch.randint(100, 140, shape, dtype=torch.uint8, generator=random)
    name = "model.layers.0.mlp.experts.gate_up_proj"
    expected = convert_moe_packed_tensors(octets, scales, dtype=getattr(torch, dtype))
    return Reference(
        {"quant_method": "mxfp4"},
        {f"{name}_blocks": octets, f"{name}_scales": scales},
        {name: expected},
        "transformers",
        dtype,
    )


# --- compressed-tensors ---------------------------------------------------------------------------


def compressed(
    size: Size, form: str, weights: dict[str, Any], dtype: torch.dtype = torch.bfloat16
) -> Reference:
    """Codes that compressed-tensors packs, and the values to which it decompresses them."""
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme

    scheme = QuantizationScheme(targets=["Linear"], weights=QuantizationArgs(**weights))
    args = scheme.weights
    _, rows, width = size
    weight = random_weight(size, dtype)
    height, length = {
        "tensor": (rows, width),
        "channel": (1, width),
        "group": (1, args.group_size),
        "tensor_group": (1, args.group_size),
        "block": args.block_structure,
    }[args.strategy]
    padded = torch.nn.functional.pad(weight, (0, -width % length, 0, -rows % height))
    grid = padded.view(-(-rows // height), height, -(-width // length), length).float()
    largest = {"int": 2 ** (args.num_bits - 1) - 1, "float": 448 if args.num_bits == 8 else 6}
    state: Tensors = {"weight": weight}
    if args.symmetric:
        scales = grid.abs().amax((1, 3)) / largest[args.type]
    else:
        low, high = grid.amin((1, 3)).clamp(max=0), grid.amax((1, 3)).clamp(min=0)
        scales = (high - low) / (2**args.num_bits - 1)
        zeros = -(2 ** (args.num_bits - 1)) - (low / scales).round()
        state["weight_zero_point"] = zeros.to(torch.int8)
    if args.strategy == "tensor_group":
        state["weight_global_scale"] = (448 / scales.amax()).float().reshape(1)
        scales = scales * state["weight_global_scale"]
    elif form.startswith("mxfp"):
        scales = scales.log2().ceil().exp2()
    is_float = args.strategy == "tensor_group"
    state["weight_scale"] = scales.float() if is_float else scales.to(dtype)
    if args.strategy == "tensor":
        state["weight_scale"] = state["weight_scale"].reshape(1)
    compressor = BaseCompressor.get_value_from_registry(form)
    packed = compressor.compress(state, scheme)
    restored = compressor.decompress(packed, scheme)["weight"]
    config = {
        "quant_method": "compressed-tensors",
        "format": form,
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}},
        "ignore": ["lm_head"],
    }
    return Reference(
        config,
        {f"{NAME}.{name}": tensor.contiguous() for name, tensor in packed.items()},
        {f"{NAME}.weight": restored.bfloat16()},
        "compressed-tensors",
    )


# --- bitsandbytes ---------------------------------------------------------------------------------


def four_bits(size: Size, kind: str, *, nested: bool, dtype: str = "bfloat16") -> Reference:
    """Weights that bitsandbytes quantises and dequantises.

    If the width is not a multiple of the block size, the CPU kernel of bitsandbytes 0.50 takes the
    scales of other blocks: its errors are four times as large as those of bitsandbytes' own torch
    code. That code is then the reference, with the table that is stored.
    """
    import bitsandbytes.functional as bnb
    from bitsandbytes.backends.default import ops

    weight = random_weight(size, getattr(torch, dtype))
    codes, state = bnb.quantize_4bit(weight, quant_type=kind, compress_statistics=nested)
    expected = bnb.dequantize_4bit(codes, state)
    if size[-1] % state.blocksize:
        scales = state.absmax
        if nested:
            scales = bnb.dequantize_blockwise(scales, state.state2) + state.offset
        expected = ops._dequantize_4bit_compute(  # noqa: SLF001
            codes.reshape(-1), scales, state.code, state.blocksize, state.shape, state.dtype
        )
    tensors = {f"{NAME}.weight.{name}": value for name, value in state.as_dict(packed=True).items()}
    return Reference(
        {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": kind},
        {f"{NAME}.weight": codes, **tensors},
        {f"{NAME}.weight": expected},
        "bitsandbytes",
        dtype,
    )


def int8(size: Size) -> Reference:
    """Rows of int8 that bitsandbytes quantises and dequantises."""
    import bitsandbytes.functional as bnb

    weight = random_weight(size, torch.float16)
    codes, scales, _ = bnb.int8_vectorwise_quant(weight)
    expected = bnb.int8_vectorwise_dequant(codes, scales)
    tensors = {
        f"{NAME}.weight": codes,
        f"{NAME}.SCB": scales,
        f"{NAME}.weight_format": torch.zeros((), dtype=torch.uint8),
    }
    return Reference(
        {"quant_method": "bitsandbytes", "load_in_8bit": True},
        tensors,
        {f"{NAME}.weight": expected.half()},
        "bitsandbytes",
        "float16",
    )


# --- GPTQ and AWQ ---------------------------------------------------------------------------------


def gptq(size: Size, bits: int, form: str, dtype: str = "float16") -> Reference:
    """Random codes as the layer `TorchLinear` of GPTQModel dequantises them."""
    from gptqmodel.nn_modules.qlinear.torch import TorchLinear
    from gptqmodel.utils.model import convert_gptq_v1_to_v2_format_module

    seed, rows, width = size
    random = torch.Generator().manual_seed(seed)
    groups, group = width // 32, 32
    low, high = -(2**31), 2**31
    parts = {
        "qweight": torch.randint(
            low, high, (width * bits // 32, rows), dtype=torch.int32, generator=random
        ),
        "qzeros": torch.randint(
            low, high, (groups, rows * bits // 32), dtype=torch.int32, generator=random
        ),
        "scales": (torch.rand(groups, rows, generator=random) / 64).to(getattr(torch, dtype)),
        "g_idx": torch.randperm(width, generator=random).to(torch.int32) // group,
    }
    layer = TorchLinear(
        bits=bits, group_size=group, sym=False, desc_act=True, in_features=width, out_features=rows
    )
    for name, part in parts.items():
        setattr(layer, name, part.clone())
    if form == "gptq":
        convert_gptq_v1_to_v2_format_module(layer, bits, torch.int32)
    layer.post_init()
    expected = layer.dequantize_weight().T.contiguous()
    return Reference(
        {"quant_method": "gptq", "bits": bits, "group_size": group, "checkpoint_format": form},
        {f"{NAME}.{name}": part for name, part in parts.items()},
        {f"{NAME}.weight": expected.to(getattr(torch, dtype))},
        "gptqmodel",
        dtype,
    )


def awq(size: Size, group: int) -> Reference:
    """Random codes as `dequantize_gemm` of AutoAWQ reads them."""
    spec = importlib.util.find_spec("awq")  # importing the package needs an older transformers
    path = Path(str(spec.origin)).parent / "utils" / "packing_utils.py"
    module_spec = importlib.util.spec_from_file_location("packing_utils", path)
    packing = importlib.util.module_from_spec(module_spec)
    module_spec.loader.exec_module(packing)
    seed, rows, width = size
    random = torch.Generator().manual_seed(seed)
    low, high = -(2**31), 2**31
    codes = torch.randint(low, high, (width, rows // 8), dtype=torch.int32, generator=random)
    zeros = torch.randint(
        low, high, (width // group, rows // 8), dtype=torch.int32, generator=random
    )
    scales = (torch.rand(width // group, rows, generator=random) / 64).half()
    expected = packing.dequantize_gemm(codes, zeros, scales, 4, group)
    return Reference(
        {"quant_method": "awq", "bits": 4, "group_size": group, "version": "gemm"},
        {f"{NAME}.qweight": codes, f"{NAME}.qzeros": zeros, f"{NAME}.scales": scales},
        {f"{NAME}.weight": expected.T.contiguous()},
        "autoawq",
        "float16",
    )


_FP8 = {"num_bits": 8, "type": "float"}
_INT4 = {"num_bits": 4, "type": "int"}


def _plus(size: Size, rows: int, width: int) -> Size:
    return size[0], size[1] + rows, size[2] + width


#: Cases by name: each makes a reference of a size whose sides are multiples of 32.
CASES: dict[str, Callable[[Size], Reference]] = {
    "fp8-blocks": lambda size: block_fp8(size, [16, 32]),
    "fp8-tensor": lambda size: block_fp8(size, None),
    "mxfp4": lambda size: mxfp4(size, 3),
    "mxfp4-half": lambda size: mxfp4(size, 2, "float16"),
    "float-tensor": lambda size: compressed(
        size, "float-quantized", {**_FP8, "strategy": "tensor"}
    ),
    "float-channel": lambda size: compressed(
        size, "float-quantized", {**_FP8, "strategy": "channel"}, torch.float32
    ),
    "float-cut-blocks": lambda size: compressed(
        _plus(size, 3, 7),
        "float-quantized",
        {**_FP8, "strategy": "block", "block_structure": [16, 32]},
    ),
    "float-group": lambda size: compressed(
        size, "naive-quantized", {**_FP8, "strategy": "group", "group_size": 16}
    ),
    "int8-channel": lambda size: compressed(
        size, "int-quantized", {"num_bits": 8, "type": "int", "strategy": "channel"}
    ),
    "int8-channel-asymmetric": lambda size: compressed(
        size,
        "int-quantized",
        {"num_bits": 8, "type": "int", "strategy": "channel", "symmetric": False},
    ),
    "pack-group": lambda size: compressed(
        size, "pack-quantized", {**_INT4, "strategy": "group", "group_size": 32}
    ),
    "pack-group-asymmetric": lambda size: compressed(
        size,
        "pack-quantized",
        {**_INT4, "strategy": "group", "group_size": 32, "symmetric": False},
    ),
    "pack-channel-cut-words": lambda size: compressed(
        _plus(size, 3, 5), "pack-quantized", {**_INT4, "strategy": "channel", "symmetric": False}
    ),
    "pack-8-bits": lambda size: compressed(
        size,
        "pack-quantized",
        {"num_bits": 8, "type": "int", "strategy": "channel"},
        torch.float16,
    ),
    "nvfp4": lambda size: compressed(
        size,
        "nvfp4-pack-quantized",
        {"num_bits": 4, "type": "float", "strategy": "tensor_group", "group_size": 16},
    ),
    "mxfp4-packed": lambda size: compressed(
        size,
        "mxfp4-pack-quantized",
        {"num_bits": 4, "type": "float", "strategy": "group", "group_size": 32},
    ),
    "mxfp8": lambda size: compressed(
        size, "mxfp8-quantized", {**_FP8, "strategy": "group", "group_size": 32}
    ),
    "nf4": lambda size: four_bits(size, "nf4", nested=False),
    "nf4-nested": lambda size: four_bits(size, "nf4", nested=True),
    "nf4-nested-half": lambda size: four_bits(
        _plus(size, 1, 3), "nf4", nested=True, dtype="float16"
    ),
    "fp4": lambda size: four_bits(size, "fp4", nested=False, dtype="float32"),
    "int8-rows": int8,
    "gptq-2": lambda size: gptq(size, 2, "gptq"),
    "gptq-4": lambda size: gptq(size, 4, "gptq"),
    "gptq-4-second": lambda size: gptq(size, 4, "gptq_v2", "bfloat16"),
    "gptq-8": lambda size: gptq(size, 8, "gptq"),
    "awq": lambda size: awq(size, 32),
}


def describe_library(reference: Reference) -> str:
    """Return the library that made a reference, and its version."""
    return f"{reference.library} {version(reference.library)}"
