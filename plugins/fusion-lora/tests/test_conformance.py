"""What every command keeps, checked by the suite of fusion-core."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from fusion_lora import plugin
from fusion_testing import CommandSuite

if TYPE_CHECKING:
    from fusion_core import CommandSpec


class TestExtractLora(CommandSuite):
    @pytest.fixture
    def spec(self) -> CommandSpec:
        (spec,) = plugin.fusion_register_commands()
        return spec
