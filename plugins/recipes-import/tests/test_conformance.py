"""The suite of fusion-testing, run on the command."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from fusion_testing import CommandSuite
from recipes_import import plugin

if TYPE_CHECKING:
    from fusion_core import CommandSpec


class TestImport(CommandSuite):
    @pytest.fixture
    def spec(self) -> CommandSpec:
        (spec,) = plugin.fusion_register_commands()
        return spec
