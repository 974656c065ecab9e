"""The suites of transforms and calibrations: what every algorithm keeps, in the smallest pipeline.

A transform is tried with a sum after it, a calibration with a mean before it.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

from fusion_core.contracts.stage import Calibration, Transform
from fusion_testing._algorithm import AlgorithmSuite
from fusion_testing._bench import turned
from fusion_testing._compare import differing_bytes, differing_values
from fusion_testing._merging import on_every_model
from fusion_testing._suite import fail
from fusion_testing._tensorwise import Sum

if TYPE_CHECKING:
    from fusion_testing._bench import Bench

#: Of a tensor's largest entry: what computing in another order may change.
_ROUNDING = 1e-4


class TransformSuite(AlgorithmSuite):
    """What every transform keeps; the fixtures are those of the `AlgorithmSuite`."""

    kind: ClassVar[type[Any]] = Transform

    @on_every_model
    def test_each_expert_keeps_its_row(self, bench: Bench, model: str) -> None:
        """Experts in another order have the same task vectors after it."""
        pool = bench.pool(model)
        before, after = bench.task_vectors(pool), bench.task_vectors(turned(pool))
        for expert, rows in before.items():
            found = differing_values(after[expert], rows, tolerance=_ROUNDING)
            if found:
                fail(
                    f"the task vector of expert {expert!r} depends on the order of experts: "
                    f"{found}.",
                    "Return rows in the order of `piece.task_vectors`, treating all alike.",
                )


class CalibrationSuite(AlgorithmSuite):
    """What every calibration keeps; the fixtures are those of the `AlgorithmSuite`."""

    kind: ClassVar[type[Any]] = Calibration

    def test_another_merge_gives_another_model(self, bench: Bench) -> None:
        """It is the merge that is calibrated, not the models alone."""
        pool = bench.pool("mlp")
        other = replace(bench, partner=Sum())
        if not differing_bytes(bench.merge(pool), other.merge(pool)):
            fail(
                f"{bench.spec.name!r} gives the same model whatever the merge is.",
                "Start from `piece.merged`; what merges models by itself is not a calibration: "
                'register it with stage="merge".',
            )
