"""Public names that are imported from their home modules on first use.

A module's stub (`.pyi`) is the one list of its names. Type checkers read it, and so does the module
itself, so that `import fusion_core` stays as cheap as an empty module.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable


def lazy_exports(
    module: str, file: str
) -> tuple[list[str], Callable[[str], Any], Callable[[], list[str]]]:
    """Return `__all__`, `__getattr__` and `__dir__` of a module whose stub lists its names.

    Each line of the stub reads `from HOME import NAME as NAME`.
    """
    with open(f"{file.removesuffix('.py')}.pyi", encoding="utf-8") as stub:  # noqa: PTH123 - pathlib is slow to import
        imports = [line.split() for line in stub if line.startswith("from ")]
    homes = {words[-1]: words[1] for words in imports}

    def load(name: str) -> Any:  # noqa: ANN401 - any public object
        if name not in homes:
            from fusion_core._moved import refuse_old_name

            refuse_old_name(module, name)
        return getattr(import_module(homes[name]), name)

    names = sorted(homes)
    return names, load, lambda: names
