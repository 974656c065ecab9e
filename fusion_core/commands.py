"""The API for authors of commands: planning and running, reports and tables, output.

The stub `commands.pyi` lists the names and their homes.
"""

from fusion_core._exports import lazy_exports

__all__, __getattr__, __dir__ = lazy_exports(__name__, __file__)
