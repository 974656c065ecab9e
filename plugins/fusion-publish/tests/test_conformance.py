"""The conformance suite of fusion-testing, run on the commands."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from fusion_publish import plugin
from fusion_testing import CommandSuite

if TYPE_CHECKING:
    from fusion_core import CommandSpec

SPECS = list(plugin.fusion_register_commands())


class TestCommands(CommandSuite):
    @pytest.fixture(params=SPECS, ids=lambda spec: spec.name)
    def spec(self, request: pytest.FixtureRequest) -> CommandSpec:
        result: CommandSpec = request.param
        return result
