"""The core's own plugin, registered like any other: one format, two executors."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fusion_core.contracts.specs import ExecutorSpec, FormatSpec
from fusion_core.hookspecs import hookimpl

if TYPE_CHECKING:
    from collections.abc import Iterator


@hookimpl
def fusion_register_formats() -> Iterator[FormatSpec]:
    """Register the common format of full models."""
    yield FormatSpec(
        name="safetensors",
        summary="One safetensors file, or several with an index.",
        target="fusion_core.weights.reading.remote:open_checkpoint",
        files=("model.safetensors", "model.safetensors.index.json"),
    )


@hookimpl
def fusion_register_executors() -> Iterator[ExecutorSpec]:
    """Register the executors of this process."""
    yield ExecutorSpec(
        name="serial",
        summary="Merge one piece after the other, on the calling thread.",
        target="fusion_core.builtin.executors:make_serial",
        config="fusion_core.recipe.config:ComponentConfig",
    )
    yield ExecutorSpec(
        name="threads",
        summary="Merge on threads of this process; the default executor.",
        target="fusion_core.builtin.executors:make_threads",
        config="fusion_core.builtin.executors:ThreadsConfig",
    )
