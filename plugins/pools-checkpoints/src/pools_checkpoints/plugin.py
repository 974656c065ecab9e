"""Register the pool for checkpoints of any kind, without importing torch."""

from collections.abc import Iterator

from fusion_core import ModelPoolSpec, hookimpl


@hookimpl
def fusion_register_model_pools() -> Iterator[ModelPoolSpec]:
    """Register the pool for checkpoints of any kind."""
    yield ModelPoolSpec(
        name="checkpoints",
        summary="Any checkpoints and adapters: paths, hub ids, or live models.",
        target="pools_checkpoints.pool:CheckpointsPool",
        config="pools_checkpoints.config:CheckpointsConfig",
        offline=True,
    )
