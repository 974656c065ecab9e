"""Register mini8 without importing torch or transformers."""

from collections.abc import Iterator

from fusion_core import ModelPoolSpec, TaskPoolSpec, hookimpl

#: The tasks in the order of results. The package's tasks.json describes them.
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
        summary="A tiny CLIP and eight experts, included in the package.",
        target="pools_mini.pools:Mini8Pool",
        config="pools_mini.config:Mini8Config",
        default_task_pool="mini8",
        shared_options=("tasks",),
        offline=True,
        tasks=TASKS,
        licence="Apache-2.0",
        default=True,
    )


@hookimpl
def fusion_register_task_pools() -> Iterator[TaskPoolSpec]:
    """Register the eight tasks."""
    yield TaskPoolSpec(
        name="mini8",
        summary="Eight small image classification tasks, included in the package.",
        target="pools_mini.pools:Mini8Tasks",
        config="pools_mini.config:Mini8TasksConfig",
        offline=True,
        tasks=TASKS,
        licence=(
            "fashion-mnist: MIT; optdigits: CC BY 4.0; textures, shapes: Apache-2.0; the others, "
            "drawn with free fonts: mostly OFL 1.1; the package's data/LICENCES lists them"
        ),
        citation=(
            "Xiao et al., Fashion-MNIST: a Novel Image Dataset for Benchmarking Machine Learning "
            "Algorithms, arXiv:1708.07747 (fashion-mnist); Alpaydin and Kaynak, Optical "
            "Recognition of Handwritten Digits, UCI Machine Learning Repository, 1998 (optdigits)"
        ),
    )
