"""The conformance suite of fusion-testing, run on the command of this plugin."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from fusion_testing import CommandSuite
from recipes_mergekit import plugin

if TYPE_CHECKING:
    from fusion_core import CommandSpec


class TestImport(CommandSuite):
    @pytest.fixture
    def spec(self) -> CommandSpec:
        (spec,) = plugin.fusion_register_commands()
        return spec
