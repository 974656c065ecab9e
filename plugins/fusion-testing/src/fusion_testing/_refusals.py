"""Checks of inputs that an algorithm must refuse, and of its spec's declarations."""

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
    """Checks of invalid inputs and of the spec; part of `AlgorithmSuite`."""

    @pytest.mark.parametrize("problem", _MISFITS)
    def test_models_that_do_not_fit_are_refused_by_name(self, bench: Bench, problem: str) -> None:
        """A missing, additional or misshapen tensor is an error that names it."""
        pool = bench.pool("mlp")
        if pool.base is None and len(pool.experts) == 1:
            pytest.skip("the pool has only one model")
        try:
            bench.merge(_with_last(pool, _MISFITS[problem]))
        except AlignmentError as error:
            if _TENSOR not in error.message:
                fail(
                    f"the error does not name the tensor {_TENSOR!r}: {error}",
                    "Name the tensor in the message.",
                )
            return
        fail(
            f"expected an AlignmentError for an expert with a tensor that is wrong ({problem}), "
            "got a merge.",
            "Read only the pool that `run` receives: the pipeline has aligned it.",
        )

    def test_nan_in_an_expert_is_refused_by_name(self, bench: Bench) -> None:
        """NaN in an expert is an error that names the tensor."""
        pool = bench.pool("mlp")
        _check_refused(bench, _with_last(pool, lambda source: spoiled(source, _TENSOR)), "expert")

    def test_nan_in_the_base_is_refused_by_name(self, bench: Bench) -> None:
        """NaN in the base is an error that names the tensor, if the method reads the base."""
        pool = bench.pool("mlp")
        if pool.base is None:
            pytest.skip("the pool has no base")
        moved = bench.merge(with_base(pool, shifted(pool.base)))
        if differing_bytes(moved, bench.merge(pool)):
            _check_refused(bench, with_base(pool, spoiled(pool.base, _TENSOR)), "base")

    def test_it_runs_on_as_few_experts_as_it_declares(self, bench: Bench) -> None:
        """The algorithm runs on the spec's `min_experts`."""
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
            fail(
                f"the spec says needs_tasks_unless={option!r}, but there is no such option.",
                "Name an option of the algorithm.",
            )

    def test_it_needs_a_base_only_if_it_declares_it(self, bench: Bench) -> None:
        """An algorithm runs without a base unless its spec says `needs_base`."""
        if not bench.spec.needs_base:
            without_base = with_base(bench.pool("mlp"), None)
            _check_runs(bench, without_base, "its spec does not say needs_base=True")


def _with_last(pool: ModelPool[Any], change: Any) -> ModelPool[Any]:  # noqa: ANN401 - a function
    """Return a pool with a function applied to its last expert."""
    last = list(pool.experts)[-1]
    return with_experts(pool, {**pool.experts, last: change(pool.experts[last])})


def _check_refused(bench: Bench, pool: ModelPool[Any], where: str) -> None:
    remedy = (
        "Read weights through context.merge and Piece, which check them. For weights that you read "
        "yourself, raise a FusionError that names the tensor. Do not replace NaN."
    )
    try:
        bench.merge(pool)
    except WeightsError as error:
        if _TENSOR not in error.message:
            fail(
                f"the error does not name the tensor {_TENSOR!r}: {error}",
                "Name the tensor in the message.",
            )
    except FusionError as error:
        fail(
            f"expected a WeightsError for NaN in {_TENSOR!r} of the {where}, got: {error}",
            remedy,
        )
    else:
        fail(
            f"expected a WeightsError for NaN in {_TENSOR!r} of the {where}, got a merge.",
            remedy,
        )


def _check_runs(bench: Bench, pool: ModelPool[Any], because: str) -> None:
    try:
        bench.merge(pool)
    except FusionError as error:
        fail(
            f"{bench.spec.name!r} does not run, although {because}: {error}",
            "Correct the spec, or support this case.",
        )
