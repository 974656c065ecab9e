"""Registers the executor `dask`; imports nothing heavy."""

from collections.abc import Iterator

from fusion_core import ExecutorSpec, hookimpl


@hookimpl
def fusion_register_executors() -> Iterator[ExecutorSpec]:
    """Register the executor `dask`."""
    yield ExecutorSpec(
        name="dask",
        summary="Run work on the workers of a Dask scheduler, or on processes of this machine.",
        target="fusion_dask.executor:make_dask",
        config="fusion_dask.config:DaskConfig",
        trust=("dask",),
    )
