"""Every flag that commands share, once, and how a run is planned from them."""

from __future__ import annotations

import gc
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from fusion_core.cli import completion
from fusion_core.cli.output import warn_of_broken_plugins
from fusion_core.plugins.manager import load_plugins
from fusion_core.shown import printable, without_secrets

if TYPE_CHECKING:
    from collections.abc import Mapping

    from fusion_core.planning.planned import Plan

Algo = Annotated[
    Optional[str],  # noqa: UP045 - typer reads these annotations at run time
    typer.Option(
        "--algo",
        metavar="NAME[,NAME]",
        help="How to fuse: an algorithm, or the stages of a pipeline.",
        autocompletion=completion.algorithms,
    ),
]
Pool = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(
        metavar="NAME", help="What to fuse: a model pool.", autocompletion=completion.model_pools
    ),
]
TaskPoolName = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(metavar="NAME", help="What to evaluate on.", autocompletion=completion.task_pools),
]
Tasks = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(
        metavar="A,B", help="Only these tasks of the task pool.", autocompletion=completion.tasks
    ),
]
Assignments = Annotated[
    Optional[list[str]],  # noqa: UP045
    typer.Option(
        "--set", metavar="KEY=VALUE", help="An option, e.g. algorithm.density=0.3; repeatable."
    ),
]
RecipeFile = Annotated[
    Optional[Path],  # noqa: UP045
    typer.Argument(help="A recipe in YAML; flags override it.", show_default=False),
]
Output = Annotated[
    Optional[str],  # noqa: UP045 - no Path, to which nothing at all would be the working directory
    typer.Option("-o", "--output", metavar="DIR", help="Default: outputs/<pool>-<algorithm>-<n>."),
]
Seed = Annotated[Optional[int], typer.Option(help="Default: 0.")]  # noqa: UP045
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the output.")]
NoEval = Annotated[bool, typer.Option("--no-eval", help="Do not evaluate.")]
Fresh = Annotated[
    bool, typer.Option("--fresh", help="Measure base and experts anew, known or not.")
]
ShowIntervals = Annotated[bool, typer.Option("--intervals", help="Show 95 % intervals of figures.")]
EventsFile = Annotated[
    Optional[Path],  # noqa: UP045
    typer.Option("--events", metavar="FILE", help="Add what happens to a file, as lines of JSON."),
]
ExecutorName = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(
        metavar="NAME",
        help="What merges run on; default: threads.",
        autocompletion=completion.executors,
    ),
]
Workers = Annotated[
    Optional[int],  # noqa: UP045
    typer.Option(help="Short for --set executor.workers; default: one a core.", min=1),
]
Trust = Annotated[
    Optional[list[str]],  # noqa: UP045
    typer.Option(
        "--trust",
        metavar="NAME",
        help="Allow what a recipe asks for that can run code, as `fuse check` names it; "
        "repeatable. FUSION_TRUST adds names.",
    ),
]
Device = Annotated[str, typer.Option(metavar="DEVICE", help="Where live models run: cpu, cuda.")]
Quiet = Annotated[bool, typer.Option("-q", "--quiet", help="No progress.")]
Verbose = Annotated[bool, typer.Option("-v", "--verbose", help="Log what happens.")]


def planned(
    context: typer.Context,
    recipe: Path | None,
    names: dict[str, str | None],
    assignments: list[str] | None,
    *,
    seed: int | None,
    output: str | None,
    trust: list[str] | None,
    **options: Any,  # noqa: ANN401 - fields of RunOptions
) -> Plan:
    """Plan a run from flags over a file; says which plugins failed to load.

    `names` are the flags that name a section's component, and `tasks`.
    """
    warn_of_broken_plugins(load_plugins(context.obj))
    from fusion_core.recipe.assignments import assign, override
    from fusion_core.recipe.text import load_recipe

    raw = {} if recipe is None else load_recipe(recipe)
    tasks = names.pop("tasks")
    raw = override(sections_from(raw, names, tasks), assignments or [])
    if seed is not None:
        raw["seed"] = seed
    if output is not None:
        raw = assign(raw, ("output", "path"), output, origin=f"-o {output}")

    from fusion_core.planning.options import RunOptions
    from fusion_core.planning.plan import plan

    gc.freeze()  # what was imported stays: headers of many tensors are parsed twice as fast
    return plan(raw, RunOptions(block=context.obj, trust=trusted_by(trust), **options))


def trusted_by(flags: list[str] | None) -> frozenset[str]:
    """Return what the flags `--trust` and the environment allow."""
    from fusion_core.planning.trust import trust_in_environment

    return trust_in_environment().union(flags or [])


def set_up_logging(*, verbose: bool) -> None:
    """Send logs to stderr as `warning: ...`, without the credentials of URLs."""
    handler = logging.StreamHandler()
    handler.setFormatter(_Formatter())
    logging.basicConfig(
        level=logging.INFO if verbose else logging.WARNING, handlers=[handler], force=True
    )


class _Formatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        text = f"{record.levelname.lower()}: {super().format(record)}"
        return printable(without_secrets(text))


def sections_from(
    raw: Mapping[str, Any], names: Mapping[str, str | None], tasks: str | None
) -> dict[str, Any]:
    """Return a recipe with the components and tasks that flags name.

    A name of another component drops the options of the one before.
    """
    from fusion_core.recipe.assignments import assign

    recipe = dict(raw)
    for section, name in names.items():
        if name is None:
            continue
        stages = stage_names(name) if section == "algorithm" else [name]
        named = [{**_options_kept(recipe.get(section), stage), "name": stage} for stage in stages]
        recipe[section] = named if len(named) > 1 else named[0]
    if tasks is None:
        return recipe
    listed = [task.strip() for task in tasks.split(",")]
    return assign(recipe, ("task_pool", "tasks"), listed, origin=f"--tasks {tasks}")


def _options_kept(section: Any, name: str) -> dict[str, Any]:  # noqa: ANN401 - from YAML
    """Keep the options of the component, or of the stage, of the file that the flag names, too."""
    if isinstance(section, dict) and section.get("name", name) == name:
        return section
    stages = section if isinstance(section, list) else []
    named = (stage for stage in stages if isinstance(stage, dict) and stage.get("name") == name)
    return next(named, {})


def stage_names(flag: str) -> list[str]:
    """Return the stages that the flag `--algo` names."""
    return [name.strip() for name in flag.split(",")]


def counted(counts: Mapping[str, int]) -> str:
    """Say what becomes of the tensors."""
    return ", ".join(f"{count} {fate}" for fate, count in counts.items())
