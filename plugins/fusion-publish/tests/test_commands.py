"""The conformance checks of the commands."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from fusion_publish import plugin
from fusion_testing import CommandSuite

if TYPE_CHECKING:
    from fusion_core import CommandSpec

SPECS = {spec.name: spec for spec in plugin.fusion_register_commands()}


class TestCard(CommandSuite):
    @pytest.fixture
    def spec(self) -> CommandSpec:
        return SPECS["card"]


class TestPush(CommandSuite):
    @pytest.fixture
    def spec(self) -> CommandSpec:
        return SPECS["push"]
