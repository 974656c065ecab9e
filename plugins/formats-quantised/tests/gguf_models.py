"""Tiny models in GGUF, written with the `gguf` package as llama.cpp's converter does."""

from __future__ import annotations

from typing import TYPE_CHECKING

import gguf
import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

#: Layers, width, inner width and words of the models.
LAYERS, WIDTH, INNER, WORDS = 2, 256, 512, 40
#: Heads, heads of keys, and the width of a head, which transformers takes to be 128 for qwen3.
HEADS = {"llama": (8, 4, 32), "qwen2": (8, 4, 32), "qwen3": (2, 1, 128)}


def _shapes(architecture: str) -> dict[str, tuple[int, ...]]:
    heads, keys, head = HEADS[architecture]
    layer = {
        "attn_norm.weight": (WIDTH,),
        "attn_q.weight": (heads * head, WIDTH),
        "attn_k.weight": (keys * head, WIDTH),
        "attn_v.weight": (keys * head, WIDTH),
        "attn_output.weight": (WIDTH, heads * head),
        "ffn_norm.weight": (WIDTH,),
        "ffn_gate.weight": (INNER, WIDTH),
        "ffn_up.weight": (INNER, WIDTH),
        "ffn_down.weight": (WIDTH, INNER),
    }
    if architecture == "qwen2":
        rows = {"q": heads, "k": keys, "v": keys}
        layer |= {f"attn_{part}.bias": (count * head,) for part, count in rows.items()}
    if architecture == "qwen3":
        layer |= {"attn_q_norm.weight": (head,), "attn_k_norm.weight": (head,)}
    names = {"token_embd.weight": (WORDS, WIDTH), "output_norm.weight": (WIDTH,)}
    names |= {"output.weight": (WORDS, WIDTH)}
    return names | {f"blk.{i}.{part}": size for i in range(LAYERS) for part, size in layer.items()}


def write_gguf(
    path: Path,
    architecture: str,
    kinds: Sequence[str],
    seed: int = 0,
    *,
    keys_by_layer: Sequence[int] | None = None,
) -> None:
    """Write a model whose matrices take turns among types of numbers.

    `keys_by_layer` is stored as the number of heads of keys instead of one number.
    """
    random = np.random.default_rng(seed)
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_block_count(LAYERS)
    writer.add_context_length(64)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(INNER)
    heads, keys, head = HEADS[architecture]
    writer.add_head_count(heads)
    writer.add_head_count_kv(keys_by_layer or keys)
    writer.add_key_length(head)
    writer.add_value_length(head)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(WORDS)
    writer.add_token_list([f"word{number}" for number in range(WORDS)])
    for number, (name, shape) in enumerate(_shapes(architecture).items()):
        values = random.standard_normal(shape).astype(np.float32)
        kind = gguf.GGMLQuantizationType[kinds[number % len(kinds)]]
        if len(shape) == 1:
            writer.add_tensor(name, values)
        else:
            writer.add_tensor(name, encode(values, kind, random), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def encode(
    values: np.ndarray, kind: gguf.GGMLQuantizationType, random: np.random.Generator
) -> np.ndarray:
    """Quantise values; random bytes stand for blocks that `gguf` reads but does not write."""
    try:
        return gguf.quants.quantize(values, kind)
    except NotImplementedError:
        shape = gguf.quants.quant_shape_to_byte_shape(values.shape, kind)
        return random.integers(0, 100, shape).astype(np.uint8)  # no NaN among the scales
