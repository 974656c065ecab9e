"""Kinds of models, told by facts about a pool, and the kinds on which rules were counted."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    from fusion_core import ModelPool

#: A model with this many times the entries of those that were counted is another kind.
_LARGER = 10
_CAUSAL, _CLIP = "causal language models", "CLIP vision towers"


@dataclass(frozen=True)
class Kind:
    """Models of one architecture, fine-tuned in one way; sizes are those of the largest pool."""

    #: what the base's `config.json` says; empty without one
    architecture: str
    #: whether task vectors have a low numerical rank, as adapters do
    is_low_rank: bool
    experts: int
    #: entries of the tensors that are merged
    entries: int

    def __str__(self) -> str:
        tuned = "low-rank experts" if self.is_low_rank else "full fine-tunes"
        models = self.architecture or "models without a config.json"
        return f"{tuned} of {models}, {self.experts} experts, {self.entries:,} merged entries"

    def covers(self, other: Kind) -> bool:
        """Tell whether what was counted on this kind holds for a pool of another one."""
        is_alike = self.architecture == other.architecture and (
            self.is_low_rank == other.is_low_rank
        )
        is_larger = other.experts > self.experts or other.entries > _LARGER * self.entries
        return is_alike and not is_larger


#: The kinds of `record.json`: what benchmarks/diagnosis_pools.py makes.
COUNTED: Mapping[str, Kind] = {
    "lm-mini": Kind(_CAUSAL, is_low_rank=False, experts=6, entries=1_672_896),
    "mini8": Kind(_CLIP, is_low_rank=False, experts=8, entries=802_176),
    "mini8, low rank": Kind(_CLIP, is_low_rank=True, experts=5, entries=802_176),
    "toys": Kind("", is_low_rank=False, experts=8, entries=8_352),
    "toys, adapters": Kind("", is_low_rank=True, experts=8, entries=8_352),
}


def counted_as(kind: Kind) -> list[str]:
    """Return the names of the counted kinds that a pool is of."""
    return [name for name, counted in COUNTED.items() if counted.covers(kind)]


def read_architecture(pool: ModelPool[Any]) -> str:
    """Return what the `config.json` of a pool's base says that its models are; "" without one."""
    file = pool.assets().get("config.json")
    if file is None:
        return ""
    content = json.loads(file.read_bytes() if isinstance(file, Path) else file)
    name = str((content.get("architectures") or [content.get("model_type", "")])[0])
    if name.endswith("ForCausalLM"):
        return _CAUSAL
    return _CLIP if name.lower().startswith("clip") else name
