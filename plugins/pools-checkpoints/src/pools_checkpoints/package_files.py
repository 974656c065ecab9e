"""Files in an installed package: models and data that need no download."""

from __future__ import annotations

import hashlib
from functools import cached_property
from typing import TYPE_CHECKING

from fusion_core.errors import IntegrityError

if TYPE_CHECKING:
    from pathlib import Path

_SUMS = "SHA256SUMS"


class PackagedFiles:
    """A folder of a package, with a file SHA256SUMS in the format of `sha256sum`.

    Each file is compared with its listed hash before its path is returned.
    """

    def __init__(self, folder: Path, distribution: str) -> None:
        self.folder = folder
        self._distribution = distribution

    def file(self, name: str) -> Path:
        """Return a file; raise `IntegrityError` if its hash differs."""
        path = self.folder / name
        if hashlib.sha256(self._read(path)).hexdigest() != self._sums.get(name):
            raise self._damage_error(path, f"checksum mismatch with {_SUMS} of the package")
        return path

    def directory(self, name: str) -> str:
        """Return a folder; raise `IntegrityError` if a file in it is missing, added or changed."""
        folder = self.folder / name
        listed = {self.folder / name for name in self._sums}
        for path in {path for path in listed if path.parent == folder} | {*folder.glob("*")}:
            self.file(path.relative_to(self.folder).as_posix())
        return str(folder)

    @cached_property
    def _sums(self) -> dict[str, str]:
        """The SHA-256 of every file, by its path in the folder."""
        text = self._read(self.folder / _SUMS).decode("utf-8", errors="replace")
        lines = (line.partition("  ") for line in text.splitlines())
        return {name: digest for digest, _, name in lines}

    def _read(self, path: Path) -> bytes:
        try:
            return path.read_bytes()
        except OSError as error:
            raise self._damage_error(path, error.strerror or str(error)) from error

    def _damage_error(self, path: Path, reason: str) -> IntegrityError:
        command = f"pip install --force-reinstall {self._distribution}"
        return IntegrityError(f"{path}: {reason}", hint=f"Install the package again: {command}.")
