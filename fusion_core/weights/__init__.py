"""Named tensors that can be read one range at a time, and the engine that merges them.

The stub `__init__.pyi` lists the names and their homes.
"""

from fusion_core._exports import lazy_exports

__all__, __getattr__, __dir__ = lazy_exports(__name__, __file__)
