"""Checks of what an algorithm must refuse, and of what its spec declares."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from fusion_core.errors import AlignmentError, FusionError, WeightsError
from fusion_testing._bench import with_base, with_experts
from fusion_testing._compare import differing_bytes
from fusion_testing._sources import doubled, flattened, shifted, spoiled, without
from fusion_testing._suite import fail

if TYPE_CHECKING:
    from fusion_core.contracts.model_pool import ModelPool
    from fusion_core.contracts.specs import AlgorithmSpec
    from fusion_core.plugins.components import Component
    from fusion_testing._bench import Bench

_TENSOR = "1.weight"
_MISFITS = {
    "missing": lambda source: without(source, _TENSOR),
    "extra": lambda source: doubled(source, _TENSOR, name=f"{_TENSOR}.again"),
    "shape": lambda source: flattened(source, _TENSOR),
}


class RefusalChecks:
    """Part of the `AlgorithmSuite`."""

    @pytest.mark.parametrize("problem", _MISFITS)
    def test_models_that_do_not_fit_are_refused_by_name(self, bench: Bench, problem: str) -> None:
        """A tensor that one model lacks, or has in another shape, is an error that names it."""
        pool = bench.pool("mlp")
        if pool.base is None and len(pool.experts) == 1:
            pytest.skip("the only model has nothing to be compared with")
        try:
            bench.merge(_with_last(pool, _MISFITS[problem]))
        except AlignmentError as error:
            if _TENSOR not in error.message:
                fail(f"the error does not name {_TENSOR!r}: {error}", "Name the tensor.")
            return
        fail(
            f"an expert with a {problem} tensor was merged.",
            "Leave alignment to the pipeline, and read the pool that `run` is given.",
        )

    def test_nan_in_an_expert_is_refused_by_name(self, bench: Bench) -> None:
        """NaN in the weights is an error that names the tensor, never a model without a word."""
        pool = bench.pool("mlp")
        _check_refused(bench, _with_last(pool, lambda source: spoiled(source, _TENSOR)), "expert")

    def test_nan_in_the_base_is_refused_by_name(self, bench: Bench) -> None:
        """The same for the base, where the method reads it."""
        pool = bench.pool("mlp")
        if pool.base is None:
            pytest.skip("the pool has no base")
        moved = bench.merge(with_base(pool, shifted(pool.base)))
        if differing_bytes(moved, bench.merge(pool)):
            _check_refused(bench, with_base(pool, spoiled(pool.base, _TENSOR)), "base")

    def test_it_runs_on_as_few_experts_as_it_declares(self, bench: Bench) -> None:
        """The spec's `min_experts` is true."""
        _check_runs(
            bench,
            bench.pool("mlp", experts=bench.spec.min_experts),
            f"its spec says min_experts={bench.spec.min_experts}",
        )

    def test_what_it_does_without_tasks_for_is_an_option(
        self, spec: AlgorithmSpec, component: Component[Any]
    ) -> None:
        """The spec's `needs_tasks_unless` names an option."""
        option = spec.needs_tasks_unless
        if option is not None and option not in component.load_config().model_fields:
            fail(f"its spec says needs_tasks_unless={option!r}, no option.", "Name an option.")

    def test_it_needs_a_base_only_if_it_declares_it(self, bench: Bench) -> None:
        """A method whose spec does not say `needs_base` merges pools without one."""
        if not bench.spec.needs_base:
            without_base = with_base(bench.pool("mlp"), None)
            _check_runs(bench, without_base, "its spec does not say needs_base=True")


def _with_last(pool: ModelPool[Any], change: Any) -> ModelPool[Any]:  # noqa: ANN401 - a function
    """Return a pool with its last expert seen through a function."""
    last = list(pool.experts)[-1]
    return with_experts(pool, {**pool.experts, last: change(pool.experts[last])})


def _check_refused(bench: Bench, pool: ModelPool[Any], where: str) -> None:
    remedy = (
        "Read weights by context.merged and Piece, which check them, or call "
        "`check_finite` of fusion_core.weights on what you read yourself; never replace NaN."
    )
    try:
        bench.merge(pool)
    except WeightsError as error:
        if _TENSOR not in error.message:
            fail(f"the error does not name {_TENSOR!r}: {error}", "Name the tensor.")
    except FusionError as error:
        fail(f"NaN in {_TENSOR!r} of the {where} is reported as: {error}", remedy)
    else:
        fail(f"NaN in {_TENSOR!r} of the {where} gave a model without a word.", remedy)


def _check_runs(bench: Bench, pool: ModelPool[Any], because: str) -> None:
    try:
        bench.merge(pool)
    except FusionError as error:
        fail(f"{bench.spec.name!r} does not run, though {because}: {error}", "Correct the spec.")
