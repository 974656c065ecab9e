"""The skeleton of a plugin: a package that installs, runs and passes its own tests.

The folder `templates/common` has the files of every package, one further folder per kind has the
rest. File names end in `.template`; names such as `$package` in their text are replaced.
"""

from __future__ import annotations

import keyword
import os
import re
import tempfile
from dataclasses import dataclass
from enum import StrEnum
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING

from fusion_core.errors import DiskError, OutputError, RecipeError

if TYPE_CHECKING:
    from collections.abc import Iterator

_TEMPLATES = Path(__file__).parent / "templates"
_SUFFIX = ".template"
_DISTRIBUTION = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?")
_PREFIX = re.compile(r"^(fusion|pools?|tasks?|formats?)-(?=.)")


class Kind(StrEnum):
    """The kind of component that a plugin provides."""

    ALGORITHM = "algorithm"
    MODEL_POOL = "model-pool"
    TASK_POOL = "task-pool"
    TEXT_TASK_POOL = "text-task-pool"
    POOLS = "pools"
    FORMAT = "format"
    COMMAND = "command"


_SUMMARIES = {
    Kind.ALGORITHM: "A way of fusing models",
    Kind.MODEL_POOL: "A pool of models",
    Kind.TASK_POOL: "A pool of tasks",
    Kind.TEXT_TASK_POOL: "A pool of tasks on texts",
    Kind.POOLS: "Models and their tasks",
    Kind.FORMAT: "A format of models",
    Kind.COMMAND: "A command",
}


@dataclass(frozen=True, slots=True)
class Names:
    """The names of a plugin's package, component and classes, derived from its distribution."""

    distribution: str

    @classmethod
    def of(cls, name: str) -> Names:
        """Normalise the name of a distribution; raise `RecipeError` for an unusable name."""
        names = cls(re.sub(r"[-_.]+", "-", name).lower())
        problem = None
        if not _DISTRIBUTION.fullmatch(name):
            problem = "is an invalid name for a distribution"
        elif not names.package.isidentifier() or keyword.iskeyword(names.package):
            problem = f"gives the Python package {names.package!r}, which cannot be imported"
        elif find_spec(names.package) is not None:
            problem = f"gives the Python package {names.package!r}, which already exists"
        if problem:
            raise RecipeError(
                f"{name!r} {problem}", hint="Choose another name, e.g. fusion-median."
            )
        return names

    @property
    def package(self) -> str:
        """The name of the Python package."""
        return self.distribution.replace("-", "_")

    @property
    def component(self) -> str:
        """The name that users type: the distribution's name without a prefix such as `fusion-`."""
        return _PREFIX.sub("", self.distribution)

    @property
    def class_name(self) -> str:
        """The stem of class names."""
        stem = "".join(part.capitalize() for part in self.component.split("-"))
        return stem if stem.isidentifier() else f"The{stem}"


_MODULES = {
    Kind.ALGORITHM: "method",
    Kind.MODEL_POOL: "pool",
    Kind.TASK_POOL: "tasks",
    Kind.TEXT_TASK_POOL: "tasks",
    Kind.POOLS: "pools",
    Kind.FORMAT: "source",
    Kind.COMMAND: "command",
}
#: Requirements of a plugin besides the core.
_REQUIREMENTS: dict[Kind, tuple[str, ...]] = {
    **dict.fromkeys(Kind, ("torch>=2.6",)),
    Kind.TEXT_TASK_POOL: ("tokenizers>=0.21", "torch>=2.6"),
    Kind.COMMAND: ("typer>=0.26.1",),
}


def write_plugin(name: str, kind: Kind, directory: Path | None = None) -> Path:
    """Write the package of a plugin, completely or not at all, and return its directory.

    The default directory is the distribution's name. Raises `OutputError` if it already exists.
    """
    names = Names.of(name)
    target = directory or Path(names.distribution)
    if os.path.lexists(target):
        raise OutputError(f"{target} already exists", hint="Choose another directory with -o DIR.")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as staging:
            package = Path(staging) / target.name
            for name_in_package, text in _render_files(names, kind):
                file = package / name_in_package
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text(text, encoding="utf-8")
            package.rename(target)
    except OSError as error:
        raise DiskError(f"cannot write {target}: {error.strerror or error}") from error
    return target


def _render_files(names: Names, kind: Kind) -> Iterator[tuple[str, str]]:
    """Yield the path inside the package and the content of every file."""
    values = {
        "distribution": names.distribution,
        "package": names.package,
        "component": names.component,
        "class_name": names.class_name,
        "module": _MODULES[kind],
        "summary": _SUMMARIES[kind],
        "imports": ", ".join(f'"{requirement}"' for requirement in _REQUIREMENTS[kind]),
        "core_range": core_range(metadata.version("fusion-core")),
    }
    for folder in ("common", kind):
        for path in sorted((_TEMPLATES / folder).rglob(f"*{_SUFFIX}")):
            inside = path.relative_to(_TEMPLATES / folder).as_posix().removesuffix(_SUFFIX)
            inside = inside.replace("PACKAGE", names.package).replace("MODULE", _MODULES[kind])
            yield inside, Template(path.read_text(encoding="utf-8")).substitute(values)


def core_range(version: str) -> str:
    """Return the range of core versions for a plugin that is written for `version`."""
    from packaging.version import Version

    major, minor = Version(version).release[:2]
    return f">={major}.{minor},<{major}.{minor + 1}"
