"""fusion-core: a plugin-based framework for deep model fusion.

Everything public is imported from here, and only when it is used: `import fusion_core` itself is
as cheap as an empty module.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fusion_core.builtin.checkpoints import CheckpointsPool
    from fusion_core.builtin.checkpoints_config import CheckpointsConfig
    from fusion_core.checking.check import check, scan
    from fusion_core.cli.flags import sections_from, trusted_by
    from fusion_core.cli.output import print_json, print_table
    from fusion_core.cli.progress import progress_for
    from fusion_core.contracts.algorithm import Algorithm, TensorwiseAlgorithm
    from fusion_core.contracts.batch import Batch, Split
    from fusion_core.contracts.building import build_model
    from fusion_core.contracts.context import RunContext
    from fusion_core.contracts.examples import evaluation_mode, file_stamps, shuffled_rows
    from fusion_core.contracts.features import mark_features
    from fusion_core.contracts.intervals import interval_of, interval_of_average
    from fusion_core.contracts.layout import table_of
    from fusion_core.contracts.measures import Measured, Metric, Metrics
    from fusion_core.contracts.model_pool import ModelPool
    from fusion_core.contracts.options import InputPath, ModelPath, ModelPaths
    from fusion_core.contracts.outline import Outline
    from fusion_core.contracts.plots import new_figure
    from fusion_core.contracts.report import Published, Report
    from fusion_core.contracts.run import RunInfo, RunResult
    from fusion_core.contracts.specs import (
        AlgorithmSpec,
        CommandSpec,
        ExecutorSpec,
        FormatSpec,
        ModelPoolSpec,
        TaskPoolSpec,
    )
    from fusion_core.contracts.stage import (
        Calibration,
        Coordinates,
        TensorwiseCalibration,
        Transform,
        expert_weights,
    )
    from fusion_core.contracts.subject import Subject
    from fusion_core.contracts.table import Entry, Figure, Table, html_table
    from fusion_core.contracts.task_names import choose_tasks, unknown_task
    from fusion_core.contracts.task_pool import AdaptiveTask, FeatureTask, Task, TaskPool
    from fusion_core.errors import FusionError
    from fusion_core.hookspecs import hookimpl
    from fusion_core.machine.confined import Confined, Limits, Overrun, Refused
    from fusion_core.machine.devices import device_of
    from fusion_core.machine.installed import import_optional
    from fusion_core.planning.options import RunOptions
    from fusion_core.planning.plan import plan
    from fusion_core.planning.planned import Plan
    from fusion_core.plugins.formats import LocatedModel, find_model
    from fusion_core.plugins.manager import load_plugins
    from fusion_core.progress import Progress, note, noting
    from fusion_core.recipe.assignments import assign, override
    from fusion_core.recipe.config import AlignmentPolicy, ComponentConfig, ExpertWeights, Recipe
    from fusion_core.recipe.depth import along, depths, layers_of, renumbered
    from fusion_core.recipe.patterns import matching
    from fusion_core.recipe.text import dump_yaml, load_recipe, load_yaml
    from fusion_core.report.below_base import below_base_warnings
    from fusion_core.report.stored import read_report
    from fusion_core.report.table import print_reports
    from fusion_core.running._output import describe_run
    from fusion_core.running._run_identity import RunIdentities
    from fusion_core.running.by_hand import merge, models_of
    from fusion_core.running.evaluation import evaluate_experts
    from fusion_core.running.for_task import build_for_task, load_for_task
    from fusion_core.running.remembering import remembered
    from fusion_core.running.run import execute, run_fusion
    from fusion_core.shown import amount, printable
    from fusion_core.weights import Cut, Piece, Scan, TensorInfo, WeightSource
    from fusion_core.weights.writing.disk import allocate, write_durably
    from fusion_core.weights.writing.lock import locked

_HOMES = {
    "fusion_core.builtin.checkpoints": ("CheckpointsPool",),
    "fusion_core.builtin.checkpoints_config": ("CheckpointsConfig",),
    "fusion_core.checking.check": ("check", "scan"),
    "fusion_core.cli.flags": ("sections_from", "trusted_by"),
    "fusion_core.cli.output": ("print_json", "print_table"),
    "fusion_core.cli.progress": ("progress_for",),
    "fusion_core.contracts.algorithm": ("Algorithm", "TensorwiseAlgorithm"),
    "fusion_core.contracts.batch": ("Batch", "Split"),
    "fusion_core.contracts.building": ("build_model",),
    "fusion_core.contracts.context": ("RunContext",),
    "fusion_core.contracts.examples": ("evaluation_mode", "file_stamps", "shuffled_rows"),
    "fusion_core.contracts.features": ("mark_features",),
    "fusion_core.contracts.intervals": ("interval_of", "interval_of_average"),
    "fusion_core.contracts.layout": ("table_of",),
    "fusion_core.contracts.measures": ("Measured", "Metric", "Metrics"),
    "fusion_core.contracts.model_pool": ("ModelPool",),
    "fusion_core.contracts.options": ("InputPath", "ModelPath", "ModelPaths"),
    "fusion_core.contracts.outline": ("Outline",),
    "fusion_core.contracts.plots": ("new_figure",),
    "fusion_core.contracts.report": ("Published", "Report"),
    "fusion_core.contracts.run": ("RunInfo", "RunResult"),
    "fusion_core.contracts.specs": (
        "AlgorithmSpec",
        "CommandSpec",
        "ExecutorSpec",
        "FormatSpec",
        "ModelPoolSpec",
        "TaskPoolSpec",
    ),
    "fusion_core.contracts.stage": (
        "Calibration",
        "Coordinates",
        "TensorwiseCalibration",
        "Transform",
        "expert_weights",
    ),
    "fusion_core.contracts.subject": ("Subject",),
    "fusion_core.contracts.table": ("Entry", "Figure", "Table", "html_table"),
    "fusion_core.contracts.task_names": ("choose_tasks", "unknown_task"),
    "fusion_core.contracts.task_pool": ("AdaptiveTask", "FeatureTask", "Task", "TaskPool"),
    "fusion_core.errors": ("FusionError",),
    "fusion_core.hookspecs": ("hookimpl",),
    "fusion_core.machine.confined": ("Confined", "Limits", "Overrun", "Refused"),
    "fusion_core.machine.devices": ("device_of",),
    "fusion_core.machine.installed": ("import_optional",),
    "fusion_core.planning.options": ("RunOptions",),
    "fusion_core.planning.plan": ("plan",),
    "fusion_core.planning.planned": ("Plan",),
    "fusion_core.plugins.formats": ("LocatedModel", "find_model"),
    "fusion_core.plugins.manager": ("load_plugins",),
    "fusion_core.progress": ("Progress", "note", "noting"),
    "fusion_core.recipe.assignments": ("assign", "override"),
    "fusion_core.recipe.config": ("AlignmentPolicy", "ComponentConfig", "ExpertWeights", "Recipe"),
    "fusion_core.recipe.depth": ("along", "depths", "layers_of", "renumbered"),
    "fusion_core.recipe.patterns": ("matching",),
    "fusion_core.recipe.text": ("dump_yaml", "load_recipe", "load_yaml"),
    "fusion_core.report.stored": ("read_report",),
    "fusion_core.report.below_base": ("below_base_warnings",),
    "fusion_core.report.table": ("print_reports",),
    "fusion_core.running._output": ("describe_run",),
    "fusion_core.running._run_identity": ("RunIdentities",),
    "fusion_core.running.by_hand": ("merge", "models_of"),
    "fusion_core.running.evaluation": ("evaluate_experts",),
    "fusion_core.running.for_task": ("build_for_task", "load_for_task"),
    "fusion_core.running.remembering": ("remembered",),
    "fusion_core.running.run": ("execute", "run_fusion"),
    "fusion_core.shown": ("amount", "printable"),
    "fusion_core.weights": ("Cut", "Piece", "Scan", "TensorInfo", "WeightSource"),
    "fusion_core.weights.writing.disk": ("allocate", "write_durably"),
    "fusion_core.weights.writing.lock": ("locked",),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "AdaptiveTask",
    "Algorithm",
    "AlgorithmSpec",
    "AlignmentPolicy",
    "Batch",
    "Calibration",
    "CheckpointsConfig",
    "CheckpointsPool",
    "CommandSpec",
    "ComponentConfig",
    "Confined",
    "Coordinates",
    "Cut",
    "Entry",
    "ExecutorSpec",
    "ExpertWeights",
    "FeatureTask",
    "Figure",
    "FormatSpec",
    "FusionError",
    "InputPath",
    "Limits",
    "LocatedModel",
    "Measured",
    "Metric",
    "Metrics",
    "ModelPath",
    "ModelPaths",
    "ModelPool",
    "ModelPoolSpec",
    "Outline",
    "Overrun",
    "Piece",
    "Plan",
    "Progress",
    "Published",
    "Recipe",
    "Refused",
    "Report",
    "RunContext",
    "RunIdentities",
    "RunInfo",
    "RunOptions",
    "RunResult",
    "Scan",
    "Split",
    "Subject",
    "Table",
    "Task",
    "TaskPool",
    "TaskPoolSpec",
    "TensorInfo",
    "TensorwiseAlgorithm",
    "TensorwiseCalibration",
    "Transform",
    "WeightSource",
    "__version__",
    "allocate",
    "along",
    "amount",
    "assign",
    "below_base_warnings",
    "build_for_task",
    "build_model",
    "check",
    "choose_tasks",
    "depths",
    "describe_run",
    "device_of",
    "dump_yaml",
    "evaluate_experts",
    "evaluation_mode",
    "execute",
    "expert_weights",
    "file_stamps",
    "find_model",
    "hookimpl",
    "html_table",
    "import_optional",
    "interval_of",
    "interval_of_average",
    "layers_of",
    "load_for_task",
    "load_plugins",
    "load_recipe",
    "load_yaml",
    "locked",
    "mark_features",
    "matching",
    "merge",
    "models_of",
    "new_figure",
    "note",
    "noting",
    "override",
    "plan",
    "print_json",
    "print_reports",
    "print_table",
    "printable",
    "progress_for",
    "read_report",
    "remembered",
    "renumbered",
    "run_fusion",
    "scan",
    "sections_from",
    "shuffled_rows",
    "table_of",
    "trusted_by",
    "unknown_task",
    "write_durably",
]


def __getattr__(name: str) -> Any:  # noqa: ANN401 - any public object
    if name == "__version__":
        from importlib.metadata import version

        return version("fusion-core")
    if name not in _HOME_OF:
        raise AttributeError(f"module 'fusion_core' has no attribute {name!r}")
    return getattr(import_module(_HOME_OF[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
