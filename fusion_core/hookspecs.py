"""The hooks of fusion-core: the framework's table of contents.

A plugin is a module that its distribution names in the entry-point group `fusion_core.plugins`. It
implements some of the hooks below and marks each with `fusion_core.hookimpl`. It imports nothing
heavy: a spec names its class as a string, and the core imports the class when a run needs it.

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
    from pathlib import Path

    import torch

    from fusion_core.contracts.imported import ImportedRecipe
    from fusion_core.contracts.run import RunInfo, RunResult
    from fusion_core.contracts.specs import (
        AlgorithmSpec,
        CommandSpec,
        ExecutorSpec,
        FormatSpec,
        KernelSpec,
        ModelPoolSpec,
        OutputSpec,
        PipelineSpec,
        TaskPoolSpec,
    )
    from fusion_core.progress import Progress

PROJECT = "fusion"

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


# --- components of a plugin: called once, when plugins are discovered ---------------------------


@hookspec
def fusion_register_algorithms() -> Iterable[AlgorithmSpec]:  # type: ignore[empty-body]
    """Return the algorithms of this plugin.

    The core calls this once, when it discovers plugins. The implementation may be a generator. The
    core imports the class that a spec names when a run needs it.
    """


@hookspec
def fusion_register_pipelines() -> Iterable[PipelineSpec]:  # type: ignore[empty-body]
    """Return the named pipelines of this plugin.

    Called like `fusion_register_algorithms`. A spec names its stages as a recipe does, and they may
    come from other plugins.
    """


@hookspec
def fusion_register_model_pools() -> Iterable[ModelPoolSpec]:  # type: ignore[empty-body]
    """Return the model pools of this plugin.

    Called like `fusion_register_algorithms`.
    """


@hookspec
def fusion_register_task_pools() -> Iterable[TaskPoolSpec]:  # type: ignore[empty-body]
    """Return the task pools of this plugin.

    Called like `fusion_register_algorithms`.
    """


@hookspec
def fusion_register_executors() -> Iterable[ExecutorSpec]:  # type: ignore[empty-body]
    """Return the executors of this plugin, on which merges run.

    Called like `fusion_register_algorithms`. A spec may name a function instead of a class.
    """


@hookspec
def fusion_register_formats() -> Iterable[FormatSpec]:  # type: ignore[empty-body]
    """Return the checkpoint formats that this plugin reads.

    Called like `fusion_register_algorithms`. A spec lists the file names and the keys of
    `config.json` that identify the format. The core imports the format's class only to read such a
    model.
    """


@hookspec
def fusion_register_outputs() -> Iterable[OutputSpec]:  # type: ignore[empty-body]
    """Return the forms in which this plugin writes merges, such as adapters.

    Called like `fusion_register_algorithms`. A recipe asks for a form by `output.NAME`.
    """


@hookspec
def fusion_register_kernels() -> Iterable[KernelSpec]:  # type: ignore[empty-body]
    """Return the compiled functions that this plugin offers in place of others, with equal results.

    Called like `fusion_register_algorithms`. The core imports a kernel when a merge first calls a
    function that it replaces, unless the models are small (`KernelSpec.least_elements`).
    `FUSION_KERNELS=torch` switches kernels off, `FUSION_KERNELS=compiled` uses all of them.
    """


@hookspec
def fusion_register_commands() -> Iterable[CommandSpec]:  # type: ignore[empty-body]
    """Return the commands that this plugin adds to `fuse`.

    Called like `fusion_register_algorithms`. The core imports what a spec names when the user calls
    the command.
    """


# --- recipes: called when a run reads a recipe file ----------------------------------------------


@hookspec
def fusion_import_recipe(path: Path, text: str, folder: Path | None) -> ImportedRecipe | None:
    """Return the recipe that another tool's configuration stands for, or None for other files.

    Called for a file with top-level keys that no recipe has, or with several YAML documents. `text`
    is its content. Parse it with `fusion_core.commands.load_documents`, which bounds hostile YAML.
    `folder` is where to look for files that the configuration names; by default, next to `path`.
    Recognise your tool by its keys: a file that several plugins claim is an error. Raise
    `RecipeError` with everything that the recipe cannot express, before anything is read.
    """


# --- the life of a run: called only inside a run ------------------------------------------------


@hookspec
def fusion_check_run(run: RunInfo) -> None:
    """Refuse a run by raising a `FusionError` that says why, and what to do.

    Called before a run starts, and by `fuse check`, when the recipe is resolved and nothing is read
    or written yet. `run.path` is None if the run writes nothing. Any other exception is a bug of
    the plugin, and stops the run as well.
    """


@hookspec
def fusion_run_started(run: RunInfo) -> None:
    """Observe the start of a run: its recipe is resolved, and nothing is read or written yet.

    `run.recipe` is the recipe with every default written out. `run.path` is the output directory.
    """


@hookspec
def fusion_metrics_logged(run: RunInfo, step: int, metrics: Mapping[str, float]) -> None:
    """Receive the metrics of an algorithm at `step`, such as objectives and coefficients.

    Called on the run's own thread: a slow implementation slows the search down.
    """


@hookspec
def fusion_run_finished(run: RunInfo, result: RunResult) -> None:
    """Observe the success of a run, after it committed and, with tasks, evaluated its model.

    Not called for a run that failed. `result` holds the merged weights, the report, and
    `result.model`, a live model that is built on first access.
    """


@hookspec
def fusion_output_written(path: Path) -> None:
    """Observe an output directory that was written or measured, and describe it further.

    Called at the end of a run, by `fuse evaluate` when it has replaced the report, and by commands
    that write a model. The directory is committed: add or replace only files that its
    `provenance.json` does not list, such as a model card.
    """


# --- the output of `fuse run`: called by the command alone --------------------------------------


@hookspec
def fusion_run_shown(result: RunResult, device: torch.device, progress: Progress) -> str | None:
    """Return text to print below a run's results, or None.

    Called when `fuse run` prints its results. Not called with `--no-eval` or `--json`, nor by
    `run_fusion`. `device` is the device for live models.
    """
