"""`fuse extract-lora EXPERT --base BASE -o DIR`: turn a full model into an adapter."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

if TYPE_CHECKING:
    from collections.abc import Sequence

_PATTERN = "PATTERN"

Patterns = Optional[list[str]]  # noqa: UP045 - typer reads these annotations at run time


def extract_lora(
    context: typer.Context,
    expert: Annotated[
        str, typer.Argument(metavar="EXPERT", help="Extract from this model: a path or a hub id.")
    ],
    base: Annotated[str, typer.Option(metavar="BASE", help="Take the difference from this model.")],
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="DIR", help="Write the adapter to DIR.")
    ],
    rank: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(metavar="R", help="Give every module this rank; default: 16.", min=1),
    ] = None,
    energy: Annotated[
        Optional[float],  # noqa: UP045
        typer.Option(
            metavar="SHARE",
            help="Give each module the rank that keeps this share of its squared entries.",
        ),
    ] = None,
    rank_pattern: Annotated[
        Patterns,
        typer.Option(metavar="PATTERN=R", help="Give matching tensors another rank; repeatable."),
    ] = None,
    only: Annotated[
        Patterns, typer.Option(metavar=_PATTERN, help="Extract only matching tensors; repeatable.")
    ] = None,
    skip: Annotated[
        Patterns, typer.Option(metavar=_PATTERN, help="Leave out matching tensors; repeatable.")
    ] = None,
    save_whole: Annotated[
        Patterns,
        typer.Option(
            metavar=_PATTERN, help="Store matching tensors whole (modules_to_save); repeatable."
        ),
    ] = None,
    dtype: Annotated[
        str, typer.Option(metavar="DTYPE", help="Store the factors in this dtype.")
    ] = "float32",
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace an existing output that fuse wrote.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="Show no progress.")] = False,
) -> None:
    """Extract a LoRA adapter from a fine-tuned model.

    PEFT loads the directory, and so does every recipe. The report names the error of each module.
    The command names tensors that change but are not matrices, such as norms. --save-whole stores
    them.

    \b
    Examples:
      fuse extract-lora math --base base -o math-lora --rank 32
      fuse extract-lora math --base base -o math-lora --energy 0.95
      fuse extract-lora math --base base -o math-lora --save-whole '*norm*'
    """  # noqa: D301 - \b is typer's: lines stay as they are
    from fusion_core import hub
    from fusion_core.commands import escape_control, print_json, print_table, progress_for
    from fusion_lora.options import read_options
    from fusion_lora.pair import open_pair
    from fusion_lora.record import HEADINGS
    from fusion_lora.writing import write_adapter

    blocked: frozenset[str] = context.obj or frozenset()
    options = read_options(rank=rank, energy=energy, patterns=rank_pattern, dtype=dtype)
    progress = progress_for(quiet=quiet)
    with hub.session(progress), (pair := open_pair(expert, base, blocked)).executor:
        extraction = pair.plan(options, only=only or (), skip=skip or (), whole=save_whole or ())
        record = write_adapter(
            extraction,
            output,
            pair.executor,
            base_name=base,
            cards=pair.cards,
            blocked=blocked,
            overwrite=overwrite,
            progress=progress,
        )
    if as_json:
        print_json(record.as_data())
        return
    print_table(HEADINGS, list(record.rows()))
    print(escape_control(record.describe()))
    _warn(record.describe_left_out())
    print(f"written: {escape_control(str(output))}")


def _warn(lines: Sequence[str]) -> None:
    from fusion_core.commands import escape_control

    for line in lines:
        print(f"warning: {escape_control(line)}", file=sys.stderr)
