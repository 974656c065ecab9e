"""The suite of fusion-testing, run on every command."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from fusion_report import plugin
from fusion_testing import CommandSuite

if TYPE_CHECKING:
    from fusion_core import CommandSpec

SPECS = {spec.name: spec for spec in plugin.fusion_register_commands()}


@pytest.mark.parametrize("name", SPECS)
class TestCommands(CommandSuite):
    @pytest.fixture
    def spec(self, name: str) -> CommandSpec:
        return SPECS[name]
