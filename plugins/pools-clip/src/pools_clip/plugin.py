"""Registers the CLIP pools; imports nothing heavy."""

from collections.abc import Iterator

from fusion_core import ModelPoolSpec, TaskPoolSpec, hookimpl
from pools_clip.families import (
    all_tasks,
    citation,
    citations_of_data,
    families,
    known,
    licence,
    licence_of_data,
    task_sets,
)

_CLASSES = {
    "clip-vit-b32": "ClipVitB32",
    "clip-vit-b16": "ClipVitB16",
    "clip-vit-l14": "ClipVitL14",
}


#: an image as every family takes it
_IMAGE_BYTES = 3 * 224 * 224


@hookimpl
def fusion_register_model_pools() -> Iterator[ModelPoolSpec]:
    """Register the pool of CLIP checkpoints, and those of the published families."""
    yield ModelPoolSpec(
        name="clip",
        summary="The vision towers of CLIP checkpoints: directories, or names on the hub.",
        target="pools_clip.pool:ClipPool",
        config="pools_clip.config:ClipConfig",
        offline=True,
    )
    default = task_sets()["ta8"]
    for name, family in families().items():
        yield ModelPoolSpec(
            name=name,
            summary=f"{family.title} and its published experts, from the hub.",
            target=f"pools_clip.family_pools:{_CLASSES[name]}",
            config="pools_clip.config:FamilyConfig",
            default_task_pool=name,
            shared_options=("tasks",),
            download_bytes=family.base_bytes + len(default) * family.expert_bytes,
            tasks=tuple(all_tasks()),
            licence=licence(),
            citation=citation(),
        )


@hookimpl
def fusion_register_task_pools() -> Iterator[TaskPoolSpec]:
    """Register zero-shot image classification, and the tasks of the published families."""
    yield TaskPoolSpec(
        name="clip-classification",
        summary="Image classification with CLIP's zero-shot heads, on parquet files or the hub's.",
        target="pools_clip.tasks:ClipClassification",
        config="pools_clip.config:ClipClassificationConfig",
        offline=True,
    )
    rows = sum(known(task).rows or 0 for task in task_sets()["ta8"])
    for name, family in families().items():
        yield TaskPoolSpec(
            name=name,
            summary=f"Twenty data sets from the hub, with the heads of {family.title}.",
            target=f"pools_clip.family_pools:{_CLASSES[name]}Tasks",
            config="pools_clip.config:FamilyTasksConfig",
            tasks=tuple(all_tasks()),
            decoded_bytes=rows * _IMAGE_BYTES,
            licence=licence_of_data(),
            citation=citations_of_data(),
        )
