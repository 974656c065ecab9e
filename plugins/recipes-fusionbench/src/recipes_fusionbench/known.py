"""Files of FusionBench's configuration tree that are known without the tree.

These are the methods' files, and the pools of the published CLIP, GPT-2 and Flan-T5 benchmarks, in
the form that their files have after composition.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from recipes_fusionbench.known_methods import find_method
from recipes_fusionbench.published import GLUE, TASKS, test_split

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_CLIP = "clip-vit-(base-patch32|base-patch16|large-patch14)"
_CLIP_POOL = re.compile(rf"CLIPVisionModelPool/{_CLIP}_(TA8|TALL1[02468]|TALL20)(_model_only)?")
_CLIP_TASKS = re.compile(
    r"CLIPVisionModelTaskPool/clip-vit-(?:classification_(TA8|TALL14|TALL20)|single-task_(.*))"
)
_T5_POOL = re.compile(r"Seq2SeqLMPool/flan-t5-(base|large)_glue(_lora16)?")


def find_known(path: str) -> Mapping[str, Any] | None:
    """Return what the file of a path such as `method/ties_merging` configures; None if unknown."""
    group, _, name = path.partition("/")
    match group, name:
        case (("fabric_model_fusion" | "model_fusion"), ""):
            defaults = {"modelpool": "CLIPVisionModelPool/clip-vit-base-patch32_TA8"}
            groups = [defaults, {"method": "dummy"}, {"taskpool": "dummy"}]
            return {"defaults": groups, "fast_dev_run": False}
        case "method", _:
            return find_method(name)
        case "modelpool", _:
            return _find_pool(name)
        case "taskpool", _:
            return _find_tasks(name)
    return None


def _find_pool(name: str) -> Mapping[str, Any] | None:
    if (clip := _CLIP_POOL.fullmatch(name)) is not None:
        size, tasks = clip[1], _tasks_of(clip[2])
        return {
            "_target_": "fusion_bench.modelpool.CLIPVisionModelPool",
            "processor": f"openai/clip-vit-{size}",
            "models": {
                "_pretrained_": f"openai/clip-vit-{size}",
                **{task: f"tanganke/clip-vit-{size}_{task}" for task in tasks},
            },
            **({} if clip[3] else _splits(tasks)),
        }
    if name == "gpt-2_glue":
        models = {task: f"tanganke/gpt2_{task}" for task in GLUE if task != "stsb"}
        return {
            "_target_": "fusion_bench.modelpool.HuggingFaceGPT2ClassificationPool",
            "models": {"_pretrained_": "gpt2", **models},
        }
    if (t5 := _T5_POOL.fullmatch(name)) is not None and t5.groups() != ("large", None):
        return {
            "_target_": "fusion_bench.modelpool.Seq2SeqLMPool",
            "models": {
                "_pretrained_": f"google/flan-t5-{t5[1]}",
                **{f"glue-{task}": _t5_expert(t5[1], task, bool(t5[2])) for task in GLUE},
            },
        }
    return None


def _t5_expert(size: str, task: str, is_lora: bool) -> str | dict[str, str]:  # noqa: FBT001
    path = f"tanganke/flan-t5-{size}_glue-{task}"
    if not is_lora:
        return path
    return {
        "_target_": "fusion_bench.modelpool.seq2seq_lm.modelpool.load_lora_model",
        "base_model_path": f"google/flan-t5-{size}",
        "peft_model_path": f"{path}_lora-16",
    }


def _find_tasks(name: str) -> Mapping[str, Any] | None:
    if name == "dummy":
        return {"_target_": "fusion_bench.taskpool.DummyTaskPool"}
    if name == "gpt-2_glue":
        split = {"mnli": "validation_matched"}
        return {
            "_target_": "fusion_bench.taskpool.GPT2TextClassificationTaskPool",
            "test_datasets": {
                task: {"name": task, "split": split.get(task, "validation")}
                for task in GLUE
                if task != "stsb"
            },
        }
    if name == "flan-t5_glue_text_generation":
        return {
            "type": "FlanT5GLUETextGenerationTaskPool",
            "tasks": [{"name": task, "dataset": {"name": task}} for task in GLUE],
        }
    clip = _CLIP_TASKS.fullmatch(name)
    if clip is None or (clip[2] and clip[2] not in TASKS):
        return None
    return {
        "_target_": "fusion_bench.taskpool.CLIPVisionModelTaskPool",
        "base_model": "openai/clip-vit-base-patch32",
        "test_datasets": _splits(_tasks_of(clip[1]) if clip[1] else [clip[2]])["test_datasets"],
        "clip_model": "${.base_model}",
        "processor": "${.base_model}",
    }


def _tasks_of(name: str) -> Sequence[str]:
    """Return the tasks of a set: TA8, or TALL with their number."""
    return [*TASKS][: int(name.lstrip("TAL"))]


def _splits(tasks: Sequence[str]) -> dict[str, dict[str, dict[str, str]]]:
    return {
        "train_datasets": {task: {"path": TASKS[task][0], "split": "train"} for task in tasks},
        "test_datasets": {
            task: {"path": TASKS[task][0], "split": test_split(task)} for task in tasks
        },
    }
