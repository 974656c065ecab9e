"""The API for authors of commands: planning and running, reports and tables, output.

The stub `commands.pyi` lists the names and their homes.
"""

from fusion_core._exports import lazy_exports

__all__, __getattr__ = lazy_exports(__name__, __file__)


def __dir__() -> list[str]:
    return __all__
