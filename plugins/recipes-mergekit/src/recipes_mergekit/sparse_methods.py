"""Counterparts of mergekit's methods that make task vectors sparse, and of task arithmetic."""

from __future__ import annotations

from typing import TYPE_CHECKING

from recipes_mergekit.algorithm import Algorithm
from recipes_mergekit.settings import constant

if TYPE_CHECKING:
    from collections.abc import Callable

    from recipes_mergekit.parameters import Parameters, Setting

_RESCALE = ("none", "l1")


def task_arithmetic(given: Parameters) -> Algorithm:
    """Return `task-arithmetic`, or `dare` that keeps everything if it has to divide."""
    normalize = given.switch_rules("normalize", default=False)
    algorithm = Algorithm("task-arithmetic")
    if constant(normalize) != 0:
        algorithm = Algorithm("dare", {"density": 1.0, "rescale": "paper", "elect": "none"})
        algorithm.set_switch("normalize", normalize)
    return _set_sum(algorithm, given)


def ties(given: Parameters) -> Algorithm:
    """Return `ties` with mergekit's scope and sign of zero."""
    algorithm = Algorithm("ties", {"scope": "tensor", "zero_sign": "positive"})
    algorithm.set_fractions("density", given.fractions("density", 1.0))
    _set_switches(algorithm, given, normalize=True, rescale=False)
    return _set_sum(algorithm, given)


def dare(elect: str) -> Callable[[Parameters], Algorithm]:
    """Return what makes `dare` of parameters."""

    def translate(given: Parameters) -> Algorithm:
        algorithm = Algorithm("dare")
        algorithm.set_fractions("density", _random_fractions(given))
        algorithm.options["elect"] = elect
        _set_switches(algorithm, given, normalize=False, rescale=True)
        return _set_sum(algorithm, given)

    return translate


def della(elect: str, *, normalize: bool) -> Callable[[Parameters], Algorithm]:
    """Return what makes `della` of parameters."""

    def translate(given: Parameters) -> Algorithm:
        algorithm = Algorithm("della")
        algorithm.set_fractions("density", _random_fractions(given))
        algorithm.set_fractions("epsilon", given.by_expert("epsilon", 0.15))
        algorithm.options["elect"] = elect
        _set_switches(algorithm, given, normalize=normalize, rescale=True)
        return _set_sum(algorithm, given)

    return translate


def breadcrumbs(elect: str) -> Callable[[Parameters], Algorithm]:
    """Return what makes `breadcrumbs` of parameters."""

    def translate(given: Parameters) -> Algorithm:
        algorithm = Algorithm("breadcrumbs")
        algorithm.set_fractions("density", given.fractions("density", 1.0))
        algorithm.set_fractions("gamma", given.by_expert("gamma", 0.01))
        algorithm.options["elect"] = elect
        _set_switches(algorithm, given, normalize=False, rescale=False)
        return _set_sum(algorithm, given)

    return translate


def _set_sum(algorithm: Algorithm, given: Parameters) -> Algorithm:
    algorithm.set("scale", given.shared("lambda", 1.0))
    weights = given.by_expert("weight")
    algorithm.set_weights("weights", weights)
    if algorithm.options.get("elect", "ties") == "ties" and _may_normalise(algorithm):
        rules = (rule for setting in weights.values() for rules in setting for rule in rules)
        if any(value < 0 for rule in rules for value in rule.values):
            given.warn(
                "weight",
                "a negative weight negates the task vector; with normalize: true, mergekit divides "
                "by the sum of the weights, which negates it again. With normalize: false, both "
                "give the same values",
            )
    return algorithm


def _may_normalise(algorithm: Algorithm) -> bool:
    """Tell whether the sum is normalised for some tensors."""
    varying = algorithm.switches.get("normalize", ())
    return bool(algorithm.options.get("normalize")) or any(value for _, value in varying)


def _set_switches(
    algorithm: Algorithm, given: Parameters, *, normalize: bool, rescale: bool
) -> None:
    """Set two options by mergekit's switches with these defaults."""
    rescaling = given.switch_rules("rescale", default=rescale)
    algorithm.set_switch("rescale", rescaling, _RESCALE, default=None if rescale else "none")
    algorithm.set_switch("normalize", given.switch_rules("normalize", default=normalize))


def _random_fractions(given: Parameters) -> dict[str, Setting]:
    """Return the fractions that are kept at random, and warn unless that is everything."""
    density = given.fractions("density", 1.0)
    if any(constant(rules) != 1 for setting in density.values() for rules in setting):
        reason = "drops entries at random; mergekit's random numbers differ, from run to run too"
        given.findings.warn(f"{given.configuration.prefix}merge_method", reason)
    return density
