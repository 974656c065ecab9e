"""fusion-core: a plugin-based framework for deep model fusion.

The API for authors of methods, pools and tasks, and for Python programs. The stub `__init__.pyi`
lists the names and their homes.
"""

from typing import Any

from fusion_core import _exports

_NAMES, _load, _ = _exports.lazy_exports(__name__, __file__)
__all__ = [*_NAMES, "__version__"]  # noqa: PLE0604 - names of a stub


def __getattr__(name: str) -> Any:  # noqa: ANN401 - any public object
    if name == "__version__":
        from importlib.metadata import version

        return version("fusion-core")
    if name not in _NAMES:
        from fusion_core._moved import check_moved

        check_moved(name)
    return _load(name)


def __dir__() -> list[str]:
    return sorted(__all__)
