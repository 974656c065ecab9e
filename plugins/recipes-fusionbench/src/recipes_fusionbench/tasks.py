"""FusionBench's task pools, and the data sets that methods take examples from."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fusion_core.commands import format_value
from recipes_fusionbench.model_reader import path_of
from recipes_fusionbench.options import class_of
from recipes_fusionbench.published import (
    CORRUPTED_TASKS,
    CORRUPTIONS,
    FAMILIES,
    FER2013,
    GLUE,
    TASKS,
    shorten,
    test_split,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from recipes_fusionbench.models import Models
    from recipes_fusionbench.options import Options

_CLIP_LOADER = "datasets.load_dataset"
#: Keys of a data set's section besides its path and split.
_LOADING = ("name", "trust_remote_code", "cache_dir", "_args_", "_target_")


def read_tasks(options: Options, models: Models) -> dict[str, Any] | None:
    """Return the section `task_pool` of the recipe; None if nothing is measured."""
    name = class_of(options.values, "type")
    if not options.values or name == "DummyTaskPool":
        options.expect("model_save_path", reason="set merged_model_save_path instead")
        return None
    options.expect("fast_dev_run", False, reason="true takes one batch; set task_pool.limit")
    options.ignore("dataloader_kwargs", "batch_size", "num_workers", "cache_dir", "_dataset_loader")
    readers: dict[str, Callable[[Options, Models], dict[str, Any]]] = {
        "CLIPVisionModelTaskPool": _read_clip,
        "clip_vit_classification": _read_older_clip,
        "GPT2TextClassificationTaskPool": _read_gpt2,
        "FlanT5GLUETextGenerationTaskPool": _read_flan_t5,
        "LMEvalHarnessTaskPool": _read_harness,
    }
    if name not in readers:
        shown = name or options.values.get("_target_")
        options.refuse("", f"{shown} has no counterpart" if shown else "missing")
        return None
    section = readers[name](options, models)
    options.finish()
    return section


def make_data_section(pool: Options, data: str, models: Models) -> dict[str, Any]:
    """Return a task pool of the examples that a method takes from its model pool."""
    is_train = data == "train_datasets"
    if models.kind == "clip":
        _refuse_adapters(pool, models, "add them to their base first")
        data_sets = pool.items(data)
        tasks = _read_data_sets(pool, data, data_sets, is_train=is_train)
        for missing in [name for name in models.experts if name not in tasks]:
            pool.refuse(f"{data}.{missing}", "missing, and the method takes examples from it")
        corruption = _find_corruption(pool, data, data_sets)
        return _name_clip(str(models.base), list(tasks.values()), corruption)
    if models.family is not None:
        return _add_variant({"name": models.family.pool, "tasks": [*models.tasks]}, models)
    pool.refuse(data, "the tasks of these models have no counterpart")
    return {}


def _name_clip(clip: str, tasks: list[str], corruption: str | None) -> dict[str, Any]:
    pools = (
        {"name": family.pool}
        for family in FAMILIES
        if family.kind == "clip" and clip in family.bases
    )
    section = next(pools, {"name": "clip-classification", "clip": clip})
    corrupted = {} if corruption is None else {"corruption": corruption}
    return {**section, "tasks": shorten(tasks), **corrupted}


def _read_clip(options: Options, models: Models) -> dict[str, Any]:
    options.ignore("base_model", "data_processor", "layer_wise_feature_max_num")
    options.ignore("layer_wise_feature_first_token_only", "val_datasets", "train_datasets")
    options.expect("layer_wise_feature_save_path", reason="features have no counterpart")
    return _measure_clip(options, models, "test_datasets", options.items("test_datasets"))


def _read_older_clip(options: Options, models: Models) -> dict[str, Any]:
    """Read a pool whose data sets are a list `tasks` of names with a `dataset` each."""
    options.ignore("name", "type", "dataset_type", "corruption", "tasks")
    data_sets = {
        name: {"path" if key == "name" else key: value for key, value in data_set.items()}
        if isinstance(data_set, dict)
        else data_set
        for name, data_set in _read_listed_data_sets(options).items()
    }
    return _measure_clip(options, models, "tasks", data_sets)


def _measure_clip(
    options: Options, models: Models, key: str, data_sets: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the measurement of the data sets under a key by the heads of `clip_model`."""
    if models.kind != "clip":
        options.refuse("", f"cannot measure the models of the pool {models.kind}")
    advice = "choose dummy, and measure the merged model by fuse evaluate"
    _refuse_adapters(options, models, advice)
    clip, processor = path_of(options, "clip_model"), path_of(options, "processor")
    if clip is None:
        options.refuse("clip_model", "missing")
        return {}
    if processor not in {None, clip}:
        options.refuse("processor", f"expected that of clip_model, {clip}, got {processor}")
    if clip != models.base:
        reason = f"{clip} gives the heads, not the pretrained model {models.base}"
        options.warn("clip_model", reason)
    tasks = _read_data_sets(options, key, data_sets, is_train=False)
    if not tasks:
        options.refuse(key, "missing")
    return _name_clip(clip, list(tasks.values()), _find_corruption(options, key, data_sets))


def _refuse_adapters(options: Options, models: Models, advice: str) -> None:
    if models.has_adapters:
        reason = "images pass through models of the pool clip, which takes no adapters"
        options.refuse("", f"{reason}; {advice}")


