"""What every transform and calibration keeps, checked by the suites of fusion-core."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from fusion_core.testing import CalibrationSuite, TransformSuite
from fusion_spectral import plugin

if TYPE_CHECKING:
    from fusion_core import AlgorithmSpec

SPECS = {spec.name: spec for spec in plugin.fusion_register_algorithms()}


class TestOrthogonalise(TransformSuite):
    @pytest.fixture
    def spec(self) -> AlgorithmSpec:
        return SPECS["orthogonalise"]


class TestSvc(CalibrationSuite):
    @pytest.fixture
    def spec(self) -> AlgorithmSpec:
        return SPECS["svc"]
