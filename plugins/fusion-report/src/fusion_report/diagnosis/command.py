"""`fuse diagnose RECIPE`: predict which merges will work, before any is made."""

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
            help="Read a recipe in YAML; flags override it. Its algorithm is ignored.",
            show_default=False,
        ),
    ] = None,
    pool: Annotated[Text, typer.Option(metavar="NAME", help="Diagnose this model pool.")] = None,
    task_pool: Annotated[
        Text, typer.Option(metavar="NAME", help="Use the examples of this task pool.")
    ] = None,
    tasks: Annotated[Text, typer.Option(metavar="A,B", help="Use only these tasks.")] = None,
    assignments: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option("--set", metavar="KEY=VALUE", help="Set an option of the recipe; repeatable."),
    ] = None,
    no_tasks: Annotated[bool, typer.Option("--no-tasks", help="Measure only weights.")] = False,
    labels: Annotated[
        bool,
        typer.Option(
            "--labels/--no-labels",
            help="Check with labels that experts beat the base on their tasks.",
        ),
    ] = True,
    trials: Annotated[
        bool, typer.Option("--try", help="Also try some merges on unlabeled examples.")
    ] = False,
    connectivity: Annotated[
        bool,
        typer.Option("--connectivity", help="Also measure models on the lines between models."),
    ] = False,
    samples: Annotated[
        int, typer.Option(min=1, help="Use this many unlabeled examples per task.")
    ] = 64,
    device: Annotated[
        str, typer.Option(metavar="DEVICE", help="Run models on this device: cpu, cuda.")
    ] = "cpu",
    trust: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(
            "--trust",
            metavar="NAME",
            help="Allow NAME in recipes that stand for models; tasks that need trust are skipped. "
            "Repeatable.",
        ),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print all measurements as JSON.")
    ] = False,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="Show no progress.")] = False,
) -> None:
    """Predict which merge methods will work for these models, with reasons and confidence.

    The command measures the experts' task vectors and, with tasks, the models' predictions on
    unlabeled examples. It uses labels only to check that each expert beats the base on its own
    task; later runs remember the result. Every prediction shows how often it held on other models.

    \b
    Examples:
      fuse diagnose --pool mini8
      fuse diagnose recipe.yaml --no-tasks
      fuse diagnose recipe.yaml --try --samples 128
    """  # noqa: D301 - \b tells typer to keep the line breaks
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
    from fusion_report.diagnosis.diagnose import diagnose as run_diagnosis
    from fusion_report.diagnosis.printing import print_diagnosis

    names = {"model_pool": pool, "task_pool": task_pool}
    raw = {} if recipe is None else load_recipe(recipe)
    diagnosis = run_diagnosis(
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
    for warning in diagnosis.warnings:
        print(f"warning: {escape_control(warning)} No predictions are made.", file=sys.stderr)
    if as_json:
        print_json(diagnosis.as_json())
    else:
        print_diagnosis(diagnosis)
