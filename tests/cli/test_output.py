"""The output of commands is valid JSON, whatever the numbers are."""

from __future__ import annotations

import json
from math import inf, nan
from typing import TYPE_CHECKING

from fusion_core.commands import print_json

if TYPE_CHECKING:
    import pytest


def test_numbers_that_json_lacks_are_printed_as_text(capsys: pytest.CaptureFixture[str]) -> None:
    print_json({"rows": [{"loss": nan, "ends": (-inf, inf)}], "count": 1, "half": 0.5, "no": None})
    assert json.loads(capsys.readouterr().out, parse_constant=str.upper) == {
        "rows": [{"loss": "NaN", "ends": ["-Infinity", "Infinity"]}],
        "count": 1,
        "half": 0.5,
        "no": None,
    }
