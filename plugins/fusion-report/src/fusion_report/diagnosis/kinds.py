"""Kinds of models, and the kinds in the record of rules."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    from fusion_core import ModelPool

#: A pool may have this many times the entries of a counted kind's largest pool.
_MAX_GROWTH = 10
CAUSAL, _CLIP = "causal language models", "CLIP vision towers"


@dataclass(frozen=True)
class Kind:
    """Models of one architecture and type of fine-tuning, up to a size."""

    #: architecture in the base's `config.json`; empty without one
    architecture: str
    #: whether task vectors have a low numerical rank, as those of adapters
    is_low_rank: bool
    experts: int
    #: number of entries of the merged tensors
    entries: int

    def __str__(self) -> str:
        tuned = "low-rank experts" if self.is_low_rank else "full fine-tunes"
        models = self.architecture or "models without a config.json"
        return f"{tuned} of {models}, {self.experts} experts, {self.entries:,} merged entries"

    def covers(self, other: Kind) -> bool:
        """Tell whether the record of this kind applies to pools of another kind."""
        is_same_type = self.architecture == other.architecture and (
            self.is_low_rank == other.is_low_rank
        )
        is_larger = other.experts > self.experts or other.entries > _MAX_GROWTH * self.entries
        return is_same_type and not is_larger


#: The kinds in `record.json`, from the pools of benchmarks/diagnosis_pools.py.
COUNTED: Mapping[str, Kind] = {
    "lm-mini": Kind(CAUSAL, is_low_rank=False, experts=6, entries=1_672_896),
    "mini8": Kind(_CLIP, is_low_rank=False, experts=8, entries=802_176),
    "mini8, low rank": Kind(_CLIP, is_low_rank=True, experts=5, entries=802_176),
    "toys": Kind("", is_low_rank=False, experts=8, entries=8_352),
    "toys, adapters": Kind("", is_low_rank=True, experts=8, entries=8_352),
}


def matching_kinds(kind: Kind) -> list[str]:
    """Return the names of the counted kinds whose record applies to a kind."""
    return [name for name, counted in COUNTED.items() if counted.covers(kind)]


def read_architecture(pool: ModelPool[Any]) -> str:
    """Return the architecture in the `config.json` of a pool's base; "" without one."""
    file = pool.assets().get("config.json")
    if file is None:
        return ""
    content = json.loads(file.read_bytes() if isinstance(file, Path) else file)
    name = str((content.get("architectures") or [content.get("model_type", "")])[0])
    if name.endswith("ForCausalLM"):
        return CAUSAL
    return _CLIP if name.lower().startswith("clip") else name
