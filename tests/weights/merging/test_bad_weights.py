"""Weights that cannot be merged: exit 4, naming tensor and model, whatever the algorithm."""

from __future__ import annotations

import math
import os
import random
import re
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import save_file

from fusion_core import run_fusion
from fusion_core.errors import AlignmentError, WeightsError

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.plugins

NIGHTLY = 10 if "FUSION_NIGHTLY" in os.environ else 1
State = dict[str, torch.Tensor]
SHAPES = {"a.weight": (30, 20), "b.bias": (600,), "c.kernel": (2, 3, 4, 5), "d": ()}


def states(rng: random.Random, dtype: torch.dtype) -> dict[str, State]:
    generator = torch.Generator().manual_seed(rng.randrange(2**32))
    return {
        model: {n: torch.randn(s, generator=generator).to(dtype) for n, s in SHAPES.items()}
        for model in ("base", "x", "y", "z")
    }


def save(models: dict[str, State], directory: Path) -> dict[str, Any]:
    files = {}
    for name, state in models.items():
        files[name] = str(directory / f"{name}.safetensors")
        save_file(state, files[name])
    return {"base": files.pop("base"), "models": files}


# --- NaN and infinity ---------------------------------------------------------------------------

VALUES = (float("nan"), float("inf"), float("-inf"))
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
ALGORITHMS: tuple[Any, ...] = (
    "simple-average",
    "task-arithmetic",
    {"name": "ties", "scope": "model"},
    {"name": "ties", "scope": "tensor"},
)


@pytest.mark.sampled(3)
@pytest.mark.parametrize("number", range(50 * NIGHTLY))
def test_an_error_names_the_tensor_and_model_that_are_not_finite(
    tmp_path: Path, number: int
) -> None:
    rng = random.Random(number)
    algorithm = ALGORITHMS[number % len(ALGORITHMS)]
    models = states(rng, rng.choice(DTYPES))
    # A base takes no part in an average of experts.
    model = rng.choice(["x", "y", "z"] if algorithm == "simple-average" else list(models))
    tensor = rng.choice(list(SHAPES))
    values = models[model][tensor].view(-1)
    values[rng.choice([0, len(values) - 1, rng.randrange(len(values))])] = rng.choice(VALUES)
    pool = save(models, tmp_path)
    problem = rf"{model}\.safetensors: tensor '{re.escape(tensor)}' holds 1 values that are NaN"
    with pytest.raises(WeightsError, match=problem) as caught:
        run_fusion(algorithm=algorithm, model_pool=pool, output=tmp_path / "out")
    assert caught.value.exit_code == 4
    assert not (tmp_path / "out").exists()
    run_fusion(
        {"alignment": {"nan": "allow"}},
        algorithm=algorithm,
        model_pool=pool,
        output=tmp_path / "allowed",
    )


def test_a_matrix_that_cannot_be_decomposed_is_named(tmp_path: Path) -> None:
    models = {name: {"w": torch.randn(6, 4)} for name in ("base", "x", "y")}
    models["x"]["w"][0, 0] = math.nan
    allowed = {"alignment": {"nan": "allow"}}
    with pytest.raises(WeightsError, match="the matrix 'w' cannot be decomposed") as caught:
        run_fusion(allowed, algorithm="tsv-m", model_pool=save(models, tmp_path), output=None)
    assert "alignment.nan" in str(caught.value.hint)


# --- keys, shapes, dtypes -----------------------------------------------------------------------


def break_one(rng: random.Random, models: dict[str, State]) -> tuple[str, str, str]:
    """Make one expert differ from the base; returns tensor, expert, and the expected problem."""
    expert, tensor = rng.choice(["x", "y", "z"]), rng.choice(list(SHAPES))
    state = models[expert]
    match rng.randrange(5):
        case 0 if tensor in state:
            del state[tensor]
            return tensor, expert, "missing"
        case 1:
            extra = f"{tensor}.extra{rng.randrange(1000)}"
            state[extra] = torch.ones(2)
            return extra, expert, "extra"
        case 2 if tensor in state:
            state[tensor] = torch.ones(rng.choice([(7,), (20, 30), (1, 2, 3), (0,)]))
            return tensor, expert, "shape"
        case 3 if tensor in state and state[tensor].shape == SHAPES[tensor]:
            state[tensor] = torch.ones(SHAPES[tensor], dtype=rng.choice([torch.int64, torch.bool]))
            return tensor, expert, "dtype"
        case _:
            extra = f"new{rng.randrange(1000)}"
            state[extra] = torch.ones((), dtype=torch.int32)
            return extra, expert, "extra"


@pytest.mark.sampled(4)
@pytest.mark.parametrize("number", range(200 * NIGHTLY))
def test_every_difference_is_in_one_table(tmp_path: Path, number: int) -> None:
    rng = random.Random(number)
    models = states(rng, rng.choice(DTYPES))
    # The last change of a tensor decides how it differs.
    changes = [break_one(rng, models) for _ in range(rng.randint(1, 6))]
    differences = {(tensor, expert): problem for tensor, expert, problem in changes}
    pool = save(models, tmp_path)
    with pytest.raises(AlignmentError) as caught:
        run_fusion(algorithm="task-arithmetic", model_pool=pool, output=tmp_path / "out")
    first, *rows = caught.value.message.splitlines()
    count = len(differences)
    assert first.endswith(f"{count} difference{'s' if count > 1 else ''}")
    assert len(rows) == count
    for (tensor, expert), problem in differences.items():
        assert any(row.startswith(f"  {tensor}  {expert}: {problem}") for row in rows), rows
    assert caught.value.exit_code == 4
    assert not (tmp_path / "out").exists()
