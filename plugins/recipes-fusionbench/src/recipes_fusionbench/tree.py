"""The files of a configuration tree: those next to a file, and those of an installed FusionBench.

Names come from files that nobody vouches for, so they may only lead to YAML files below the tree's
folders. FusionBench itself is not imported.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fusion_core.commands import format_value, load_yaml
from fusion_core.errors import RecipeError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

#: The package that holds the tree of an installed FusionBench.
_PACKAGE = "fusion_bench_config"
#: The deepest groups of FusionBench's tree have two files each for 20 tasks.
_MAX_FILES = 500


class Tree:
    """The folders in which Hydra's names are looked up, in their order."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._count = 0

    def read(self, name: str) -> Mapping[str, Any] | None:
        """Return the file of a name such as `method/ties_merging`; None if there is none.

        Raises `RecipeError` for a file that is not a mapping, and for more files than a tree has.
        """
        parts = name.removesuffix(".yaml").split("/")
        if not all(parts) or {".", ".."} & {*parts} or "\0" in name:
            raise RecipeError(f"expected the name of a file in a configuration tree, got {name!r}")
        for folder in self._folders():
            path = folder.joinpath(*parts[:-1], f"{parts[-1]}.yaml")
            if path.is_file() and path.resolve().is_relative_to(folder.resolve()):
                return self._read(path)
        return None

    def _read(self, path: Path) -> Mapping[str, Any]:
        self._count += 1
        if self._count > _MAX_FILES:
            raise RecipeError(f"expected at most {_MAX_FILES} files of a configuration tree")
        try:
            content = load_yaml(path.read_text(encoding="utf-8"), origin=str(path))
        except (OSError, ValueError) as error:
            raise RecipeError(f"{path} cannot be read: {error}") from error
        if content is None:
            return {}
        if not isinstance(content, dict):
            raise RecipeError(f"{path}: expected a mapping, got {format_value(content)}")
        return content

    def _folders(self) -> Iterator[Path]:
        yield self.folder
        spec = find_spec(_PACKAGE)
        yield from map(Path, (spec and spec.submodule_search_locations) or ())
