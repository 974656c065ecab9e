"""The conformance suites of fusion-testing, run on the averages and the command."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from fusion_average import plugin
from fusion_testing import AlgorithmSuite, CommandSuite

if TYPE_CHECKING:
    from fusion_core import AlgorithmSpec, CommandSpec

SPECS = {spec.name: spec for spec in plugin.fusion_register_algorithms()}


class TestRunAverage(AlgorithmSuite):
    @pytest.fixture
    def spec(self) -> AlgorithmSpec:
        return SPECS["run-average"]


class TestDecay(AlgorithmSuite):
    @pytest.fixture
    def spec(self) -> AlgorithmSpec:
        return SPECS["run-average"]

    @pytest.fixture
    def options(self) -> dict[str, Any]:
        return {"schedule": "cosine", "steps": [10, 30, 70]}


class TestGreedySoup(AlgorithmSuite):
    @pytest.fixture
    def spec(self) -> AlgorithmSpec:
        return SPECS["greedy-soup"]


class TestCommand(CommandSuite):
    @pytest.fixture
    def spec(self) -> CommandSpec:
        (spec,) = plugin.fusion_register_commands()
        return spec
