"""`fuse diagnose RECIPE`: what to expect of merges, before any is made."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Optional

import typer

Text = Optional[str]  # noqa: UP045 - typer reads these annotations at run time


def diagnose(
    context: typer.Context,
    recipe: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Argument(
            help="A recipe in YAML; flags override it. Its algorithm is not looked at.",
            show_default=False,
        ),
    ] = None,
    pool: Annotated[Text, typer.Option(metavar="NAME", help="What to diagnose: a pool.")] = None,
    task_pool: Annotated[Text, typer.Option(metavar="NAME", help="Whose examples to ask.")] = None,
    tasks: Annotated[Text, typer.Option(metavar="A,B", help="Only these tasks.")] = None,
    assignments: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option("--set", metavar="KEY=VALUE", help="An option of the recipe; repeatable."),
    ] = None,
    no_tasks: Annotated[bool, typer.Option("--no-tasks", help="Look at weights alone.")] = False,
    labels: Annotated[
        bool,
        typer.Option(
            "--labels/--no-labels", help="Measure base and experts: do they fit their tasks?"
        ),
    ] = True,
    trials: Annotated[
        bool, typer.Option("--try", help="Try some merges on unlabeled examples, too.")
    ] = False,
    connectivity: Annotated[
        bool, typer.Option("--connectivity", help="Ask models on the lines between models, too.")
    ] = False,
    samples: Annotated[int, typer.Option(min=1, help="Unlabeled examples of each task.")] = 64,
    device: Annotated[
        str, typer.Option(metavar="DEVICE", help="Where models run: cpu, cuda.")
    ] = "cpu",
    trust: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(
            "--trust",
            metavar="NAME",
            help="Allow what recipes in the places of models ask for; tasks that need trust are "
            "left alone. Repeatable.",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON: all figures.")] = False,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="No progress.")] = False,
) -> None:
    """Say which merges of these models to expect something of, which not, why, and how sure.

    Looks at the experts' task vectors and, where there are tasks, at what models predict of
    unlabeled examples. Labels are looked at for one question: whether each expert is better than
    the base on its own task. Later runs remember that. Every expectation comes with how often it
    came true on other models.

    \b
    Examples:
      fuse diagnose --pool mini8
      fuse diagnose recipe.yaml --no-tasks
      fuse diagnose recipe.yaml --try --samples 128
    """  # noqa: D301 - \b is typer's: lines stay as they are
    from fusion_core import RunOptions
    from fusion_core.commands import (
        escape_control,
        load_recipe,
        override,
        print_json,
        progress_for,
        sections_from,
        trusted_names,
    )
    from fusion_report.diagnosis.diagnose import Questions
    from fusion_report.diagnosis.diagnose import diagnose as run
    from fusion_report.diagnosis.shown import print_diagnosis

    names = {"model_pool": pool, "task_pool": task_pool}
    raw = {} if recipe is None else load_recipe(recipe)
    found = run(
        override(sections_from(raw, names, tasks), assignments or []),
        Questions(
            tasks=not no_tasks,
            labels=labels,
            samples=samples,
            trials=trials,
            connectivity=connectivity,
        ),
        RunOptions(
            device=device,
            progress=progress_for(quiet=quiet),
            block=context.obj or frozenset(),
            trust=trusted_names(trust),
        ),
    )
    for warning in found.warnings:
        print(f"warning: {escape_control(warning)} Nothing is expected of merges.", file=sys.stderr)
    if as_json:
        print_json(found.as_json())
    else:
        print_diagnosis(found)
