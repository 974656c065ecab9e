"""The command `fuse average`: it composes a recipe and runs it as `fuse run` does."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from fusion_average.checkpoints import Checkpoint
    from fusion_average.run_average import RunAverage
    from fusion_core.commands import Plan

Text = Optional[str]  # noqa: UP045 - typer reads these annotations at run time
Count = Optional[int]  # noqa: UP045
Directory = Optional[Path]  # noqa: UP045


def average(
    context: typer.Context,
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Directory of the checkpoints.")],
    last: Annotated[
        Count, typer.Option(metavar="N", min=1, help="Average the last N checkpoints.")
    ] = None,
    window: Annotated[
        Text,
        typer.Option(metavar="FROM:TO", help="Average the checkpoints of these steps, inclusive."),
    ] = None,
    every: Annotated[
        Count,
        typer.Option(
            metavar="STEPS", min=1, help="Take a checkpoint every STEPS steps, from the last one."
        ),
    ] = None,
    schedule: Annotated[
        Text,
        typer.Option(
            metavar="CURVE",
            help="Weight like a learning-rate decay: linear, cosine, 1-sqrt; default: constant.",
        ),
    ] = None,
    ema: Annotated[
        Optional[float],  # noqa: UP045
        typer.Option(metavar="FACTOR", help="Take an exponential moving average."),
    ] = None,
    preset: Annotated[
        Text,
        typer.Option(metavar="NAME", help="Use a published rule: lawa, pma or soup (all, equal)."),
    ] = None,
    greedy: Annotated[
        bool,
        typer.Option("--greedy", help="Keep only checkpoints that improve the score on --tasks."),
    ] = False,
    tasks: Annotated[
        Directory,
        typer.Option(
            metavar="RECIPE", help="Take model pool and task pool from this recipe, and evaluate."
        ),
    ] = None,
    base: Annotated[
        Text, typer.Option(metavar="MODEL", help="Add LoRA checkpoints to this base.")
    ] = None,
    side_files: Annotated[
        Directory,
        typer.Option(
            "--side-files", metavar="DIR", help="Copy config.json and tokenizer from DIR."
        ),
    ] = None,
    match: Annotated[
        str, typer.Option(metavar="GLOB", help="Take only entries of RUN that match GLOB.")
    ] = "*",
    allow_gaps: Annotated[
        bool, typer.Option("--allow-gaps", help="Average even if steps are missing.")
    ] = False,
    assignments: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option("--set", metavar="KEY=VALUE", help="Set an option of the recipe; repeatable."),
    ] = None,
    output: Annotated[
        Text, typer.Option("-o", "--output", metavar="DIR", help="Write the model to DIR.")
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace an existing output that fuse wrote.")
    ] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue a stopped run of the same command.")
    ] = False,
    device: Annotated[
        str, typer.Option(metavar="DEVICE", help="Put live models on this device: cpu or cuda.")
    ] = "cpu",
    workers: Annotated[
        Count, typer.Option(metavar="N", min=1, help="Merge with N workers.")
    ] = None,
    trust: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(metavar="NAME", help="Allow something that runs code; repeatable."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print steps and weights, and stop.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="Hide progress and notes.")] = False,
) -> None:
    """Average the checkpoints of a training run.

    Checkpoints are directories or .safetensors files with a step number in their name, such as
    checkpoint-1000, step_1000 or iter_0001000, in any installed format. By default all checkpoints
    count equally. With --schedule, the weights emulate a learning-rate decay that the run did not
    make. The output holds recipe.yaml, which repeats the average with fuse run.

    \b
    Examples:
      fuse average runs/7b --last 8 -o averaged
      fuse average runs/7b --window 20000:50000 --schedule 1-sqrt -o averaged
      fuse average runs/7b --preset pma --side-files configs/7b -o averaged
      fuse average runs/7b --last 8 --dry-run
    """  # noqa: D301 - \b is typer's: lines stay as they are
    import logging

    from fusion_average.checkpoints import find_checkpoints, select_checkpoints
    from fusion_core import RunOptions, plan
    from fusion_core.commands import override, progress_for, run_plan, trusted_names
    from fusion_core.errors import RecipeError

    logging.basicConfig(format="warning: %(message)s")
    if output is None and not dry_run:
        raise RecipeError("missing option: -o DIR", hint="Name the directory to write.")
    algorithm = _compose_algorithm(schedule, ema, preset, last, greedy=greedy, tasks=tasks)
    selected = select_checkpoints(
        find_checkpoints(run, match),
        window=_parse_window(window),
        every=every,
        last=algorithm.get("last", last),
        allow_gaps=allow_gaps,
    )
    recipe = _compose_recipe(algorithm, selected, tasks, base=base, side_files=side_files)
    recipe = override({**recipe, "output": {"path": output}}, assignments or [])
    planned = plan(
        recipe,
        RunOptions(
            block=context.obj or frozenset(),
            device=device,
            evaluate=tasks is not None,
            overwrite=overwrite or dry_run,
            progress=progress_for(quiet=quiet),
            resume=resume,
            trust=trusted_names(trust),
            workers=workers,
        ),
    )
    _refuse_steps(planned)
    if dry_run:
        _print_weights(planned, selected, as_json=as_json)
    else:
        run_plan(planned, quiet=quiet, as_json=as_json)


def _compose_algorithm(
    schedule: str | None,
    ema: float | None,
    preset: str | None,
    last: int | None,
    *,
    greedy: bool,
    tasks: Path | None,
) -> dict[str, Any]:
    """Return the section `algorithm`; `last` replaces the number that a preset takes."""
    from fusion_average.config import RunAverageConfig
    from fusion_core.errors import RecipeError

    given = {"schedule": schedule, "ema": ema, "preset": preset}
    options = {name: value for name, value in given.items() if value is not None}
    if not greedy:
        count = last or RunAverageConfig.presets.get(preset or "", {}).get("last")
        return {"name": "run-average", **options, **({"last": count} if preset and count else {})}
    if options:
        flags = " and ".join(f"--{name}" for name in options)
        raise RecipeError(f"conflicting options: --greedy and {flags}", hint="Give one of them.")
    if tasks is None:
        raise RecipeError("--greedy needs --tasks", hint="Name a recipe with a task pool.")
    return {"name": "greedy-soup"}


def _compose_recipe(
    algorithm: Mapping[str, Any],
    selected: Sequence[Checkpoint],
    tasks: Path | None,
    *,
    base: str | None,
    side_files: Path | None,
) -> dict[str, Any]:
    """Return a recipe whose models are the checkpoints, the newest first.

    The first model gives side files and integer tensors.
    """
    from fusion_core.commands import load_recipe

    recipe = {} if tasks is None else load_recipe(tasks)
    pool = recipe.get("model_pool", {"name": "checkpoints"})
    pool = {"name": pool} if isinstance(pool, str) else dict(pool)
    pool["models"] = {checkpoint.name: str(checkpoint.path) for checkpoint in reversed(selected)}
    if base is not None:
        pool["base"] = base
    if side_files is not None:
        pool["side_files"] = str(side_files)
    return {**recipe, "algorithm": dict(algorithm), "model_pool": pool}


def _parse_window(text: str | None) -> tuple[int | None, int | None]:
    from fusion_core.errors import RecipeError

    if text is None:
        return None, None
    begin, colon, end = text.partition(":")
    if not colon or not all(not part or part.isdecimal() for part in (begin, end)):
        raise RecipeError(f"--window: expected FROM:TO, such as 20000:50000, got {text!r}")
    if begin and end and int(begin) > int(end):
        raise RecipeError(f"--window {text}: the first step is larger than the last")
    return int(begin) if begin else None, int(end) if end else None


def _list_averages(planned: Plan) -> list[RunAverage]:
    from fusion_average.run_average import RunAverage

    return [stage.stage for stage in planned.stages if isinstance(stage.stage, RunAverage)]


def _refuse_steps(planned: Plan) -> None:
    """Raise `RecipeError` for steps that a user sets: the directories' names have them."""
    from fusion_core.errors import RecipeError

    if any(stage.config.steps is not None for stage in _list_averages(planned)):
        raise RecipeError(
            "unsupported option of fuse average: algorithm.steps; the names of the checkpoints "
            "give the steps",
            hint="Leave it out. To give other steps, list the models in a recipe for fuse run.",
        )


def _print_weights(planned: Plan, selected: Sequence[Checkpoint], *, as_json: bool) -> None:
    from fusion_core.commands import print_json, print_table

    averages = _list_averages(planned)
    weights = averages[0].weights_of([*planned.pool.experts]) if averages else {}
    rows = [
        {
            "step": checkpoint.step,
            "weight": weights.get(checkpoint.name),
            "path": str(checkpoint.path),
        }
        for checkpoint in selected
    ]
    if as_json:
        print_json(rows)
        return
    cells = [
        (
            str(row["step"]),
            "-" if row["weight"] is None else f"{row['weight']:.6g}",
            str(row["path"]),
        )
        for row in rows
    ]
    print_table(["step", "weight", "checkpoint"], cells)
