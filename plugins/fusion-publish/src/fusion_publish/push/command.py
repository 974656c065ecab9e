"""`fuse push DIR ORG/NAME`: upload a merge to the Hugging Face Hub."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fusion_core.hub import Reference
    from fusion_publish.push.files import PublishedFile

_DEFAULT_MESSAGE = "Upload a merge made with fusion-core"


def push(
    directory: Annotated[
        Path, typer.Argument(metavar="DIR", help="Upload this directory, which fuse run wrote.")
    ],
    repository: Annotated[
        str, typer.Argument(metavar="ORG/NAME", help="Upload to this model repository.")
    ],
    private: Annotated[
        bool, typer.Option("--private", help="Create a private repository.")
    ] = False,
    revision: Annotated[
        Optional[str],  # noqa: UP045 - typer reads these annotations at run time
        typer.Option(metavar="BRANCH", help="Commit to this branch; default: main."),
    ] = None,
    create_pr: Annotated[
        bool, typer.Option("--create-pr", help="Open a pull request instead of committing.")
    ] = False,
    message: Annotated[
        str, typer.Option("--commit-message", metavar="TEXT", help="Set the title of the commit.")
    ] = _DEFAULT_MESSAGE,
    description: Annotated[
        str,
        typer.Option("--commit-description", metavar="TEXT", help="Set the text of the commit."),
    ] = "",
    keep: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(
            metavar="PATTERN",
            help="Leave files with such names in the repository, e.g. '*.gguf'; repeatable.",
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="List the files, and upload nothing.")
    ] = False,
) -> None:
    """Upload a merge to the Hugging Face Hub.

    The command compares every file with provenance.json first, and refuses a directory that has
    missing, changed or unknown files. It writes a model card that names the repository, unless you
    have edited the card or signed the directory. All files arrive in one commit, which removes the
    other files of a merge that was there before. A repository with files of other origin is
    refused. After an interruption, run the same command again: it sends only what the hub does not
    have yet.

    \b
    Examples:
      fuse push merged org/name --private
      fuse push merged org/name --create-pr
      fuse push merged org/name --dry-run
    """  # noqa: D301 - \b tells typer to keep the line breaks
    from fusion_core.commands import escape_control
    from fusion_publish.card.writing import CARD, is_edited, write_card
    from fusion_publish.push.files import list_files
    from fusion_publish.push.uploading import Destination, upload
    from fusion_publish.signing.signatures import SIGNATURE
    from fusion_publish.verification.verifying import verify

    reference = _parse(repository, revision, create_pr=create_pr)
    verify(directory, subject=str(directory)).raise_faults()
    if dry_run:
        _print_files(list_files(directory))
        return
    if not is_edited(directory / CARD) and not (directory / SIGNATURE).exists():
        write_card(directory, repository=reference.repo)
    destination = Destination(
        reference, message, description, private, create_pr, tuple(keep or ())
    )
    done = upload(list_files(directory), destination)
    if done.address is None:
        print(f"nothing to upload: {reference.repo} has these files, so no pull request was opened")
        return
    if done.removed:
        print(escape_control(f"removed files of the merge before: {', '.join(done.removed)}"))
    print(escape_control(f"uploaded: {done.address}"))


def _parse(repository: str, revision: str | None, *, create_pr: bool) -> Reference:
    """Return the repository and the branch. Raises `RecipeError` for options that conflict."""
    from fusion_core import hub
    from fusion_core.errors import RecipeError

    reference = hub.parse(repository)
    if "@" in repository:
        raise RecipeError(
            f"{repository!r}: expected org/name without a revision",
            hint=f"Name a branch with --revision {reference.revision}.",
        )
    if revision is None:
        return reference
    if create_pr:
        raise RecipeError(
            "--revision and --create-pr conflict: a pull request has a branch of its own",
            hint="Leave one of them out.",
        )
    return hub.parse(f"{repository}@{revision}")


def _print_files(files: Sequence[PublishedFile]) -> None:
    from fusion_core.commands import format_bytes, print_table

    print_table(["file", "size"], [[file.name, format_bytes(file.size)] for file in files])
    total = format_bytes(sum(file.size for file in files))
    print(f"{len(files)} files, {total}; nothing was uploaded", file=sys.stderr)
