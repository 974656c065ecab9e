"""What every algorithm keeps, checked by the suite of fusion-core."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import pytest

from fusion_adamerging import plugin
from fusion_core.testing import AlgorithmSuite

if TYPE_CHECKING:
    from fusion_core import AlgorithmSpec


class TestAdaMerging(AlgorithmSuite):
    expected_failures: ClassVar[dict[str, str]] = {
        "test_equal_models_give_the_same_model": "the search has no parameter to learn and crashes",
        "test_experts_may_be_differences_from_the_base": "the live merge does not ask is_delta",
        "test_nan_in_an_expert_is_refused_by_name": "reported as a search that diverged",
        "test_nan_in_the_base_is_refused_by_name": "reported as a search that diverged",
    }

    @pytest.fixture(params=plugin.fusion_register_algorithms(), ids=lambda spec: spec.name)
    def spec(self, request: pytest.FixtureRequest) -> AlgorithmSpec:
        found: AlgorithmSpec = request.param
        return found

    @pytest.fixture(params=["layer", "task"])
    def options(self, request: pytest.FixtureRequest) -> dict[str, Any]:
        return {"granularity": request.param, "steps": 3, "batch_size": 4}
