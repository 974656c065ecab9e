"""Run the conformance suites on every method and stage."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import pytest

from fusion_testing import AlgorithmSuite, TransformSuite
from fusion_ties import plugin

if TYPE_CHECKING:
    from collections.abc import Mapping

    from fusion_core import AlgorithmSpec

SPECS = {spec.name: spec for spec in plugin.fusion_register_algorithms()}
#: Merges with options that reach most of their code.
RANDOM: list[tuple[str, dict[str, Any]]] = [
    ("dare", {"rescale": "l1", "elect": "ties", "normalize": True}),
    ("dare", {"rescale": "none"}),
    ("della", {"rescale": "l1"}),
    ("della", {"rescale": "none"}),
]
MERGES: list[tuple[str, dict[str, Any]]] = [
    ("ties", {}),
    ("ties", {"scope": "tensor", "zero_sign": "positive", "density": 0.5}),
    ("ties", {"scope": "tensor", "zero_sign": "positive", "density": 0.5, "rescale": "l1"}),
    ("breadcrumbs", {"elect": "ties"}),
    ("breadcrumbs", {"density": 0.6, "normalize": True, "rescale": "l1"}),
    ("sce", {"density": 0.4}),
    ("magmax", {}),
    ("consensus", {}),
    ("consensus", {"task_masks": True}),
    ("pcb", {}),
    ("emr", {}),
    ("ram", {"epsilon": 0.0}),
    ("ram", {"epsilon": 0.001, "r": 0.5, "alpha": 2.0}),
    ("ram", {"epsilon": 0.001, "r": 0.5, "scope": "tensor"}),
]

#: Checks that random numbers fail by definition, with the reason.
_RANDOM_NUMBERS = {
    "test_tied_tensors_stay_tied": "random numbers depend on the tensor's name",
    "test_the_numbering_of_rows_and_columns_does_not_matter": "they depend on an entry's position",
}


def _case_id(case: tuple[str, dict[str, Any]]) -> str:
    return "-".join([case[0], *map(str, case[1].values())])


class _Cases:
    """Fixtures for cases, each a name and options."""

    @pytest.fixture
    def spec(self, case: tuple[str, dict[str, Any]]) -> AlgorithmSpec:
        return SPECS[case[0]]

    @pytest.fixture
    def options(self, case: tuple[str, dict[str, Any]]) -> dict[str, Any]:
        return case[1]


class TestMerges(_Cases, AlgorithmSuite):
    expected_failures: ClassVar[Mapping[str, str]] = {
        "test_larger_task_vectors_give_the_same_merge_enlarged[pcb]": (
            "the tanh of products depends on the scale of the task vectors"
        ),
        **{
            f"test_larger_task_vectors_give_the_same_merge_enlarged[ram-0.001-0.5-{last}]": (
                "epsilon is an absolute magnitude"
            )
            for last in ("2.0", "tensor")
        },
    }

    @pytest.fixture(params=MERGES, ids=_case_id)
    def case(self, request: pytest.FixtureRequest) -> Any:
        return request.param


class TestRandomMerges(_Cases, AlgorithmSuite):
    expected_failures = _RANDOM_NUMBERS

    @pytest.fixture(params=RANDOM, ids=_case_id)
    def case(self, request: pytest.FixtureRequest) -> Any:
        return request.param


class TestTransforms(_Cases, TransformSuite):
    @pytest.fixture(params=["trim", "elect", "band"])
    def case(self, request: pytest.FixtureRequest) -> Any:
        return request.param, {}


class TestRandomTransforms(_Cases, TransformSuite):
    expected_failures = _RANDOM_NUMBERS

    @pytest.fixture(params=["drop", "magprune"])
    def case(self, request: pytest.FixtureRequest) -> Any:
        return request.param, {}
