"""The comparison of the header of a GGUF file with the `config.json` of the base."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from formats_quantised.gguf_names import ARCHITECTURES
from fusion_core.weights import Contradiction

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from formats_quantised.gguf_header import GgufHeader

_HEADS, _THETA = "num_attention_heads", "rope_theta"
#: Fields that change what the tensors compute, without the architecture, and keys of a
#: configuration.
_FIELDS = {
    "attention.head_count": _HEADS,
    "attention.head_count_kv": "num_key_value_heads",
    "rope.freq_base": _THETA,
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
}
#: A difference in these is a warning, as between two configurations.
_DOUBTFUL = {"rms_norm_eps"}
_DEFAULT_THETA = 10_000.0
#: The header has numbers in fp32.
_TOLERANCE = 1e-6


def compare_config(header: GgufHeader, config: Mapping[str, Any]) -> Iterator[Contradiction]:
    """Yield the statements of a header that a configuration contradicts.

    What one of them leaves out is not compared, except numbers with a default in both.
    """
    architecture, kind = header.fields.get("general.architecture"), config.get("model_type")
    if kind in ARCHITECTURES and kind != architecture:
        yield _contradict("general.architecture", architecture, "model_type", kind)
    if _HEADS not in config:  # none, or that of a model with several parts
        return
    stated = {key: header.fields.get(f"{architecture}.{key}") for key in _FIELDS}
    stated["rope.freq_base"] = stated["rope.freq_base"] or _DEFAULT_THETA
    stated["attention.head_count_kv"] = (
        stated["attention.head_count_kv"] or stated["attention.head_count"]
    )
    expected = _read_config(config)
    for field, key in _FIELDS.items():
        ours, theirs = stated[field], expected[key]
        if not isinstance(ours, int | float) or not isinstance(theirs, int | float):
            continue  # left out, or a number per layer
        if not math.isclose(ours, theirs, rel_tol=_TOLERANCE):
            yield _contradict(field, ours, key, theirs)


def _read_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of the compared keys; transformers 5 nests that of rope."""
    rope = config.get("rope_parameters")
    nested = rope.get(_THETA) if isinstance(rope, dict) else None
    defaults = {_THETA: nested or _DEFAULT_THETA, "num_key_value_heads": config.get(_HEADS)}
    return {key: config.get(key) or defaults.get(key) for key in _FIELDS.values()}


def _contradict(field: str, ours: object, key: str, theirs: object) -> Contradiction:
    problem = f"{ours}, but {key} in the base's config.json is {theirs}"
    return Contradiction(f"header {field}", problem, is_serious=key not in _DOUBTFUL)
