"""New homes of packages and names that fusion-core 0.1 had.

A package that moved leaves a module of its old name behind, which raises `moved_error(__name__)`.
An access to a name that moved raises `moved_name_error(name)`.
"""

from importlib import import_module
from typing import NoReturn

#: The distribution that provides a package now, by the package's name in 0.1.
MOVED = {
    "fusion_core.adapting": "fusion-adapting",
    "fusion_core.testing": "fusion-testing",
}
#: The replacement of a name of `fusion_core`, with its package.
MOVED_NAMES = {
    "CheckpointsConfig": "pools_checkpoints.CheckpointsConfig",
    "CheckpointsPool": "pools_checkpoints.CheckpointsPool",
    "Limits": "pools_checkpoints.Limits",
    "Report.plot": "fusion_report.plot",
    "Report.to_dataframe": "fusion_report.to_dataframe",
    "RunResult.plot": "fusion_report.plot",
    "interval_of": "fusion_core.commands.Intervals().of_task",
    "interval_of_average": "fusion_core.commands.Intervals().of_average",
    "new_figure": "fusion_report.new_figure",
    "read_report": "fusion_report.read_report",
    "depths": "fusion_core.weights.depths",
    "layers_of": "fusion_core.weights.layers_of",
    "along": "fusion_core.weights.interpolate",
    "matching": "fusion_core.weights.select_names",
    "renumbered": "fusion_core.weights.renumber_layer",
    "Metrics": "fusion_core.MetricValues",
    "models_of": "fusion_core.load_models",
    "noting": "fusion_core.show_notes_on",
    "amount": "fusion_core.commands.format_bytes",
    "device_of": "fusion_core.commands.resolve_device",
    "printable": "fusion_core.commands.escape_control",
    "remembered": "fusion_core.commands.cached_answer",
    "Table": "fusion_core.commands.ReportTable",
    "table_of": "fusion_core.commands.build_table",
    "trusted_by": "fusion_core.commands.trusted_names",
    "locked": "fusion_core.files.lock_output",
    "Confined": "pools_checkpoints.SandboxedWorker",
    "Overrun": "pools_checkpoints.LimitExceeded",
    "Refused": "pools_checkpoints.WorkFailed",
}
#: The new names of public names, by package and their name in 0.1. A name with a package moved.
RENAMED = {
    "fusion_core.weights": {
        "EXPERT_LAYOUTS": "fusion_lora.EXPERT_LAYOUTS",
        "ElectKernel": "fusion_thresholds.ElectKernel",
        "Electing": "fusion_thresholds.ElectKernel",
        "LoraSource": "fusion_lora.LoraSource",
        "PackagedFiles": "pools_checkpoints.PackagedFiles",
        "Shared": "ResultCache",
        "Trim": "fusion_thresholds.TrimSurvey",
        "TrimKernel": "fusion_thresholds.TrimKernel",
        "TrimSurvey": "fusion_thresholds.TrimSurvey",
        "Trimming": "fusion_thresholds.TrimKernel",
        "agreeing": "fusion_thresholds.agreeing_magnitudes",
        "agreeing_magnitudes": "fusion_thresholds.agreeing_magnitudes",
        "along": "interpolate",
        "are_experts_transposed": "pools_checkpoints.are_experts_transposed",
        "are_neighbours_transposed": "pools_checkpoints.are_neighbours_transposed",
        "content_of": "pools_checkpoints.read_side_file",
        "count_for_density": "fusion_thresholds.count_for_density",
        "elect_sign": "fusion_thresholds.elect_sign",
        "elected_sign": "fusion_thresholds.elect_sign",
        "held_in_memory": "find_in_memory_source",
        "in_order": "sum_in_order",
        "is_same_content": "pools_checkpoints.is_same_content",
        "kept_count": "fusion_thresholds.count_for_density",
        "kth_largest_magnitudes": "fusion_thresholds.kth_largest_magnitudes",
        "largest_by_rank": "fusion_thresholds.largest_by_rank",
        "licence_of": "pools_checkpoints.read_card",
        "matching": "select_names",
        "nearness": "describe_nearness",
        "origins": "collect_origins",
        "per_expert": "broadcast_per_expert",
        "read_licence": "pools_checkpoints.read_card",
        "read_side_file": "pools_checkpoints.read_side_file",
        "renumbered": "renumber_layer",
        "replace_layers": "fusion_linear.layer_config.replace_layers",
        "safe_config": "parse_safe_config",
        "same_tensors": "match_names",
        "select_tokenizer_files": "pools_checkpoints.select_tokenizer_files",
        "staged": "stage_output",
        "tokenizer_of": "pools_checkpoints.select_tokenizer_files",
        "with_config": "change_config",
        "with_layers": "fusion_linear.layer_config.replace_layers",
    },
    "fusion_core.commands": {
        "ImportFindings": "recipes_import.ImportFindings",
        "find_routers": "pools_checkpoints.find_routers",
    },
    "fusion_core.files": {
        "LimitExceeded": "pools_checkpoints.LimitExceeded",
        "Limits": "pools_checkpoints.Limits",
        "SandboxedWorker": "pools_checkpoints.SandboxedWorker",
        "WorkFailed": "pools_checkpoints.WorkFailed",
    },
    "fusion_core.hub": {
        "Size": "DownloadSize",
        "Wanted": "FileRequest",
        "advising": "add_advice",
        "beginning": "read_beginning",
        "check_room": "check_space",
        "conversion": "find_conversion",
        "fetch": "download_requests",
        "files": "download_paths",
        "find_split": "pools_checkpoints.find_split",
        "listing": "list_files",
        "size_of": "measure_download",
        "split_files": "pools_checkpoints.find_split",
    },
}
#: Modules that took names over from `fusion_core`.
_SPLIT_OFF = ("fusion_core.commands", "fusion_core.files")


def check_moved(name: str) -> None:
    """Raise `ImportError` with the new home of a name that `fusion_core` had in 0.1."""
    for module in _SPLIT_OFF:
        if name in import_module(module).__all__:
            raise ImportError(f"fusion_core.{name} moved: use {module}.{name}", name="fusion_core")
    if name in MOVED_NAMES:
        raise moved_name_error(name)


def moved_error(module: str) -> ImportError:
    """Return the error for an import of a package by its name in 0.1."""
    distribution = MOVED[module]
    package = distribution.replace("-", "_")
    return ImportError(
        f"{module} moved to the distribution {distribution}: pip install {distribution}, "
        f"and import {package}",
        name=module,
    )


def moved_name_error(name: str) -> ImportError:
    """Return the error for a name that `fusion_core`, or a class of it, had in 0.1."""
    return _moved_to(MOVED_NAMES[name], "fusion_core", name)


def _moved_to(replacement: str, module: str, name: str) -> ImportError:
    package = replacement.partition(".")[0]
    hint = "" if package == "fusion_core" else f" (pip install {package.replace('_', '-')})"
    return ImportError(f"{module}.{name} moved: use {replacement}{hint}", name=module)


def refuse_old_name(module: str, name: str) -> NoReturn:
    """Raise the error for a name that a package lacks. For a name of 0.1 it gives the new one."""
    new = RENAMED.get(module, {}).get(name)
    if new is None:
        raise AttributeError(f"module {module!r} has no attribute {name!r}")
    if "." in new:
        raise _moved_to(new, module, name)
    raise ImportError(f"{module}.{name} was renamed: use {module}.{new}", name=module)
