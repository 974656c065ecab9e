"""Registers the CLIP pools; imports nothing heavy."""

from collections.abc import Iterator

from fusion_core import ModelPoolSpec, TaskPoolSpec, hookimpl


@hookimpl
def fusion_register_model_pools() -> Iterator[ModelPoolSpec]:
    """Register the pool of CLIP checkpoints."""
    yield ModelPoolSpec(
        name="clip",
        summary="The vision towers of CLIP checkpoints in local directories.",
        target="pools_clip.pool:ClipPool",
        config="pools_clip.config:ClipConfig",
        offline=True,
    )


@hookimpl
def fusion_register_task_pools() -> Iterator[TaskPoolSpec]:
    """Register zero-shot image classification."""
    yield TaskPoolSpec(
        name="clip-classification",
        summary="Image classification with CLIP's zero-shot heads, on parquet files.",
        target="pools_clip.tasks:ClipClassification",
        config="pools_clip.config:ClipClassificationConfig",
        offline=True,
    )
