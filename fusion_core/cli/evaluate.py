"""`fuse evaluate MODEL`: measure a model directory on tasks."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fusion_core.cli.events import record_events
from fusion_core.cli.flags import (
    Assignments,
    Device,
    EventsFile,
    Fresh,
    Pool,
    Quiet,
    ShowIntervals,
    TaskPoolName,
    Tasks,
    Trust,
    Verbose,
    sections_from,
    set_up_logging,
    trusted_by,
)
from fusion_core.cli.listing import AsJson
from fusion_core.cli.output import print_json, warn_of_broken_plugins, warn_of_experts
from fusion_core.cli.progress import progress_for
from fusion_core.plugins.manager import load_plugins

if TYPE_CHECKING:
    from fusion_core.contracts.report import Report


def evaluate(
    context: typer.Context,
    model: Annotated[Path, typer.Argument(help="A model directory.")],
    pool: Pool = None,
    task_pool: TaskPoolName = None,
    tasks: Tasks = None,
    assignments: Assignments = None,
    fresh: Fresh = False,
    intervals: ShowIntervals = False,
    events: EventsFile = None,
    device: Device = "cpu",
    trust: Trust = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Measure a model on tasks.

    Beside it are measured the pool's base and each task's own expert, unless an earlier run did.

    For a directory that `fuse run` wrote, pools and tasks are those of its recipe unless flags say
    otherwise; its report.json is then made anew.
    """
    set_up_logging(verbose=verbose)
    with record_events(events, "evaluate", context.obj) as recorded:
        report = _measure(
            context,
            model,
            sections_from({}, {"model_pool": pool, "task_pool": task_pool}, tasks),
            assignments or [],
            progress=recorded.following(progress_for(quiet=quiet)),
            fresh=fresh,
            device=device,
            trust=trusted_by(trust),
        )
        recorded.write("report", report=report.as_json())
    from fusion_core.contracts.intervals import Intervals

    over = Intervals() if intervals else None
    warn_of_experts({model.resolve().name: report})
    if as_json:
        print_json(report.as_json(over))
        return
    from fusion_core.report.table import print_reports

    print_reports({model.resolve().name: report}, intervals=over)


def _measure(
    context: typer.Context,
    model: Path,
    sections: dict[str, Any],
    assignments: list[str],
    *,
    device: str,
    **options: Any,  # noqa: ANN401 - of evaluate_directory
) -> Report:
    plugins = load_plugins(context.obj)
    warn_of_broken_plugins(plugins)
    from fusion_core.machine.devices import device_of
    from fusion_core.recipe.assignments import override
    from fusion_core.running.evaluation import evaluate_directory

    raw = override(sections, assignments)
    return evaluate_directory(
        model,
        plugins,
        model_pool=raw.get("model_pool"),
        task_pool=raw.get("task_pool"),
        device=device_of(device),
        **options,
    )
