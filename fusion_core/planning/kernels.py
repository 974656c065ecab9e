"""The choice of compiled kernels for a merge."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from fusion_core.errors import RecipeError
from fusion_core.weights.merging.compiled import KERNELS_VARIABLE

if TYPE_CHECKING:
    from collections.abc import Mapping

    from fusion_core.contracts.model_pool import ModelPool
    from fusion_core.plugins.manager import PluginManager


def choose_kernels(plugins: PluginManager, pool: ModelPool[Any]) -> Mapping[str, tuple[str, str]]:
    """Return the compiled kernels that save more time than they take to load.

    `FUSION_KERNELS` chooses `torch` (no kernels) or `compiled` (all). Raises `RecipeError` for
    another value.
    """
    wanted = os.environ.get(KERNELS_VARIABLE, "")
    if wanted not in {"", "torch", "compiled"}:
        raise RecipeError(
            f"unknown value of {KERNELS_VARIABLE}: {wanted!r}",
            hint="Set it to torch or compiled, or unset it.",
        )
    if wanted == "torch":
        return {}
    models = pool.by_name.values()
    size = sum(info.numel for model in models for info in model.infos.values())
    return plugins.kernels(None if wanted else size)
