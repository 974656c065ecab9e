"""The tensors of Llamas, from which benchmarks build models and estimate larger ones."""

from __future__ import annotations

import math
from dataclasses import dataclass

#: bytes per parameter in bf16
WIDE = 2


@dataclass(frozen=True)
class Llama:
    """The sizes of a Llama with untied embeddings and head."""

    hidden: int
    inner: int
    layers: int
    heads: int
    key_heads: int
    vocabulary: int

    @property
    def linear(self) -> dict[str, tuple[int, int]]:
        """The shapes of all linear layers except the head, by module name."""
        keys = self.hidden // self.heads * self.key_heads
        layer = {
            "mlp.down_proj": (self.hidden, self.inner),
            "mlp.gate_proj": (self.inner, self.hidden),
            "mlp.up_proj": (self.inner, self.hidden),
            "self_attn.k_proj": (keys, self.hidden),
            "self_attn.o_proj": (self.hidden, self.hidden),
            "self_attn.q_proj": (self.hidden, self.hidden),
            "self_attn.v_proj": (keys, self.hidden),
        }
        return {
            f"model.layers.{number}.{name}": shape
            for number in range(self.layers)
            for name, shape in layer.items()
        }

    @property
    def tensors(self) -> dict[str, tuple[int, ...]]:
        """The shapes of all tensors."""
        names = ("input_layernorm", "post_attention_layernorm")
        norms = [f"layers.{number}.{name}" for number in range(self.layers) for name in names]
        return {
            **dict.fromkeys(
                ("lm_head.weight", "model.embed_tokens.weight"), (self.vocabulary, self.hidden)
            ),
            **{f"{name}.weight": shape for name, shape in self.linear.items()},
            **{f"model.{name}.weight": (self.hidden,) for name in (*norms, "norm")},
        }

    @property
    def config(self) -> dict[str, object]:
        """The content of `config.json`."""
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_size": self.hidden,
            "intermediate_size": self.inner,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.key_heads,
            "vocab_size": self.vocabulary,
            "torch_dtype": "bfloat16",
        }

    @property
    def bytes(self) -> int:
        """The bytes of the model in bf16."""
        return WIDE * sum(math.prod(shape) for shape in self.tensors.values())

    @property
    def bytes_of_tokens(self) -> int:
        """The bytes of token rows in embeddings and head."""
        return WIDE * 2 * self.vocabulary * self.hidden

    def bytes_of_adapter(self, rank: int) -> int:
        """Return the bytes of a bf16 LoRA adapter on all linear layers except the head."""
        return WIDE * rank * sum(sum(shape) for shape in self.linear.values())


SMOLLM2_135M = Llama(576, 1536, 30, 9, 3, 49_152)  # its embeddings and head are tied
TINYLLAMA_1_1B = Llama(2048, 5632, 22, 32, 4, 32_000)
LLAMA_3_8B = Llama(4096, 14336, 32, 32, 8, 128_256)
LLAMA_3_70B = Llama(8192, 28672, 80, 64, 8, 128_256)
