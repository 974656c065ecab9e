"""Check built distributions: `python release/check_distributions.py dist`.

Prints one line per fault, and exits with 1 if there is any. `nox -s release` builds them first.
"""

from __future__ import annotations

import sys
import tarfile
import zipfile
from email import message_from_string
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

#: In bytes: a download of a distribution should take seconds.
LARGEST = 25_000_000
#: The licence of the code. Data inside a distribution may add others: "Apache-2.0 AND MIT".
LICENCE = "Apache-2.0"


def find_faults(directory: Path) -> Iterator[str]:
    """Yield what is wrong with the wheels and sdists in a directory, each with its file."""
    wheels, sdists = sorted(directory.glob("*.whl")), sorted(directory.glob("*.tar.gz"))
    if not wheels:
        yield f"{directory}: no wheels"
    built = [{path.name.split("-")[0] for path in paths} for paths in (wheels, sdists)]
    for name in sorted(built[0] ^ built[1]):
        yield f"{name}: expected a wheel and an sdist, found one of them"
    for path in (*wheels, *sdists):
        if path.stat().st_size > LARGEST:
            yield f"{path.name}: {path.stat().st_size} bytes, expected at most {LARGEST}"
        check = _find_faults_of_wheel if path.suffix == ".whl" else _find_faults_of_sdist
        for fault in check(path):
            yield f"{path.name}: {fault}"


def _find_faults_of_wheel(path: Path) -> Iterator[str]:
    package = path.name.split("-")[0]
    with zipfile.ZipFile(path) as archive:
        files = archive.namelist()
        metadata = next(file for file in files if file.endswith(".dist-info/METADATA"))
        yield from _find_faults_of_metadata(archive.read(metadata).decode())
    if f"{package}/py.typed" not in files:
        yield f"missing {package}/py.typed, which tells type checkers that it is typed"
    if not any(file.endswith(".dist-info/licenses/LICENSE") for file in files):
        yield "missing LICENSE"


def _find_faults_of_sdist(path: Path) -> Iterator[str]:
    with tarfile.open(path) as archive:
        files = {name.partition("/")[2] for name in archive.getnames()}
    for name in ("LICENSE", "README.md", "CHANGELOG.md", "pyproject.toml", "PKG-INFO"):
        if name not in files:
            yield f"missing {name}"


def _find_faults_of_metadata(text: str) -> Iterator[str]:
    fields = message_from_string(text)
    licence = fields["License-Expression"]
    if LICENCE not in str(licence).split(" AND "):
        yield f"licence: expected {LICENCE}, got {licence}"
    if not (fields["Description-Content-Type"] or "").startswith("text/markdown"):
        yield "missing README in its metadata"
    yield from (
        f"{name} is missing in its metadata"
        for name in ("Summary", "Requires-Python")
        if name not in fields
    )


if __name__ == "__main__":
    faults = [*find_faults(Path(sys.argv[1]))]
    print("".join(f"{fault}\n" for fault in faults), end="")
    sys.exit(1 if faults else 0)
