"""The example of `fuse info`: a command that uses an algorithm as its spec says."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Any

from fusion_core.contracts.specs import STAGES, AlgorithmSpec, ModelPoolSpec

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from fusion_core.contracts.specs import PipelineSpec
    from fusion_core.plugins.manager import PluginManager


def example(
    spec: AlgorithmSpec | PipelineSpec,
    options: Iterable[Mapping[str, Any]],
    plugins: PluginManager,
) -> str:
    """Return the command, on the default model pool with as many experts as the algorithm takes."""
    pipeline, most = spec.name, None
    if isinstance(spec, AlgorithmSpec):
        pipeline, most = STAGES[spec.stage].example.format(spec.name), spec.max_experts
    words = ["fuse", "run", "--algo", pipeline]
    pools = [
        component.spec for component in plugins.components(ModelPoolSpec) if component.spec.default
    ]
    for pool in pools[:1]:
        words += ["--pool", pool.name, *_fewer(pool, most)]
    section = "algorithm" if pipeline == spec.name else f"algorithm.{spec.name}"
    return shlex.join([*words, *_required(section, options)])


def _fewer(pool: ModelPoolSpec, most: int | None) -> list[str]:
    """Choose tasks, and with them experts, where a pool has more than an algorithm takes."""
    if most is None or most >= len(pool.tasks):
        return []
    return ["--set", f"model_pool.tasks=[{', '.join(pool.tasks[:most])}]"]


def _required(section: str, options: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    for option in options:
        if option["required"]:
            value = "..." if option["example"] is None else option["example"]
            yield from ("--set", f"{section}.{option['name']}={value}")
