"""`fuse smoke DIR`: ask a model a few things, beside those that it was made of."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated, Optional

import typer

Prompt = Annotated[
    Optional[list[str]],  # noqa: UP045 - typer reads these annotations at run time
    typer.Option("--prompt", metavar="TEXT", help="What to ask; repeatable. Default: three."),
]


def smoke(
    context: typer.Context,
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="A model directory.")],
    prompt: Prompt = None,
    tokens: Annotated[int, typer.Option(min=1, help="Tokens of an answer, at most.")] = 32,
    plain: Annotated[bool, typer.Option("--plain", help="Use no chat template.")] = False,
    alone: Annotated[bool, typer.Option("--alone", help="Ask no other models.")] = False,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Ask all anew, whatever they said before.")
    ] = False,
    device: Annotated[
        str, typer.Option(metavar="DEVICE", help="Where models run: cpu, cuda.")
    ] = "cpu",
    trust: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(
            "--trust",
            metavar="NAME",
            help="Allow what the recipe in DIR asks for that can run code, as `fuse check` names "
            "it; repeatable.",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="No progress.")] = False,
) -> None:
    """Ask a model a few things, and see at once whether it talks gibberish.

    Of a directory that fuse run wrote, the base and experts are asked, too. Exits with 1 if an
    answer of the model's is empty, repeats itself, or is not finite.
    """
    from fusion_core import hub
    from fusion_core.commands import device_of, progress_for, trusted_by
    from pools_lm.smoke.directory import made_of
    from pools_lm.smoke.trial import PROMPTS, Trial

    logging.basicConfig(format="warning: %(message)s")
    progress = progress_for(quiet=quiet)
    trial = Trial(
        device=device_of(device),
        prompts=prompt or PROMPTS,
        max_tokens=tokens,
        is_plain=plain,
        fresh=fresh,
        progress=progress,
    )
    blocked: frozenset[str] = context.obj or frozenset()
    with hub.session(progress):
        others = [] if alone else made_of(directory, blocked, trusted_by(trust))
        found = trial.findings(directory, others)
    typer.echo(found.as_json() if as_json else found.as_text())
    if found.problems:
        raise typer.Exit(1)
