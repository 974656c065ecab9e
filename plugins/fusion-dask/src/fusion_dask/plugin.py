"""Registers the executor on Dask's workers; imports nothing heavy."""

from collections.abc import Iterator

from fusion_core import ExecutorSpec, hookimpl


@hookimpl
def fusion_register_executors() -> Iterator[ExecutorSpec]:
    """Register the executor `dask`."""
    yield ExecutorSpec(
        name="dask",
        summary="Workers of a Dask scheduler: of one that runs, or of processes on this machine.",
        target="fusion_dask.executor:make_dask",
        config="fusion_dask.config:DaskConfig",
        trust=("dask",),
    )
