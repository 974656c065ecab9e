"""Counterparts of mergekit's methods that do not make task vectors sparse."""

from __future__ import annotations

from typing import TYPE_CHECKING

from recipes_mergekit.algorithm import Algorithm
from recipes_mergekit.settings import constant

if TYPE_CHECKING:
    from recipes_mergekit.parameters import Parameters


def linear(given: Parameters) -> Algorithm:
    """Return `weighted-average`."""
    algorithm = Algorithm("weighted-average")
    algorithm.set_weights("weights", given.by_expert("weight"))
    algorithm.set_switch("normalize", given.switch_rules("normalize", default=True), default=True)
    return algorithm


def passthrough(given: Parameters) -> Algorithm:
    """Return `passthrough`, or a sum of one model if it is scaled."""
    scales = given.by_expert("scale", 1.0)
    (expert,) = given.experts
    if all(constant(rules) == 1 for rules in scales[expert]):
        return Algorithm("passthrough", {"model": expert})
    algorithm = Algorithm("weighted-average", {"normalize": False})
    algorithm.set_weights("weights", scales)
    return algorithm


def slerp(given: Parameters) -> Algorithm:
    """Return `slerp`."""
    algorithm, t = Algorithm("slerp"), given.shared("t")
    if any(not 0 <= value <= 1 for rules in t for rule in rules for value in rule.values):
        given.refuse("t", "expected values from 0 to 1")
    algorithm.set("t", t)
    return algorithm


def nuslerp(given: Parameters) -> Algorithm:
    """Return `nuslerp`, with a mode for mergekit's two switches."""
    is_flat = given.switch("nuslerp_flatten", default=True)
    is_column = given.switch("nuslerp_row_wise", default=False)
    mode = "flat" if is_flat else "column" if is_column else "row"
    algorithm = Algorithm("nuslerp", {"mode": mode})
    algorithm.set_weights("weights", given.by_expert("weight"))
    return algorithm


def multi_slerp(given: Parameters) -> Algorithm:
    """Return `multi-slerp`."""
    if given.number("eps", 1e-8) != 1e-8:  # noqa: PLR2004 - mergekit's default
        given.refuse("eps", "no counterpart; multi-slerp adds nothing to norms")
    algorithm = Algorithm("multi-slerp")
    if len(given.experts) > 1:  # mergekit returns a single model as it is
        normalize = given.switch_rules("normalize_weights", default=True)
        algorithm.set_switch("normalize", normalize, default=True)
    algorithm.set_weights("weights", given.by_expert("weight"))
    return algorithm


def karcher(given: Parameters) -> Algorithm:
    """Return `karcher`."""
    options = {
        "iterations": int(given.number("max_iter", 10)),
        "tolerance": given.number("tol", 1e-5),
    }
    return Algorithm("karcher", options)


def model_stock(given: Parameters) -> Algorithm:
    """Return `model-stock`."""
    algorithm, by_filter = (
        Algorithm("model-stock"),
        given.switch_rules("filter_wise", default=False),
    )
    algorithm.set_switch("scope", by_filter, ("tensor", "row"), default="tensor")
    return algorithm


def nearswap(given: Parameters) -> Algorithm:
    """Return `nearswap`."""
    algorithm = Algorithm("nearswap")
    algorithm.set("t", given.shared("t"))
    return algorithm


def arcee_fusion(given: Parameters) -> Algorithm:
    """Return `arcee-fusion`."""
    del given
    return Algorithm("arcee-fusion")


def sce(given: Parameters) -> Algorithm:
    """Return `sce`."""
    algorithm = Algorithm("sce")
    algorithm.set("density", given.as_fraction("select_topk", given.shared("select_topk", 1.0)))
    return algorithm


def ram(given: Parameters) -> Algorithm:
    """Return `ram`."""
    algorithm = Algorithm("ram")
    algorithm.set("epsilon", given.shared("epsilon", 1e-5))
    return algorithm


def ram_plus(given: Parameters) -> Algorithm:
    """Return `ram` with enlarged unshared changes."""
    algorithm = ram(given)
    algorithm.set("r", given.shared("r", 0.1))
    algorithm.set("alpha", given.shared("alpha", 0.2))
    algorithm.options["scope"] = "tensor"
    return algorithm
