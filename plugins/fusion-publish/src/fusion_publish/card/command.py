"""`fuse card DIR`: write the model card of a merge."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

Directory = Annotated[
    Path, typer.Argument(metavar="DIR", help="Read this directory, which fuse wrote.")
]
Licence = Annotated[
    Optional[str],  # noqa: UP045 - typer reads these annotations at run time
    typer.Option(
        "--licence", metavar="NAME", help="Name the licence; default: worked out from the models'."
    ),
]


def card(
    directory: Directory,
    licence: Licence = None,
    repository: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option("--repo", metavar="ORG/NAME", help="Name the model's repository on the hub."),
    ] = None,
    force: Annotated[
        bool,
        typer.Option("--force", help="Replace a card that was edited, or that fuse did not write."),
    ] = False,
) -> None:
    """Write the model card of a merge.

    README.md gets the metadata that the hub reads, the results of the last evaluation, code that
    loads the model, the recipe, and how to reproduce the model. Results on data sets of the hub are
    also written to .eval_results. fuse run and fuse extract-lora write both into every output, and
    fuse evaluate updates them. Call this command to name a licence or the repository. It keeps a
    card that you have edited, and your own files in .eval_results.

    \b
    Examples:
      fuse card merged
      fuse card merged --licence cc-by-nc-4.0 --repo org/name
    """  # noqa: D301 - \b tells typer to keep the line breaks
    from fusion_core.commands import escape_control
    from fusion_publish.card.writing import write_card

    for name in write_card(directory, licence=licence, repository=repository, force=force):
        print(escape_control(f"written: {directory / name}"))
