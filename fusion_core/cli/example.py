"""The example of `fuse info`: a command that runs an algorithm on the default pool."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Any

from fusion_core.contracts.specs import STAGES, AlgorithmSpec, ModelPoolSpec

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from fusion_core.contracts.specs import PipelineSpec
    from fusion_core.plugins.manager import PluginManager


def example_command(
    spec: AlgorithmSpec | PipelineSpec,
    options: Iterable[Mapping[str, Any]],
    plugins: PluginManager,
) -> str:
    """Return a command with as many experts as the algorithm takes, and its required options."""
    pipeline, most = spec.name, None
    if isinstance(spec, AlgorithmSpec):
        if spec.example:
            return shlex.join(("fuse", "run", "--algo", spec.name, *spec.example))
        pipeline, most = STAGES[spec.stage].example.format(spec.name), spec.max_experts
    words = ["fuse", "run", "--algo", pipeline]
    pool = next(
        (known.spec for known in plugins.components(ModelPoolSpec) if known.spec.default), None
    )
    if pool is not None:
        words += ["--pool", pool.name]
        if most is not None and most < len(pool.tasks):  # there is one expert per task
            words += ["--set", f"model_pool.tasks=[{', '.join(pool.tasks[:most])}]"]
    section = "algorithm" if pipeline == spec.name else f"algorithm.{spec.name}"
    for option in options:
        if option["required"]:
            value = "..." if option["example"] is None else option["example"]
            words += ["--set", f"{section}.{option['name']}={value}"]
    return shlex.join(words)
