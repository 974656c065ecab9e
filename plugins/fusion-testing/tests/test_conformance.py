"""Run the checks of commands on `fuse new-plugin`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from fusion_testing import CommandSuite, plugin

if TYPE_CHECKING:
    from fusion_core import CommandSpec


class TestNewPlugin(CommandSuite):
    @pytest.fixture
    def spec(self) -> CommandSpec:
        (spec,) = plugin.fusion_register_commands()
        return spec
