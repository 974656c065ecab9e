"""The record that a run leaves in its output: the provenance and the recipe."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fusion_core.commands import parse_provenance
from fusion_core.errors import CheckpointError, IntegrityError
from fusion_core.files import read_whole

if TYPE_CHECKING:
    from pathlib import Path

    from fusion_core.commands import Provenance

PROVENANCE, RECIPE = "provenance.json", "recipe.yaml"
#: The most bytes of a provenance.
_LARGEST = 25_000_000


def load_provenance(directory: Path, subject: str) -> tuple[bytes, Provenance]:
    """Return the text and the content of a directory's provenance.

    Raises `IntegrityError` if it is missing or malformed.
    """
    path = directory / PROVENANCE
    if not path.is_file():
        raise IntegrityError(
            f"{subject} has no {PROVENANCE}: nothing says what its files should be",
            hint="Name a directory that fuse wrote.",
        )
    try:
        text = read_whole(path, _LARGEST)
        return text, parse_provenance(text, path=PROVENANCE)
    except CheckpointError as error:
        raise IntegrityError(
            f"{subject} does not verify: {error.message}",
            hint=f"{PROVENANCE} is damaged, or a newer version of fuse wrote it.",
        ) from error
