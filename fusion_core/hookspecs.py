"""Every hook of fusion-core: the framework's table of contents.

A plugin is a module named in the entry-point group `fusion_core.plugins` of its distribution. It
implements some of the hooks below, each marked with `fusion_core.hookimpl`, and imports nothing
heavy: a spec names its class as a string, and the class is imported when a run needs it.

    from fusion_core import AlgorithmSpec, hookimpl

    @hookimpl
    def fusion_register_algorithms():
        yield AlgorithmSpec(
            name="ties",
            summary="Trim, elect signs, merge disjointly.",
            target="fusion_ties.ties:Ties",
            config="fusion_ties.config:TiesConfig",
        )
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pluggy

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    import torch

    from fusion_core.contracts.run import RunInfo, RunResult
    from fusion_core.contracts.specs import (
        AlgorithmSpec,
        CommandSpec,
        ExecutorSpec,
        FormatSpec,
        ModelPoolSpec,
        PipelineSpec,
        TaskPoolSpec,
    )
    from fusion_core.progress import Progress

PROJECT = "fusion"

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


# --- what a plugin provides: called once, when plugins are discovered ---------------------------


@hookspec
def fusion_register_algorithms() -> Iterable[AlgorithmSpec]:  # type: ignore[empty-body]
    """Return the algorithms that this plugin provides.

    Called once, when plugins are discovered; a generator will do. The classes that specs name are
    imported when a run needs them.
    """


@hookspec
def fusion_register_pipelines() -> Iterable[PipelineSpec]:  # type: ignore[empty-body]
    """Return the pipelines that this plugin gives a name.

    As `fusion_register_algorithms`. Stages are named as a recipe names them, and may come from
    other plugins.
    """


@hookspec
def fusion_register_model_pools() -> Iterable[ModelPoolSpec]:  # type: ignore[empty-body]
    """Return the model pools that this plugin provides.

    As `fusion_register_algorithms`.
    """


@hookspec
def fusion_register_task_pools() -> Iterable[TaskPoolSpec]:  # type: ignore[empty-body]
    """Return the task pools that this plugin provides.

    As `fusion_register_algorithms`.
    """


@hookspec
def fusion_register_executors() -> Iterable[ExecutorSpec]:  # type: ignore[empty-body]
    """Return the executors that this plugin provides: what merges can run on.

    As `fusion_register_algorithms`; what a spec names may be a function instead of a class.
    """


@hookspec
def fusion_register_formats() -> Iterable[FormatSpec]:  # type: ignore[empty-body]
    """Return the formats that this plugin reads: what models' files may be written in.

    As `fusion_register_algorithms`. Names of files and keys of `config.json` say which models a
    format is for, so a format's class is imported only to read such a model.
    """


@hookspec
def fusion_register_commands() -> Iterable[CommandSpec]:  # type: ignore[empty-body]
    """Return the commands that this plugin adds to `fuse`.

    As `fusion_register_algorithms`: what a spec names is imported when its command is called.
    """


# --- the life of a run: called only inside a run ------------------------------------------------


@hookspec
def fusion_run_started(run: RunInfo) -> None:
    """Learn that a run starts: its recipe is resolved, nothing is read or written yet.

    `run.recipe` is the recipe with every default written out, `run.path` where the model goes.
    """


@hookspec
def fusion_metrics_logged(run: RunInfo, step: int, metrics: Mapping[str, float]) -> None:
    """Receive what an algorithm measured at `step` (objectives, coefficients).

    Called on the run's own thread: what takes long here slows the search down.
    """


@hookspec
def fusion_run_finished(run: RunInfo, result: RunResult) -> None:
    """Learn that a run ended well: the model is committed and, if there are tasks, evaluated.

    Not called for a run that failed. `result` holds the merged weights, the report, and
    `result.model`, a live model that is built when it is asked for.
    """


# --- what `fuse run` shows: called by the command alone -----------------------------------------


@hookspec
def fusion_run_shown(result: RunResult, device: torch.device, progress: Progress) -> str | None:
    """Return what people are to see of a model that was made, as lines below the run's results.

    Called when those are shown, but not with `--no-eval` or `--json`, nor by `run_fusion`.
    `device` is where live models belong.
    """
