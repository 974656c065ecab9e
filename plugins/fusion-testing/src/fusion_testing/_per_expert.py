"""Checks of options with one value per expert."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from fusion_core.recipe.per_expert import is_per_expert
from fusion_testing._bench import reverse_experts
from fusion_testing._compare import differing_bytes
from fusion_testing._suite import fail

if TYPE_CHECKING:
    from fusion_testing._bench import Bench

#: The value of an option without a number by default.
_VALUE = 0.5
_HINT = (
    "Read the option with `expert_values(value, piece.names, NAME)`, or the option `weights` as "
    "`piece.weights`."
)


class PerExpertChecks:
    """Checks of options that are declared as `PerExpert`; part of `AlgorithmSuite`."""

    def test_equal_values_per_expert_are_one_value(self, bench: Bench) -> None:
        """A number, and the same number for every expert by name or in order, give one merge."""
        pool = bench.pool("mlp")
        for option, value in _options_of(bench).items():
            expected = _with(bench, option, value).merge(pool)
            for values in (dict.fromkeys(pool.experts, value), [value] * len(pool.experts)):
                merged = _with(bench, option, values).merge(pool)
                if difference := differing_bytes(expected, merged):
                    fail(f"{option}: {value} and {values} differ in {difference}.", _HINT)

    def test_values_per_expert_belong_to_their_names(self, bench: Bench) -> None:
        """Values by name and values in the pool's order give one merge, in any order."""
        pool = bench.pool("mlp")
        share = 0.5 / len(pool.experts)
        for option, value in _options_of(bench).items():
            by_name = {
                name: value * (1 - share * number) for number, name in enumerate(pool.experts)
            }
            for models in (pool, reverse_experts(pool)):
                in_order = [by_name[name] for name in models.experts]
                first, second = (
                    _with(bench, option, given).merge(models) for given in (by_name, in_order)
                )
                if difference := differing_bytes(first, second):
                    fail(f"{option}: {by_name} and {in_order} differ in {difference}.", _HINT)


def _options_of(bench: Bench) -> dict[str, float]:
    """Return the options with one value per expert, each with a number that it takes."""
    config = bench.algorithm.config
    values = {
        name: getattr(config, name)
        for name, field in type(config).model_fields.items()
        if is_per_expert(field)
    }
    if not values:
        pytest.skip("no option takes one value per expert")
    return {
        name: float(value) if isinstance(value, int | float) else _VALUE
        for name, value in values.items()
    }


def _with(bench: Bench, option: str, value: object) -> Bench:
    """Return the algorithm with one option changed."""
    config = bench.algorithm.config
    options = {name: getattr(config, name) for name in type(config).model_fields}
    algorithm: Any = type(bench.algorithm)(**{**options, option: value})
    algorithm.uses_tasks = bench.algorithm.uses_tasks
    return replace(bench, algorithm=algorithm)
