"""Registers mini8; imports nothing heavy."""

from collections.abc import Iterator

from fusion_core import ModelPoolSpec, TaskPoolSpec, hookimpl

#: In the order of results; the package's tasks.json describes them.
TASKS = (
    "fashion-mnist",
    "optdigits",
    "latin",
    "greek",
    "hiragana",
    "devanagari",
    "textures",
    "shapes",
)


@hookimpl
def fusion_register_model_pools() -> Iterator[ModelPoolSpec]:
    """Register the tiny CLIP and its eight experts."""
    yield ModelPoolSpec(
        name="mini8",
        summary="A tiny CLIP and its eight experts, inside the package.",
        target="pools_mini.pools:Mini8Pool",
        config="pools_mini.config:Mini8Config",
        default_task_pool="mini8",
        offline=True,
        default=True,
    )


@hookimpl
def fusion_register_task_pools() -> Iterator[TaskPoolSpec]:
    """Register the eight tasks."""
    yield TaskPoolSpec(
        name="mini8",
        summary="Eight small image classification tasks, inside the package.",
        target="pools_mini.pools:Mini8Tasks",
        config="pools_mini.config:Mini8TasksConfig",
        offline=True,
        tasks=TASKS,
    )
