"""Files for authors of pools: durable writes, locks, and readers for untrusted files.

The stub `files.pyi` lists the names and their homes.
"""

from fusion_core._exports import lazy_exports

__all__, __getattr__, __dir__ = lazy_exports(__name__, __file__)
