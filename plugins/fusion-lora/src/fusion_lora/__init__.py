"""LoRA adapters: read as experts, extracted from full models, and written as results of merges.

from pathlib import Path

from fusion_core.weights import CheckpointSource, Location
from fusion_lora import LoraSource

base = CheckpointSource("base")
task_vectors = LoraSource(Location(Path("math-lora"), "math-lora"), base)
"""

from fusion_core.commands import lazy_exports

__all__, __getattr__, __dir__ = lazy_exports(__name__, __file__)
