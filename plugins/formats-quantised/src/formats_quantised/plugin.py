"""The formats of this plugin, and `output.quantise`; this module imports nothing heavy."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fusion_core import FormatSpec, OutputSpec, hookimpl

if TYPE_CHECKING:
    from collections.abc import Iterator

_SAFETENSORS = ("model.safetensors", "model.safetensors.index.json")
#: The name of a format, the `quant_method` of its configuration, its reader and a summary.
_METHODS = (
    ("fp8", "fp8", "block_fp8:open_fp8", "fp8 with one scale per block, as of DeepSeek and Qwen."),
    (
        "compressed-tensors",
        "compressed-tensors",
        "compressed_variants:open_compressed",
        "compressed-tensors: fp8, int8, int4, nvfp4, mxfp4 and mxfp8.",
    ),
    ("mxfp4", "mxfp4", "mxfp4:open_mxfp4", "mxfp4 with packed experts, as of gpt-oss."),
    (
        "bitsandbytes",
        "bitsandbytes",
        "bitsandbytes:open_bitsandbytes",
        "bitsandbytes: nf4 and fp4, also with nested scales, and int8.",
    ),
    ("gptq", "gptq", "gptq:open_gptq", "GPTQ with 2, 4 or 8 bits."),
    ("awq", "awq", "awq:open_awq", "AWQ with 4 bits, in the layout gemm."),
)


@hookimpl
def fusion_register_formats() -> Iterator[FormatSpec]:
    """Register the formats of quantised checkpoints."""
    for name, method, target, summary in _METHODS:
        yield FormatSpec(
            name=name,
            summary=summary,
            target=f"formats_quantised.{target}",
            files=_SAFETENSORS,
            config_keys=("quantization_config",),
            config_values=(("quant_method", method),),
        )
    yield FormatSpec(
        name="gguf",
        summary="GGUF of llama.cpp, of the architectures llama, qwen2 and qwen3.",
        target="formats_quantised.gguf_source:open_gguf",
        files=("*.gguf",),
    )


@hookimpl
def fusion_register_outputs() -> Iterator[OutputSpec]:
    """Register the form of quantised merges."""
    yield OutputSpec(
        name="quantise",
        summary="Write a merge with quantised weights: fp8 with one scale per block.",
        target="formats_quantised.encoder:QuantiseEncoder",
        config="formats_quantised.quantise_config:QuantiseConfig",
        main_option="target",
    )
