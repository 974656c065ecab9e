"""The names of transformers for the tensors of a GGUF file, and the rows that llama.cpp permutes.

llama.cpp stores the rows of llama's query and key projections in another order, because its rotary
embedding pairs neighbouring elements. transformers pairs elements of the two halves of a head.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from fusion_core.errors import CheckpointError

if TYPE_CHECKING:
    from formats_quantised.gguf_header import GgufHeader

#: Architectures whose names and values are compared with transformers'.
ARCHITECTURES = ("llama", "qwen2", "qwen3")
_MODEL = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
#: Tensors that transformers computes from the configuration.
UNUSED = frozenset(("rope_freqs.weight",))
_PARTS = re.compile(r"(?:blk\.(\d{1,6})\.)?(\w+)\.(weight|bias)")
_PERMUTED = {"attn_q": "attention.head_count", "attn_k": "attention.head_count_kv"}


def rename(name: str, header: GgufHeader, label: str) -> str:
    """Return the name of transformers; raise `CheckpointError` for what is not known."""
    architecture = header.fields.get("general.architecture")
    if architecture not in ARCHITECTURES:
        raise CheckpointError(
            f"{label}: GGUF of the architecture {architecture!r} is not supported",
            hint=f"Supported are {', '.join(ARCHITECTURES)}. Load the model with transformers "
            "(from_pretrained(DIRECTORY, gguf_file=FILE)) and save_pretrained.",
        )
    if (match := _PARTS.fullmatch(name)) is not None:
        layer, part, kind = match.groups()
        new = (_MODEL if layer is None else _LAYER).get(part)
        if new is not None:
            prefix = "" if layer is None else f"model.layers.{int(layer)}."
            return f"{prefix}{new}.{kind}"
    raise CheckpointError(
        f"{label}: tensor {name!r} of the architecture {architecture} is not supported",
        hint="Mixtures of experts and adapters in GGUF are not read. Name the model that the file "
        "was made from.",
    )


def count_heads(name: str, header: GgufHeader, rows: int, label: str) -> int | None:
    """Return the heads whose rows llama.cpp permuted in a tensor, None if it did not.

    Raises `CheckpointError` if the file states no number of heads that fits the rows.
    """
    match = _PARTS.fullmatch(name)
    if header.fields["general.architecture"] != "llama" or match is None:
        return None
    key = _PERMUTED.get(match[2])
    if key is None or match[1] is None:
        return None
    fields = header.fields
    heads = fields.get(f"llama.{key}", fields.get("llama.attention.head_count"))
    if isinstance(heads, tuple):  # a number per layer
        layer = int(match[1])
        heads = heads[layer] if layer < len(heads) else None
    if type(heads) is not int or heads < 1 or rows % (2 * heads):
        raise CheckpointError(
            f"{label}: llama.{key} is {heads}, which does not fit tensor {name!r} of {rows} rows",
            hint="The file is damaged. Convert the model again with a current llama.cpp.",
        )
    return heads
