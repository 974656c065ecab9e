"""Live models that learn or are looked into: what makes many passes through them fast."""

from fusion_core.machine.products import with_fast_products
from fusion_core.weights.merging.execution import keeping_freed_memory, on_cores

__all__ = ["keeping_freed_memory", "on_cores", "with_fast_products"]
