"""The conformance suites of fusion-testing, run on the averages and the command."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from fusion_average import plugin
from fusion_core import AdaptiveTask, ComponentConfig, Measured, TaskPool
from fusion_testing import AlgorithmSuite, CommandSuite

if TYPE_CHECKING:
    from fusion_core import AlgorithmSpec, CommandSpec

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor, nn

    from fusion_core import Batch, Split

SPECS = {spec.name: spec for spec in plugin.fusion_register_algorithms()}


class TestRunAverage(AlgorithmSuite):
    @pytest.fixture
    def spec(self) -> AlgorithmSpec:
        return SPECS["run-average"]


class Size(AdaptiveTask):
    """The size of a model's parameters; no data is read."""

    def __init__(self, name: str) -> None:
        self.name = name

    def evaluate(self, model: nn.Module) -> Measured:
        sizes = [float(parameter.detach().norm()) for parameter in model.parameters()]
        return Measured({"size": sum(sizes)}, outcomes=[sum(sizes)])

    def batch(self, step: int, *, size: int, split: Split, seed: int) -> Batch:
        raise NotImplementedError

    def logits(self, model: nn.Module, batch: Batch) -> Tensor:
        raise NotImplementedError


class Sizes(TaskPool[ComponentConfig]):
    config_class = ComponentConfig

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__(ComponentConfig())
        self.names = names

    def __getitem__(self, name: str) -> Size:
        return Size(name)

    def halves(self) -> tuple[Sizes, Sizes]:
        return Sizes(self.names), Sizes(self.names)


class TestGreedySoup(AlgorithmSuite):
    @pytest.fixture
    def spec(self) -> AlgorithmSpec:
        return SPECS["greedy-soup"]

    @pytest.fixture
    def tasks(self, experts: int) -> Sizes:
        return Sizes([chr(ord("a") + number) for number in range(experts)])


class TestCommand(CommandSuite):
    @pytest.fixture
    def spec(self) -> CommandSpec:
        (spec,) = plugin.fusion_register_commands()
        return spec
