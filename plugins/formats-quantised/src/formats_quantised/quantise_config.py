"""The options of `output.quantise`; this module does not import torch."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, WithJsonSchema

from fusion_core import ComponentConfig

_PATTERNS = {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]}

Side = Annotated[int, Field(ge=1, le=2**16)]


class QuantiseConfig(ComponentConfig):
    """The form of a merge whose linear layers are quantised."""

    target: Literal["fp8-block"] = "fp8-block"
    """The encoding: `fp8-block` is fp8 (e4m3) with one fp32 scale per block, as of DeepSeek and
    Qwen."""
    block_size: Annotated[
        tuple[Side, Side],
        BeforeValidator(lambda size: [size, size] if isinstance(size, int) else size),
        WithJsonSchema({"anyOf": [{"type": "integer"}, {"type": "array"}]}),
    ] = (128, 128)
    """The rows and columns of a block, or one number for both. Servers read 128."""
    skip: Annotated[
        tuple[Annotated[str, Field(min_length=1)], ...],
        BeforeValidator(lambda value: [value] if isinstance(value, str) else value),
        WithJsonSchema(_PATTERNS),
    ] = ()
    """Patterns of further tensors that stay in the model's dtype. Embeddings, norms, heads, routers
    and vectors always do, and so does all that a quantised base stores plain."""
    partial_blocks: bool = False
    """Quantise matrices whose sides are not multiples of the block size, too, with smaller blocks
    at the ends. transformers dequantises such blocks wrongly or not at all. Without
    this, only matrices that the base stores in the same blocks."""
