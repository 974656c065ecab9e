"""`fuse smoke DIR`: prompt a merged model, its base and its experts."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated, Optional

import typer

Prompt = Annotated[
    Optional[list[str]],  # noqa: UP045 - typer reads these annotations at run time
    typer.Option(
        "--prompt", metavar="TEXT", help="Ask this prompt; repeatable. Default: three prompts."
    ),
]


def smoke(
    context: typer.Context,
    directory: Annotated[
        Path, typer.Argument(metavar="DIR", help="Test the model in this directory.")
    ],
    prompt: Prompt = None,
    tokens: Annotated[
        int, typer.Option(min=1, help="Limit an answer to this number of tokens.")
    ] = 32,
    plain: Annotated[
        bool, typer.Option("--plain", help="Do not use the model's chat template.")
    ] = False,
    alone: Annotated[
        bool, typer.Option("--alone", help="Do not ask the base and the experts.")
    ] = False,
    fresh: Annotated[bool, typer.Option("--fresh", help="Ignore cached answers.")] = False,
    device: Annotated[
        str, typer.Option(metavar="DEVICE", help="Run models on this device: cpu, cuda.")
    ] = "cpu",
    trust: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(
            "--trust",
            metavar="NAME",
            help="Allow NAME, a part of the recipe in DIR that can run code; `fuse check` lists "
            "the names. Repeatable.",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="Hide progress.")] = False,
) -> None:
    """Prompt a language model, and check that its answers are not gibberish.

    If fuse run wrote the directory, its base and experts answer too. The exit code is 1 if an
    answer of the model is empty, repeats itself, or is not finite.
    """
    from fusion_core import hub
    from fusion_core.commands import progress_for, resolve_device, trusted_names
    from pools_lm.smoke.directory import source_models
    from pools_lm.smoke.smoke_test import PROMPTS, SmokeTest

    logging.basicConfig(format="warning: %(message)s")
    progress = progress_for(quiet=quiet)
    smoke_test = SmokeTest(
        device=resolve_device(device),
        prompts=prompt or PROMPTS,
        max_tokens=tokens,
        is_plain=plain,
        fresh=fresh,
        progress=progress,
    )
    blocked: frozenset[str] = context.obj or frozenset()
    with hub.session(progress):
        others = [] if alone else source_models(directory, blocked, trusted_names(trust))
        findings = smoke_test.run(directory, others)
    typer.echo(findings.as_json() if as_json else findings.as_text())
    if findings.problems:
        raise typer.Exit(1)
