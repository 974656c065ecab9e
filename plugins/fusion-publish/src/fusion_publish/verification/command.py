"""`fuse verify MODEL`: compare a model with its provenance."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

if TYPE_CHECKING:
    from fusion_publish.verification.findings import Verification

Key = Optional[Path]  # noqa: UP045 - typer reads these annotations at run time


def verify(
    model: Annotated[
        str, typer.Argument(metavar="DIR|ORG/NAME", help="Verify this output, here or on the hub.")
    ],
    allow: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(
            metavar="PATTERN", help="Accept added files with such names, e.g. '*.gguf'; repeatable."
        ),
    ] = None,
    public_key: Annotated[
        Key,
        typer.Option(
            "--public-key", metavar="FILE", help="Verify the signature with this key (PEM), too."
        ),
    ] = None,
    signature: Annotated[
        Key,
        typer.Option(metavar="FILE", help="Read the signature from FILE; default: DIR/model.sig."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="Hide progress.")] = False,
) -> None:
    """Hash every file of an output, and compare it with provenance.json.

    A file that was changed, removed, renamed, swapped or added is named, and the exit code is 8.
    Texts for people (*.md, LICENSE) may be edited and added. Only a signature finds a file that was
    changed together with its record: see fuse sign.

    \b
    Examples:
      fuse verify merged
      fuse verify org/merged-model
      fuse verify merged --public-key key.pub
    """  # noqa: D301 - \b is typer's: lines stay as they are
    from fusion_core import hub
    from fusion_core.commands import print_json, progress_for
    from fusion_core.errors import RecipeError
    from fusion_publish.signing.signatures import verify_signature
    from fusion_publish.verification import verifying
    from fusion_publish.verification.locating import locate

    if signature is not None and public_key is None:
        raise RecipeError("--signature needs --public-key", hint="Name the signer's key.")
    with hub.session(progress_for(quiet=quiet), again=True, updates=False):
        located = locate(model, () if public_key is None else ["*"])  # a signature covers all
        verification = verifying.verify(
            located.directory, subject=located.subject, names=located.names, allow=allow or ()
        )
    if as_json:
        print_json(verification.as_json())
    else:
        _print(verification)
    verification.raise_faults()
    if public_key is not None:
        verify_signature(located, public_key, signature)
        if not as_json:
            typer.echo("the signature is valid")


def _print(verification: Verification) -> None:
    from fusion_core.commands import escape_control, print_table

    rows = [(entry.file, str(entry.status), entry.detail) for entry in verification.findings]
    print_table(["file", "status", "detail"], rows)
    for limit in verification.limits:
        typer.echo(escape_control(f"limit: {limit}"))
    if not verification.faults:
        typer.echo(
            escape_control(f"verified: {verification.subject}, {verification.tensors} tensors")
        )
