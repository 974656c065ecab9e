"""`fuse sign DIR`: sign the files of an output."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer


def sign(
    directory: Annotated[
        Path, typer.Argument(metavar="DIR", help="Sign every file of this output.")
    ],
    key: Annotated[
        Path, typer.Option(metavar="FILE", help="Sign with this elliptic-curve key (PEM).")
    ],
    password: Annotated[
        Optional[str],  # noqa: UP045 - typer reads these annotations at run time
        typer.Option(
            envvar="FUSION_KEY_PASSWORD",
            metavar="TEXT",
            help="Decrypt the key with this password; set the variable instead to keep it out of "
            "the shell's history.",
        ),
    ] = None,
) -> None:
    """Verify an output, and sign its files: DIR/model.sig.

    Sign last, just before you publish: an evaluation or an edited card makes the signature invalid.
    The format is that of OpenSSF Model Signing.

    \b
    Examples:
      fuse sign merged --key key.pem
      fuse verify merged --public-key key.pub
    """  # noqa: D301 - \b is typer's: lines stay as they are
    from fusion_core.commands import escape_control
    from fusion_publish.signing.signatures import sign_directory
    from fusion_publish.verification.verifying import verify

    verify(directory, subject=str(directory)).raise_faults()
    path = sign_directory(directory, key, password)
    typer.echo(escape_control(f"signed: {path}"))
