"""Files that an installed package holds: models and data that need no download."""

from __future__ import annotations

import hashlib
from functools import cached_property
from typing import TYPE_CHECKING

from fusion_core.errors import IntegrityError

if TYPE_CHECKING:
    from pathlib import Path

_SUMS = "SHA256SUMS"


class PackagedFiles:
    """A folder of a package, with a file SHA256SUMS as `sha256sum` writes it.

    Each file is compared with the hash that the package lists for it before its path is given away.
    """

    def __init__(self, folder: Path, distribution: str) -> None:
        self.folder = folder
        self._distribution = distribution

    def file(self, name: str) -> Path:
        """Return a file; raises `IntegrityError` unless it is as it was made."""
        path = self.folder / name
        if hashlib.sha256(self._bytes_of(path)).hexdigest() != self._sums.get(name):
            raise self._damaged(path, "it is not the file that the package was made with")
        return path

    def directory(self, name: str) -> str:
        """Return a folder; raises `IntegrityError` unless each file in it is as it was made."""
        folder = self.folder / name
        listed = {self.folder / each for each in self._sums}
        for path in {path for path in listed if path.parent == folder} | {*folder.glob("*")}:
            self.file(path.relative_to(self.folder).as_posix())
        return str(folder)

    @cached_property
    def _sums(self) -> dict[str, str]:
        """The SHA-256 of every file, by its path in the folder."""
        text = self._bytes_of(self.folder / _SUMS).decode("utf-8", errors="replace")
        lines = (line.partition("  ") for line in text.splitlines())
        return {name: digest for digest, _, name in lines}

    def _bytes_of(self, path: Path) -> bytes:
        try:
            return path.read_bytes()
        except OSError as error:
            raise self._damaged(path, error.strerror or str(error)) from error

    def _damaged(self, path: Path, reason: str) -> IntegrityError:
        again = f"pip install --force-reinstall {self._distribution}"
        return IntegrityError(f"{path}: {reason}", hint=f"Install it anew: {again}.")
