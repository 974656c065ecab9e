"""Routers of mixtures of experts: which tensors they are, and what the option `router` says."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fusion_core import Treatment
from fusion_core.errors import RecipeError

if TYPE_CHECKING:
    from collections.abc import Collection

#: The last part of the name of a bias that DeepSeek and others add to a router's scores.
_SCORE_BIAS = "e_score_correction_bias"


def find_routers(names: Collection[str]) -> list[str]:
    """Return the tensors that choose the experts of a mixture.

    They are those of a module `router`, of a module `gate` next to `experts`, and biases of scores.
    """
    mixtures = {name.rpartition("experts.")[0] for name in names if ".experts." in f".{name}"}
    gates = tuple(f"{mixture}gate." for mixture in mixtures)
    return [
        name
        for name in names
        if "router" in name.split(".")[:-1]
        or name.endswith(_SCORE_BIAS)
        or (gates and name.startswith(gates))
    ]


def treat_routers(router: str, names: Collection[str], *, has_base: bool) -> dict[str, Treatment]:
    """Return the treatment of routers under the option `router`.

    Raises `RecipeError` if the models have no routers, or no base that routers could come from.
    """
    if router == "merge":
        return {}
    if router == "base" and not has_base:
        raise RecipeError(
            "model_pool.router: base needs a base, and the model pool has none",
            hint="Name the base, or use --set model_pool.router=average.",
        )
    routers = find_routers(names)
    if not routers:
        raise RecipeError(
            f"model_pool.router: {router} found no router: the models are not mixtures, or name "
            "their routers neither `router` nor `gate` next to `experts`",
            hint="Leave router out, and select tensors by patterns: algorithm.skip.",
        )
    if router == "base":
        return dict.fromkeys(routers, Treatment("copy", "copied from base (router: base)"))
    return dict.fromkeys(routers, Treatment("average", "averaged (router: average)"))
