"""`fuse transplant-tokenizer MODEL DONOR -o DIR`: give a model another model's tokenizer."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

if TYPE_CHECKING:
    from collections.abc import Iterable

    from fusion_tokenizer.record import Record

Directory = Optional[Path]  # noqa: UP045 - typer reads these annotations at run time
Count = Optional[int]  # noqa: UP045


def transplant_tokenizer(
    context: typer.Context,
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="Change this model: a path or a hub id.")
    ],
    donor: Annotated[
        str, typer.Argument(metavar="DONOR", help="Take the tokenizer of this model.")
    ],
    output: Annotated[
        Directory, typer.Option("-o", "--output", metavar="DIR", help="Write the model to DIR.")
    ] = None,
    method: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="Approximate new tokens by omp, common-interpolation, subword, mean or zero.",
        ),
    ] = "omp",
    k: Annotated[
        Count,
        typer.Option("-k", metavar="N", min=1, help="Combine N shared tokens; default: 64."),
    ] = None,
    center: Annotated[
        bool,
        typer.Option(
            "--center/--no-center",
            help="Let omp represent differences from the mean of the shared tokens.",
        ),
    ] = True,
    subword_weights: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            metavar="NAME",
            help="Weight pieces equally (mean), or take the last at the input and the first at the "
            "output (ends).",
        ),
    ] = None,
    match_roles: Annotated[
        bool,
        typer.Option(
            "--match-roles/--no-match-roles",
            help="Let special tokens with the same role share a row.",
        ),
    ] = True,
    chat_template: Annotated[
        str,
        typer.Option(metavar="OWNER", help="Copy the chat template of the donor or the model."),
    ] = "none",
    multiple: Annotated[
        int,
        typer.Option(
            "--pad-to-multiple-of", metavar="N", min=1, help="Pad the rows to a multiple of N."
        ),
    ] = 1,
    text: Annotated[
        Directory,
        typer.Option(metavar="FILE", help="Measure bits per byte on FILE before and after."),
    ] = None,
    measure: Annotated[
        bool, typer.Option("--measure", help="Measure bits per byte on a short built-in text.")
    ] = False,
    workers: Annotated[Count, typer.Option(metavar="N", min=1, help="Work with N threads.")] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace an existing output that fuse wrote.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print how tokens match, and stop.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="Show no progress.")] = False,
) -> None:
    """Give a model the tokenizer of another model, and embeddings that fit it.

    Tokens that both vocabularies have keep the model's rows. New tokens get rows by --method. The
    report counts both. Chat templates are copied only with --chat-template. The model's template
    may use tokens that the donor lacks. The donor's template has a format that the model has never
    seen.

    \b
    Examples:
      fuse transplant-tokenizer model donor -o transplanted
      fuse transplant-tokenizer model donor -o transplanted --method subword --measure
      fuse transplant-tokenizer model donor --dry-run
    """  # noqa: D301 - \b is typer's: lines stay as they are
    from fusion_core import hub
    from fusion_core.commands import progress_for
    from fusion_core.errors import RecipeError
    from fusion_tokenizer.models import open_pair
    from fusion_tokenizer.options import read_options
    from fusion_tokenizer.perplexity import read_text
    from fusion_tokenizer.transplant import Transplant
    from fusion_tokenizer.writing import write_model

    if output is None and not dry_run:
        raise RecipeError("missing option: -o DIR", hint="Name the directory to write.")
    options = read_options(
        method=method,
        k=k,
        center=center,
        subword_weights=subword_weights,
        match_roles=match_roles,
        multiple=multiple,
        chat_template=chat_template,
    )
    content = read_text(text) if measure or text is not None else None
    blocked: frozenset[str] = context.obj or frozenset()
    progress = progress_for(quiet=quiet)
    with hub.session(progress):
        pair = open_pair(
            model,
            donor,
            with_donor_weights=options.needs_donor_weights,
            blocked=blocked,
            workers=workers,
        )
        with pair.executor:
            transplant = Transplant.plan(pair, options)
            if dry_run or output is None:
                record = transplant.record()
            else:
                record = write_model(
                    transplant,
                    output,
                    progress,
                    text=content,
                    blocked=blocked,
                    overwrite=overwrite,
                )
    _print(record, as_json=as_json)
    _warn(record.warnings)
    if output is not None and not dry_run and not as_json:
        from fusion_core.commands import escape_control

        print(f"written: {escape_control(str(output))}")


def _print(record: Record, *, as_json: bool) -> None:
    from fusion_core.commands import escape_control, print_json, print_table
    from fusion_tokenizer.record import HEADINGS

    if as_json:
        print_json(record.as_data())
        return
    print_table(HEADINGS, list(record.table()))
    for line in record.describe():
        print(escape_control(line))


def _warn(lines: Iterable[str]) -> None:
    from fusion_core.commands import escape_control

    for line in lines:
        print(f"warning: {escape_control(line)}", file=sys.stderr)
