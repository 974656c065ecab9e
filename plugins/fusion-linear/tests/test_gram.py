from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch

_CHILD = """
import torch
from fusion_core.weights import Cut, Operands, Piece, StateDictSource
from fusion_linear.gram import InnerProducts, get_experts

torch.set_num_threads(1)
generator = torch.Generator().manual_seed(5)
rows = torch.randint(-1000, 1000, (3, 30_000), generator=generator) / 997
models = {str(number): StateDictSource({"w": row}) for number, row in enumerate(rows)}
(info,) = models["0"].infos.values()
piece = Piece(Operands(None, models), info, (0, info.numel), Cut.ELEMENT)
print(InnerProducts(get_experts)(piece).tolist())
"""


@pytest.mark.thorough
def test_inner_products_have_the_same_bits_on_other_processors() -> None:
    printed = [
        subprocess.run(
            [sys.executable, "-c", _CHILD],
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, **kernels},
        ).stdout
        for kernels in ({}, {"ATEN_CPU_CAPABILITY": "default", "MKL_CBWR": "COMPATIBLE"})
    ]
    assert printed[0] == printed[1]
    generator = torch.Generator().manual_seed(5)
    rows = (torch.randint(-1000, 1000, (3, 30_000), generator=generator) / 997).double()
    expected = [[float((one * other).sum()) for other in rows] for one in rows]
    assert json.loads(printed[0]) == [pytest.approx(row, rel=1e-12, abs=1e-9) for row in expected]
