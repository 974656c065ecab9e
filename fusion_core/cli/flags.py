"""The flags that commands share, and the plan of a run from them."""

from __future__ import annotations

import gc
import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from fusion_core.cli import completion
from fusion_core.cli.output import warn_of_broken_plugins
from fusion_core.contracts.specs import ExecutorSpec, ModelPoolSpec, TaskPoolSpec
from fusion_core.errors import RecipeError
from fusion_core.formatting import escape_control, redact_secrets
from fusion_core.plugins.manager import load_plugins

if TYPE_CHECKING:
    from collections.abc import Mapping

    from fusion_core.planning.run_plan import Plan

Algo = Annotated[
    Optional[str],  # noqa: UP045 - typer reads these annotations at run time
    typer.Option(
        "--algo",
        metavar="NAME[,NAME]",
        help="Fuse by this algorithm, or by these stages of a pipeline.",
        autocompletion=completion.algorithms,
    ),
]
Pool = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(
        metavar="NAME",
        help="Take the models from this model pool; see: fuse list pools.",
        autocompletion=completion.names_of(ModelPoolSpec),
    ),
]
TaskPoolName = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(
        metavar="NAME",
        help="Take the tasks from this task pool; default: the model pool's own.",
        autocompletion=completion.names_of(TaskPoolSpec),
    ),
]
Tasks = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(
        metavar="A,B", help="Use only these tasks of the pool.", autocompletion=completion.tasks
    ),
]
Assignments = Annotated[
    Optional[list[str]],  # noqa: UP045
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Set an option of the recipe, e.g. algorithm.density=0.3; repeatable.",
    ),
]
RecipeFile = Annotated[
    Optional[Path],  # noqa: UP045
    typer.Argument(help="Read this recipe, a YAML file; flags override it.", show_default=False),
]
Output = Annotated[
    Optional[str],  # noqa: UP045 - no Path: an empty one would be the working directory
    typer.Option(
        "-o",
        "--output",
        metavar="DIR",
        help="Write the model to DIR; default: outputs/<pool>-<algorithm>-<n>.",
    ),
]
Seed = Annotated[
    Optional[int],  # noqa: UP045
    typer.Option(help="Set the seed of all randomness; default: 0."),
]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Replace an existing output that fuse wrote.")
]
NoEval = Annotated[bool, typer.Option("--no-eval", help="Skip the evaluation on tasks.")]
Fresh = Annotated[
    bool, typer.Option("--fresh", help="Measure every model again, even if its scores are known.")
]
ShowIntervals = Annotated[
    bool, typer.Option("--intervals", help="Show 95 % intervals of the scores.")
]
EventsFile = Annotated[
    Optional[Path],  # noqa: UP045
    typer.Option("--events", metavar="FILE", help="Append run events to FILE as JSON lines."),
]
ExecutorName = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(
        metavar="NAME",
        help="Run merges on this executor; default: threads.",
        autocompletion=completion.names_of(ExecutorSpec),
    ),
]
Workers = Annotated[
    Optional[int],  # noqa: UP045
    typer.Option(
        metavar="N",
        help="Merge with N workers, as --set executor.workers=N does; default: one per core.",
        min=1,
    ),
]
Trust = Annotated[
    Optional[list[str]],  # noqa: UP045
    typer.Option(
        "--trust",
        metavar="NAME",
        help="Allow something that runs code; fuse check shows the names that a recipe needs. "
        "Repeatable. FUSION_TRUST adds names.",
    ),
]
Device = Annotated[
    str, typer.Option(metavar="DEVICE", help="Put live models on this device: cpu or cuda.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
Quiet = Annotated[bool, typer.Option("-q", "--quiet", help="Hide progress and notes.")]
Verbose = Annotated[bool, typer.Option("-v", "--verbose", help="Log details to stderr.")]


def plan_from_flags(
    context: typer.Context,
    recipe: Path | None,
    *,
    algo: str | None,
    pool: str | None,
    task_pool: str | None,
    executor: str | None,
    tasks: str | None,
    assignments: list[str] | None,
    seed: int | None,
    output: str | None,
    trust: list[str] | None,
    quiet: bool,
    **options: Any,  # noqa: ANN401 - fields of RunOptions
) -> Plan:
    """Plan a run from a recipe file and the flags that override it.

    Warns of plugins that failed to load, and names the default model pool if it is used.
    """
    warn_of_broken_plugins(load_plugins(context.obj))
    from fusion_core.plugins.recipe_files import load_recipe
    from fusion_core.recipe.assignments import assign, override

    raw = {} if recipe is None else load_recipe(recipe, load_plugins(context.obj))
    names = {"algorithm": algo, "model_pool": pool, "task_pool": task_pool, "executor": executor}
    raw = override(sections_from(raw, names, tasks), assignments or [])
    if seed is not None:
        raw["seed"] = seed
    if output is not None:
        raw = assign(raw, ("output", "path"), output, origin=f"-o {output}")

    gc.disable()  # torch makes 250,000 objects that live to the end
    from fusion_core.planning.plan import plan
    from fusion_core.planning.run_options import RunOptions

    gc.freeze()  # imported objects stay: headers of many tensors are parsed twice as fast
    gc.enable()
    planned = plan(raw, RunOptions(block=context.obj, trust=trusted_names(trust), **options))
    if not quiet and (note := _default_pool_note(raw, planned)):
        print(note, file=sys.stderr)
    return planned


def _default_pool_note(raw: Mapping[str, Any], plan: Plan) -> str | None:
    """Return a line that names the default model pool, if neither recipe nor flag chose one."""
    from fusion_core.recipe.config import choice_of

    pool = plan.resolved.model_pool
    if pool is None or choice_of(raw.get("model_pool")).name or not pool.component.spec.default:
        return None
    return f"model pool: {pool.name}, the default; choose another with --pool"


def trusted_names(flags: list[str] | None) -> frozenset[str]:
    """Return the names that the flags `--trust` and the environment allow."""
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
        return escape_control(redact_secrets(text))


def sections_from(
    raw: Mapping[str, Any], names: Mapping[str, str | None], tasks: str | None
) -> dict[str, Any]:
    """Return a recipe with the components and tasks that flags name.

    The options of a component that a flag replaces are dropped.
    """
    from fusion_core.recipe.assignments import assign

    recipe = dict(raw)
    for section, name in names.items():
        if name is None:
            continue
        stages = stage_names(name) if section == "algorithm" else [name]
        if not all(stages):
            raise RecipeError(
                f"--algo {name!r}: a stage has no name",
                hint="Separate the stages by commas, as in --algo trim,task-arithmetic.",
            )
        spelled = [{**_kept_options(recipe.get(section), stage), "name": stage} for stage in stages]
        recipe[section] = spelled if len(spelled) > 1 else spelled[0]
    if tasks is None:
        return recipe
    listed = [task.strip() for task in tasks.split(",")]
    return assign(recipe, ("task_pool", "tasks"), listed, origin=f"--tasks {tasks}")


def _kept_options(section: Any, name: str) -> dict[str, Any]:  # noqa: ANN401 - from YAML
    """Return the options of a recipe's component or stage if a flag names the same one."""
    if isinstance(section, dict) and _is_same(section.get("name", name), name):
        return section
    stages = section if isinstance(section, list) else []
    matches = (stage for stage in stages if isinstance(stage, dict) and "name" in stage)
    return next((stage for stage in matches if _is_same(stage["name"], name)), {})


def _is_same(name: object, other: str) -> bool:
    """Tell whether two names are of one component: `ties` is also `fusion-ties/ties`."""
    name = str(name)
    return other in {name, name.rpartition("/")[2]} or name == other.rpartition("/")[2]


def stage_names(algo: str) -> list[str]:
    """Return the names of the stages in the flag `--algo`."""
    return [name.strip() for name in algo.split(",")]
