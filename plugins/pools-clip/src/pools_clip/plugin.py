"""Register the CLIP pools without importing torch or transformers."""

from collections.abc import Iterator

from fusion_core import ModelPoolSpec, TaskPoolSpec, hookimpl
from pools_clip.families import (
    all_tasks,
    data_citations,
    data_licence,
    families,
    load_data_set,
    model_citation,
    model_licence,
    task_sets,
)

_CLASSES = {
    "clip-vit-b32": "ClipVitB32",
    "clip-vit-b16": "ClipVitB16",
    "clip-vit-l14": "ClipVitL14",
}

#: Size of one image in every family, decoded.
_IMAGE_BYTES = 3 * 224 * 224


@hookimpl
def fusion_register_model_pools() -> Iterator[ModelPoolSpec]:
    """Register the pool of CLIP checkpoints, and one pool per published family."""
    yield ModelPoolSpec(
        name="clip",
        summary="Vision towers of CLIP checkpoints, from directories or the hub.",
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
            licence=model_licence(),
            citation=model_citation(),
        )


@hookimpl
def fusion_register_task_pools() -> Iterator[TaskPoolSpec]:
    """Register zero-shot image classification, and the tasks of the published families."""
    yield TaskPoolSpec(
        name="clip-classification",
        summary="Image classification with CLIP's zero-shot heads, from parquet files or the hub.",
        target="pools_clip.tasks:ClipClassification",
        config="pools_clip.config:ClipClassificationConfig",
        offline=True,
    )
    rows = sum(load_data_set(task).rows or 0 for task in task_sets()["ta8"])
    for name, family in families().items():
        yield TaskPoolSpec(
            name=name,
            summary=f"Twenty data sets from the hub, with the heads of {family.title}.",
            target=f"pools_clip.family_pools:{_CLASSES[name]}Tasks",
            config="pools_clip.config:FamilyTasksConfig",
            tasks=tuple(all_tasks()),
            decoded_bytes=rows * _IMAGE_BYTES,
            licence=data_licence(),
            citation=data_citations(),
        )
