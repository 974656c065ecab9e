"""Every format against the reference library itself, at many shapes: nox -s quantised."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest
import torch
from references import CASES

from fusion_core import find_model

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.quantised
_SHAPES = ((32, 64), (64, 96), (160, 512))


@pytest.mark.parametrize("shape", _SHAPES)
@pytest.mark.parametrize("case", CASES)
def test_values_are_those_of_the_library(case: str, shape: tuple[int, int], tmp_path: Path) -> None:
    reference = CASES[case]((shape[0], *shape))
    reference.write(tmp_path / "model")
    source = find_model(str(tmp_path / "model"), "model").open()
    assert source.infos.keys() == reference.expected.keys()
    choice = random.Random(0)
    for name, expected in reference.expected.items():
        info = source.infos[name]
        assert (info.shape, info.dtype) == (tuple(expected.shape), expected.dtype)
        values, flat = source.tensor(name), expected.reshape(-1)
        assert torch.equal(values.view(torch.uint8), expected.contiguous().view(torch.uint8))
        for _ in range(20):
            start, stop = sorted(choice.choices(range(info.numel + 1), k=2))
            assert torch.equal(source.read(name, start, stop), flat[start:stop])
