"""Writes the model card of a directory, and its `.eval_results`, without losing a user's edits."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from fusion_core.errors import OutputError
from fusion_core.files import is_sealed, seal, write_durably
from fusion_publish.card.kinds import find_kind
from fusion_publish.card.licences import find_licence
from fusion_publish.card.metadata import write_metadata
from fusion_publish.card.outputs import MergeOutput
from fusion_publish.card.results import FOLDER, eval_results, list_results
from fusion_publish.card.text import write_text
from pools_checkpoints import read_card

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from fusion_publish.card.results import Result

CARD = "README.md"
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

    `licence` is named by the user. Without it, the card keeps its licence; a first card has the
    recipe's, or one that is worked out from the models'.
    `repository` is where the model will be on the hub; without it, the code loads the model from
    its directory. With `force`, files that were edited are replaced.

    Raises `CheckpointError` for a directory that no run wrote, `RecipeError` for models whose
    licences conflict, and `OutputError` for files that were edited.
    """
    if not is_edited(directory / CARD):  # the licence that an earlier command named
        licence = licence or _licence_of(directory)
    files = build_card(MergeOutput.read(directory), licence=licence, repository=repository)
    outdated = [name for name in _list_written(directory) if name not in files]
    edited = [name for name in (*files, *outdated) if is_edited(directory / name)]
    if edited and not force:
        raise OutputError(
            f"{directory}: not written by fuse, or edited since: {', '.join(edited)}",
            hint=f"Replace it: fuse card {directory} --force. Or move it away.",
        )
    for name, content in files.items():
        write_durably(directory / name, content, parents=True)
    for name in outdated:
        (directory / name).unlink()
    if outdated and not any((directory / FOLDER).iterdir()):
        (directory / FOLDER).rmdir()
    return list(files)


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


def _list_eval_results(results: Sequence[Result]) -> dict[str, bytes]:
    from huggingface_hub.utils import yaml_dump  # type: ignore[attr-defined]

    files = {}
    for number, result in enumerate(results):
        content = eval_results(result)
        if content is not None:
            stem = result.task if _FILE_STEM.fullmatch(result.task) else f"task-{number}"
            files[f"{FOLDER}/{stem}.yaml"] = seal(yaml_dump(content, sort_keys=False), "# {}")
    return files


def _list_written(directory: Path) -> list[str]:
    """Return the names of the files in `.eval_results`."""
    return [f"{FOLDER}/{path.name}" for path in sorted((directory / FOLDER).glob("*.yaml"))]
