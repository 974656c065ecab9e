"""Run the conformance suites on every method and stage."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import pytest
from torch import nn

from fusion_linear import plugin
from fusion_testing import MODELS, AlgorithmSuite, CalibrationSuite, TransformSuite, tiny_pool

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from fusion_core import AlgorithmSpec

SPECS = {spec.name: spec for spec in plugin.fusion_register_algorithms()}


def names_in(stage: str) -> list[str]:
    return [name for name, spec in SPECS.items() if spec.stage == stage]


class TestMerges(AlgorithmSuite):
    expected_failures: ClassVar[Mapping[str, str]] = {
        "test_larger_task_vectors_give_the_same_merge_enlarged[nearswap]": "t is absolute",
        "test_larger_task_vectors_give_the_same_merge_enlarged[arcee-fusion]": (
            "a softmax depends on the scale of the weights"
        ),
    }

    @pytest.fixture(
        params=[name for name in names_in("merge") if name not in ("passthrough", "stack")]
    )
    def spec(self, request: pytest.FixtureRequest) -> AlgorithmSpec:
        return SPECS[request.param]


class TestNuslerpModes(AlgorithmSuite):
    @pytest.fixture
    def spec(self) -> AlgorithmSpec:
        return SPECS["nuslerp"]

    @pytest.fixture(params=["row", "column"])
    def options(self, request: pytest.FixtureRequest) -> dict[str, Any]:
        return {"mode": request.param}


class TestStockOfRows(AlgorithmSuite):
    @pytest.fixture
    def spec(self) -> AlgorithmSpec:
        return SPECS["model-stock"]

    @pytest.fixture
    def options(self) -> dict[str, Any]:
        return {"scope": "row"}


class TestPassthrough(AlgorithmSuite):
    @pytest.fixture
    def spec(self) -> AlgorithmSpec:
        return SPECS["passthrough"]

    @pytest.fixture
    def options(self) -> dict[str, Any]:
        return {"model": "a"}

    @pytest.fixture
    def experts(self) -> int:
        return 1  # other models are not read


class Layered(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(7, 6)
        self.layers = nn.ModuleList(
            nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6)) for _ in range(3)
        )
        self.norm = nn.LayerNorm(6)
        self.output = nn.Linear(6, 7, bias=False)
        self.output.weight = self.embedding.weight


class TestStack(AlgorithmSuite):
    @pytest.fixture
    def spec(self) -> AlgorithmSpec:
        return SPECS["stack"]

    @pytest.fixture
    def options(self) -> dict[str, Any]:
        return {"slices": [{"model": "a", "layers": [0, 2]}, {"model": "a", "layers": [1, 3]}]}

    @pytest.fixture
    def experts(self) -> int:
        return 1  # other models are not read

    @pytest.fixture
    def make_pool(self, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
        for kind in MODELS:
            monkeypatch.setitem(MODELS, kind, Layered)
        monkeypatch.setitem(
            MODELS, "mlp", lambda: nn.Sequential(*(nn.Linear(6, 6) for _ in range(3)))
        )
        return tiny_pool


class TestTransforms(TransformSuite):
    @pytest.fixture(params=names_in("transform"))
    def spec(self, request: pytest.FixtureRequest) -> AlgorithmSpec:
        return SPECS[request.param]


class TestCalibrations(CalibrationSuite):
    @pytest.fixture(params=names_in("calibrate"))
    def spec(self, request: pytest.FixtureRequest) -> AlgorithmSpec:
        return SPECS[request.param]
