"""Writes the model card of a directory, and its `.eval_results`, without losing a user's edits."""

from __future__ import annotations

import logging
import re
from typing import TYPE_CHECKING

from fusion_core.errors import FusionError, OutputError, RecipeError
from fusion_core.files import is_sealed, seal, write_durably
from fusion_core.hub import looks_like_id
from fusion_publish.card.kinds import find_kind
from fusion_publish.card.licences import find_licence
from fusion_publish.card.metadata import write_metadata
from fusion_publish.card.outputs import MergeOutput
from fusion_publish.card.results import FOLDER, eval_results, list_results
from fusion_publish.card.text import write_text
from pools_checkpoints import read_card

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence
    from pathlib import Path

    from fusion_publish.card.results import Result

_LOG = logging.getLogger(__name__)

CARD = "README.md"
#: The title of a card, which may be the name of the repository.
_TITLE = re.compile(r"^# (.*)$", re.MULTILINE)
#: A name of a task that is also the name of a file, such as `arc_easy`.
_FILE_STEM = re.compile(r"[\w-]+")


def write_card(
    directory: Path,
    *,
    licence: str | None = None,
    repository: str | None = None,
    force: bool = False,
) -> list[str]:
    """Write `README.md` and `.eval_results` into a directory; return the names of the files.

    `licence` is named by the user. Without it, the card keeps its licence, even if it was edited; a
    first card has the recipe's, or one that is worked out from the models'.
    `repository` is where the model will be on the hub. Without it, the card keeps the one that it
    names; if it names none, the code loads the model from its directory.

    A file of `.eval_results` that the user wrote or edited stays as it is, and a warning names it
    if it has the name of a result. With `force`, `README.md` and such a file are replaced.

    Raises `CheckpointError` for a directory that `fuse` did not write, `RecipeError` for models
    whose licences conflict, and `OutputError` for a `README.md` that was edited.
    """
    if repository is not None and not looks_like_id(repository):
        raise RecipeError(
            f"invalid name of a repository: {repository!r}", hint="Write it as ORG/NAME."
        )
    licence = licence or _licence_of(directory)
    repository = repository or _repository_of(directory / CARD)
    files = build_card(MergeOutput.read(directory), licence=licence, repository=repository)
    if is_edited(directory / CARD) and not force:
        raise OutputError(
            f"{directory}: not written by fuse, or edited since: {CARD}",
            hint=f"Replace it: fuse card {directory} --force. Or move it away.",
        )
    _delete_outdated(directory, files)
    written = [name for name in files if force or not is_edited(directory / name)]
    for name in files:
        if name in written:
            write_durably(directory / name, files[name], parents=True)
        else:
            _LOG.warning("%s is kept: fuse did not write it, or it was edited", directory / name)
    return written


def update_card(directory: Path) -> None:
    """Write the card of a directory, unless its user has edited it.

    Warns of a card that stays as it is, or that cannot be written.
    """
    if is_edited(directory / CARD):
        _LOG.warning(
            "%s was edited and keeps its results; fuse card %s --force writes it again",
            directory / CARD,
            directory,
        )
        return
    try:
        write_card(directory)
    except FusionError as error:
        _LOG.warning("%s gets no model card: %s\n%s", directory, error.message, error.hint or "")


def build_card(
    output: MergeOutput, *, licence: str | None = None, repository: str | None = None
) -> Mapping[str, bytes]:
    """Return the files that describe a merge, by name. Raises as `write_card` does.

    Without a repository, they do not depend on where the directory is.
    """
    named = licence or output.licence
    combined = find_licence(output.cards, named)
    kind, results = find_kind(output), list_results(output)
    metadata = write_metadata(output, repository, kind, combined, results)
    text = write_text(output, repository, kind, combined, results)
    card = seal(f"---\n{metadata}\n---\n\n{text}", "<!-- {} -->")
    return {CARD: card, **_list_eval_results(results)}


def is_edited(path: Path) -> bool:
    """Tell whether a file exists that `fuse` did not write, or that was edited since."""
    return path.is_symlink() or (path.exists() and not is_sealed(path.read_bytes()))


def _licence_of(directory: Path) -> str | None:
    """Return the licence in an existing card; None if it says that the licence is unknown."""
    licence = read_card(directory).get("licence")
    return None if licence == "unknown" else licence


def _repository_of(card: Path) -> str | None:
    """Return the repository that an existing card names as its title."""
    if not card.is_file():
        return None
    title = _TITLE.search(card.read_text(encoding="utf-8", errors="replace"))
    return title[1] if title and looks_like_id(title[1]) else None


def _list_eval_results(results: Sequence[Result]) -> dict[str, bytes]:
    from huggingface_hub.utils import yaml_dump  # type: ignore[attr-defined]

    files = {}
    for number, result in enumerate(results):
        content = eval_results(result)
        if content is not None:
            stem = result.task if _FILE_STEM.fullmatch(result.task) else f"task-{number}"
            files[f"{FOLDER}/{stem}.yaml"] = seal(yaml_dump(content, sort_keys=False), "# {}")
    return files


def _delete_outdated(directory: Path, files: Collection[str]) -> None:
    """Delete results of an earlier evaluation, except those that the user wrote or edited."""
    folder = directory / FOLDER
    for path in folder.glob("*.yaml"):
        if f"{FOLDER}/{path.name}" not in files and not is_edited(path):
            path.unlink()
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()