def _find_corruption(options: Options, key: str, data_sets: Mapping[str, Any]) -> str | None:
    """Return the corruption of all data sets under a key; None if they have none."""
    splits = [
        value.get("split") if isinstance(value, dict) else None for value in data_sets.values()
    ]
    corruptions = sorted({str(split) for split in splits if _is_corruption(split)})
    if corruptions and splits != corruptions * len(splits):
        reason = f"expected one corruption for all data sets, got {', '.join(corruptions)}"
        options.refuse(key, reason)
    return corruptions[0] if corruptions else None


def _is_corruption(split: object) -> bool:
    return isinstance(split, str) and split in CORRUPTIONS


def _read_data_sets(
    options: Options, key: str, data_sets: Mapping[str, Any], *, is_train: bool
) -> dict[str, str]:
    """Return the tasks of data sets, by their names in the file."""
    tasks = {}
    for name, value in data_sets.items():
        task = name if name in TASKS else name.replace("stanford_cars", "stanford-cars")
        problem = _compare_data_set(task, value, is_train=is_train)
        if problem is None:
            tasks[name] = task
        else:
            options.refuse(f"{key}.{name}", problem)
    return tasks


def _compare_data_set(task: str, value: object, *, is_train: bool) -> str | None:
    """Return what distinguishes a data set from the task of the same name; None if nothing."""
    given = {"path": value} if isinstance(value, str) else value
    if task not in TASKS:
        return "unknown task"
    if not isinstance(given, dict):
        return f"expected a data set, got {format_value(value)}"
    target, listed = given.get("_target_", _CLIP_LOADER), given.get("_args_")
    arguments = listed if isinstance(listed, list) else []
    path = given.get("path") or next(iter(arguments), None)
    is_known = target == _CLIP_LOADER and path in TASKS[task]
    if not (is_known or (target == FER2013 and task == "fer2013")):
        return f"expected the images of {TASKS[task][0]}, got {path or target}"
    config = next(iter(arguments[1:]), given.get("name"))
    if config is not None and (task, config) != ("svhn", "cropped_digits"):
        return f"expected the default configuration, got {format_value(config)}"
    split = "train" if is_train else test_split(task)
    if not is_train and task in CORRUPTED_TASKS and _is_corruption(given.get("split")):
        split = given["split"]
    wrong = [name for name in given if name not in {*_LOADING, "path", "split"}]
    if given.get("split", split) != split:
        wrong.append(f"the split {format_value(given['split'])}, instead of {split},")
    return f"{wrong[0]} has no counterpart" if wrong else None


def _read_gpt2(options: Options, models: Models) -> dict[str, Any]:
    options.ignore("tokenizer", "test_datasets")
    if models.kind != "gpt2":
        options.refuse("", f"cannot measure the models of the pool {models.kind}")
    elif models.family is None:
        options.refuse("", "measures the published experts, whose heads the pool gpt2-glue has")
    return _make_glue(options, "gpt2-glue", "test_datasets", options.items("test_datasets"))


def _read_flan_t5(options: Options, models: Models) -> dict[str, Any]:
    options.ignore("tokenizer", "name", "type", "tasks")
    if models.kind != "seq2seq-lm":
        options.refuse("", f"cannot measure the models of the pool {models.kind}")
    section = _make_glue(options, "flan-t5-glue", "tasks", _read_listed_data_sets(options))
    return _add_variant(section, models)


def _add_variant(section: dict[str, Any], models: Models) -> dict[str, Any]:
    variant = None if models.family is None else models.family.variant
    return section if variant is None else {**section, "variant": variant}


def _read_listed_data_sets(options: Options) -> dict[str, Any]:
    """Return the data sets of the list `tasks`, by the tasks' names."""
    listed = options.take("tasks", [])
    if not isinstance(listed, list) or not all(isinstance(task, dict) for task in listed):
        options.refuse("tasks", "expected a list of tasks with a name and a dataset")
        return {}
    for task in listed:
        for key in sorted(task.keys() - {"name", "dataset"}):
            options.refuse(f"tasks.{task.get('name')}.{key}", "unknown key; expected name, dataset")
    return {str(task.get("name")): task.get("dataset") or {} for task in listed}


def _make_glue(
    options: Options, pool: str, key: str, data_sets: Mapping[str, Any]
) -> dict[str, Any]:
    for name, value in data_sets.items():
        given = value if isinstance(value, dict) else {}
        split = "validation_matched" if name == "mnli" else "validation"
        is_same = given.get("name") == name and given.get("split", split) == split
        if name not in GLUE or not is_same:
            expected = f"a task of GLUE with the split {split}"
            options.refuse(f"{key}.{name}", f"expected {expected}, got {format_value(value)}")
    return {"name": pool, "tasks": [*data_sets]}


def _read_harness(options: Options, models: Models) -> dict[str, Any]:
    if models.kind != "causal-lm":
        options.refuse("", f"cannot measure the models of the pool {models.kind}")
    options.ignore("verbosity", "output_path", "log_samples")
    options.expect("metadata", reason="has no counterpart")
    tasks = options.take("tasks", [])
    tasks = tasks.split(",") if isinstance(tasks, str) else tasks
    if not isinstance(tasks, list) or not tasks or not all(isinstance(t, str) for t in tasks):
        options.refuse("tasks", "expected a list of names")
    section: dict[str, Any] = {"name": "lm-eval", "tasks": tasks}
    if options.switch("apply_chat_template", default=False):
        section["apply_chat_template"] = True
    include = options.text("include_path")
    return section if include is None else {**section, "include_path": include}
