"""The suites of transforms and calibrations, run in the smallest pipeline.

A transform is followed by a sum of task vectors, a calibration preceded by a mean.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

from fusion_core.contracts.stage import Calibration, Transform
from fusion_testing._algorithm import AlgorithmSuite
from fusion_testing._bench import reverse_experts
from fusion_testing._compare import differing_bytes, differing_values
from fusion_testing._merging import on_every_model
from fusion_testing._suite import fail
from fusion_testing._tensorwise import Sum

if TYPE_CHECKING:
    from fusion_testing._bench import Bench

#: Largest change by another order of computation, relative to a tensor's largest entry.
_ROUNDING = 1e-4


class TransformSuite(AlgorithmSuite):
    """Checks that every transform must pass, with the fixtures of `AlgorithmSuite`."""

    kind: ClassVar[type[Any]] = Transform

    @on_every_model
    def test_each_expert_keeps_its_row(self, bench: Bench, model: str) -> None:
        """The task vector of an expert does not depend on the order of experts."""
        pool = bench.pool(model)
        before = bench.task_vectors(pool)
        after = bench.task_vectors(reverse_experts(pool))
        for expert, rows in before.items():
            if difference := differing_values(after[expert], rows, tolerance=_ROUNDING):
                fail(
                    f"the task vector of expert {expert!r} depends on the order of experts: "
                    f"{difference}.",
                    "Return rows in the order of `piece.task_vectors`, and treat all alike.",
                )


class CalibrationSuite(AlgorithmSuite):
    """Checks that every calibration must pass, with the fixtures of `AlgorithmSuite`."""

    kind: ClassVar[type[Any]] = Calibration

    def test_another_merge_gives_another_model(self, bench: Bench) -> None:
        """The result depends on the merge, not only on the models."""
        pool = bench.pool("mlp")
        other = replace(bench, partner=Sum())
        if not differing_bytes(bench.merge(pool), other.merge(pool)):
            fail(
                f"{bench.spec.name!r} returns the same model for two different merges.",
                "Start from `piece.merged`. If the method merges models itself, register it with "
                'stage="merge".',
            )
