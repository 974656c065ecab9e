"""Matrices that transformers packs into one tensor, according to a model's configuration.

Names and shapes do not tell whether a mixture is stored transposed, or how a fused attention
divides its rows into query, key and value. The rules describe transformers 5. Tests compare them
with its modules.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fusion_core.weights import Columns, Matrices, Rows, Stacked

if TYPE_CHECKING:
    from collections.abc import Mapping

    Shape = tuple[int, ...]

_EXPERTS = re.compile(r"(.*\.experts\.)(gate_up|down)_proj(_bias)?")
#: The same in files of Granite and JetMoE.
_LINEAR = re.compile(r"(.*\.(?:block_sparse_moe|mlp)\.)(input|output)_linear\.weight")
_PROJECTIONS = {"input": "gate_up", "output": "down"}
#: Models whose mixtures have shape (experts, inputs, outputs).
_TRANSPOSED = {"aria_text", "gpt_oss", "llama4_text", "openai_privacy_filter"}
#: Models whose published mixtures are transposed, and those that transformers 5 saves are not. It
#: looks at the shape, too.
_EITHER = {"qwen3_vl_moe_text"}
#: Models whose gate and up rows alternate.
_INTERLEAVED = {"gpt_oss"}
#: Fused attention by model type. Here query, key and value are stacked by rows.
_FUSED = {
    "gte": "attention.qkv_proj",
    "jina_embeddings_v3": "mixer.Wqkv",
    "new": "attention.qkv_proj",  # the name of GTE on the hub
    "nomic_bert": "attn.Wqkv",
    "phi3": "self_attn.qkv_proj",
}
#: Query, key and value alternate, head by head.
_BY_HEAD = {"bloom": "self_attention.query_key_value", "gpt_neox": "attention.query_key_value"}
#: Models whose linear layers have shape (inputs, outputs), and the names of those.
_CONV1D = {"gpt2", "openai-gpt"}
_CONV1D_LAYER = re.compile(
    r".*\.(?:mlp|attn|crossattention)\.(c_attn|q_attn|c_fc|c_proj)\.(weight|bias)"
)
_HEADS = "num_attention_heads", "n_head"


@dataclass(frozen=True)
class Packing:
    """The packing rules of one model type, with its sizes."""

    kind: str
    hidden: int
    heads: int
    key_heads: int
    head_dim: int

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Packing | None:
        """Read a `config.json`, or the text part of a multimodal one.

        Return None if it lacks the hidden size or the number of heads.
        """
        text_config = config.get("text_config")
        fields = text_config if isinstance(text_config, dict) else config
        hidden, heads = _size(fields, "hidden_size", "n_embd"), _size(fields, *_HEADS)
        if not hidden or not heads:
            return None
        kind = str(fields.get("model_type") or config.get("model_type"))
        key_heads = _size(fields, "num_key_value_heads") or heads
        return cls(kind, hidden, heads, key_heads, _size(fields, "head_dim") or hidden // heads)

    def matrices(self, name: str, shape: Shape) -> Matrices | None:
        """Return the matrices in a tensor; None if no rule applies."""
        if (match := _EXPERTS.fullmatch(name)) is not None:
            prefix, projection, bias = match.groups()
            return self._experts(prefix, projection, shape, is_bias=bias is not None)
        if (match := _LINEAR.fullmatch(name)) is not None:
            prefix, side = match.groups()
            return self._experts(f"{prefix}experts.", _PROJECTIONS[side], shape)
        if self.kind in _CONV1D and (match := _CONV1D_LAYER.fullmatch(name)) is not None:
            return self._conv1d(name, match[1], shape)
        module, _, kind = name.rpartition(".")
        for rule, names in {self._fused: _FUSED, self._by_head: _BY_HEAD}.items():
            if self.kind in names and f".{module}".endswith(f".{names[self.kind]}"):
                return rule(f"{module}.{{part}}.{kind}", shape)
        return None

    def may_be_transposed(self, name: str) -> bool:
        """Tell whether files of this model type hold a tensor in either orientation."""
        return self.kind in _EITHER and _EXPERTS.fullmatch(name) is not None

    def _experts(
        self, prefix: str, projection: str, shape: Shape, *, is_bias: bool = False
    ) -> Matrices | None:
        if len(shape) != (2 if is_bias else 3):
            return None
        is_transposed = self.kind in _TRANSPOSED
        if self.kind in _EITHER:
            is_transposed = shape[1 if projection == "down" else 2] != self.hidden
        outputs = shape[-1] if is_transposed or is_bias else shape[1]
        if projection == "down":
            rows, part = [Rows(outputs)], "down_proj"
        elif outputs % 2:
            return None
        else:
            size, part = outputs // 2, "{part}"
            rows = [Rows(gate_proj=size, up_proj=size)]
            if self.kind in _INTERLEAVED:
                rows = [Rows(size), Rows(gate_proj=1, up_proj=1)]
        columns = [] if is_bias else [Columns(shape[1 if is_transposed else 2])]
        if columns and projection == "gate_up" and columns[0].size != self.hidden:
            return None
        axes = [*columns, *rows] if is_transposed else [*rows, *columns]
        template = f"{prefix}{{index}}.{part}.{'bias' if is_bias else 'weight'}"
        return Matrices((Stacked(shape[0]), *axes), template)

    def _fused(self, template: str, shape: Shape) -> Matrices | None:
        query, key = self.heads * self.head_dim, self.key_heads * self.head_dim
        if shape[0] != query + 2 * key:
            return None
        return Matrices((Rows(q=query, k=key, v=key), *map(Columns, shape[1:])), template)

    def _by_head(self, template: str, shape: Shape) -> Matrices | None:
        if shape[0] != 3 * self.heads * self.head_dim:
            return None
        rows = Rows(self.heads), Rows(q=1, k=1, v=1), Rows(self.head_dim)
        return Matrices((*rows, *map(Columns, shape[1:])), template)

    def _conv1d(self, name: str, layer: str, shape: Shape) -> Matrices | None:
        """Turn a weight to (outputs, inputs). `c_attn` has query, key and value as outputs."""
        outputs, template = Rows(shape[-1]), name
        if layer == "c_attn" and shape[-1] == 3 * self.hidden:
            outputs = Rows(q=self.hidden, k=self.hidden, v=self.hidden)
            module, _, kind = name.rpartition(".")
            template = f"{module}.{{part}}.{kind}"
        return Matrices((*map(Columns, shape[:-1]), outputs), template)


def _size(fields: Mapping[str, Any], *names: str) -> int:
    """Return the first positive integer among some fields; 0 if there is none."""
    sizes = (fields.get(name) for name in names)
    return next((size for size in sizes if type(size) is int and size > 0), 0)
