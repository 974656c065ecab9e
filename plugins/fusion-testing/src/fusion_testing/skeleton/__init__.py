"""The skeleton of a plugin: a package that installs, is listed, runs and passes its own tests.

Templates are the files of such a package, with `$name`s in them and `.template` behind their own
name: what is common to all kinds, and what each kind adds. Knows errors, and nothing of what is
installed.
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
    """What a plugin provides."""

    ALGORITHM = "algorithm"
    MODEL_POOL = "model-pool"
    TASK_POOL = "task-pool"
    TEXT_TASK_POOL = "text-task-pool"
    POOLS = "pools"
    FORMAT = "format"
    COMMAND = "command"


_WORDS = {
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
    """What everything in a plugin is called, derived from its distribution's name.

    Raises `RecipeError` for a name that no distribution or Python package can have.
    """

    distribution: str

    @classmethod
    def of(cls, name: str) -> Names:
        """Read a distribution's name in any spelling."""
        names = cls(re.sub(r"[-_.]+", "-", name).lower())
        problem = None
        if not _DISTRIBUTION.fullmatch(name):
            problem = "is not a name of a distribution"
        elif not names.package.isidentifier() or keyword.iskeyword(names.package):
            problem = f"would make a Python package {names.package!r}, which cannot be imported"
        elif find_spec(names.package) is not None:
            problem = f"would make a Python package {names.package!r}, and there is one already"
        if problem:
            raise RecipeError(f"{name!r} {problem}", hint="Choose another, e.g. fusion-median.")
        return names

    @property
    def package(self) -> str:
        """The Python package."""
        return self.distribution.replace("-", "_")

    @property
    def component(self) -> str:
        """What users type: the distribution's name without the prefix of its kind."""
        return _PREFIX.sub("", self.distribution)

    @property
    def class_name(self) -> str:
        """The stem of its classes' names."""
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
#: What a plugin's own code imports beside the core.
_IMPORTS: dict[Kind, tuple[str, ...]] = {
    **dict.fromkeys(Kind, ("torch>=2.6",)),
    Kind.TEXT_TASK_POOL: ("tokenizers>=0.21", "torch>=2.6"),
    Kind.COMMAND: ("typer>=0.26",),
}


def write_plugin(name: str, kind: Kind, directory: Path | None = None) -> Path:
    """Write the package of a plugin and return its directory; default: named like it, right here.

    All of it or nothing. Raises `OutputError` if the directory is there already.
    """
    names = Names.of(name)
    target = directory or Path(names.distribution)
    if os.path.lexists(target):
        raise OutputError(f"{target} is there already", hint="Choose another with -o DIR.")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as staging:
            written = Path(staging) / target.name
            for path, text in _files(names, kind):
                place = written / path
                place.parent.mkdir(parents=True, exist_ok=True)
                place.write_text(text, encoding="utf-8")
            written.rename(target)
    except OSError as error:
        raise DiskError(f"{target} cannot be written: {error.strerror or error}") from error
    return target


def _files(names: Names, kind: Kind) -> Iterator[tuple[str, str]]:
    """Return the package's files: path inside it, and content."""
    values = {
        "distribution": names.distribution,
        "package": names.package,
        "component": names.component,
        "class_name": names.class_name,
        "module": _MODULES[kind],
        "summary": _WORDS[kind],
        "imports": ", ".join(f'"{each}"' for each in _IMPORTS[kind]),
        "core_range": core_range(metadata.version("fusion-core")),
    }
    for folder in ("common", kind):
        for path in sorted((_TEMPLATES / folder).rglob(f"*{_SUFFIX}")):
            inside = path.relative_to(_TEMPLATES / folder).as_posix().removesuffix(_SUFFIX)
            inside = inside.replace("PACKAGE", names.package).replace("MODULE", _MODULES[kind])
            yield inside, Template(path.read_text(encoding="utf-8")).substitute(values)


def core_range(version: str) -> str:
    """Return the versions of the core that a plugin written for one of them works with."""
    from packaging.version import Version

    major, minor = Version(version).release[:2]
    return f">={major}.{minor},<{major}.{minor + 1}"
