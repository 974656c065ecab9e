"""EMR-Merging against the paper's definition, in memory and as it is read from a directory."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import save_file

from fusion_core import load_for_task, run_fusion

if TYPE_CHECKING:
    from pathlib import Path

State = dict[str, torch.Tensor]
SHAPES: dict[str, tuple[int, ...]] = {"m": (13, 7), "v": (29,), "s": (), "e": (0, 3)}


def models(seed: int, experts: int = 3) -> tuple[State, dict[str, State]]:
    draw = torch.Generator().manual_seed(seed)

    def state() -> State:
        return {n: torch.randn(s, generator=draw, dtype=torch.float64) for n, s in SHAPES.items()}

    base = state()
    return base, {f"t{n}": {k: base[k] + v for k, v in state().items()} for n in range(experts)}


def run(base: State, experts: dict[str, State], tmp_path: Path, **options: Any) -> Path:
    """Merge saved models into a directory, with all that `load_for_task` reads."""
    for name, state in {"base": base, **experts}.items():
        save_file(state, tmp_path / f"{name}.safetensors")
    pool = {
        "name": "checkpoints",
        "base": str(tmp_path / "base.safetensors"),
        "models": {name: str(tmp_path / f"{name}.safetensors") for name in experts},
    }
    out = tmp_path / "out"
    run_fusion(algorithm={"name": "emr", **options}, model_pool=pool, output=out)
    return out


@pytest.mark.parametrize("rescale", ["paper", "authors"])
@pytest.mark.parametrize("seed", [0, 1])
def test_a_tasks_weights_are_the_definition(seed: int, rescale: str, tmp_path: Path) -> None:
    base, experts = models(seed)
    out = run(base, experts, tmp_path, rescale=rescale)
    tasks = {name: {k: state[k] - base[k] for k in SHAPES} for name, state in experts.items()}
    unified: State = {}
    for name in SHAPES:
        rows = torch.stack([each[name] for each in tasks.values()])
        sign = rows.sum(0).sign()
        unified[name] = sign * rows.abs().where(rows.sign() == sign, 0).amax(0)
    for task, own in tasks.items():
        masks = {name: own[name] * unified[name] > 0 for name in SHAPES}
        filled = [name for name in SHAPES if own[name].numel()]
        size = torch.mean if rescale == "authors" else torch.sum
        before = sum(size(own[name].abs()) for name in filled)
        after = sum(size((unified[name] * masks[name]).abs()) for name in filled)
        found = load_for_task(out, task)
        for name in SHAPES:
            expected = base[name] + before / after * masks[name] * unified[name]
            torch.testing.assert_close(found.tensor(name), expected, rtol=1e-9, atol=1e-12)


def test_a_case_computed_by_hand(tmp_path: Path) -> None:
    # Sums 4, -1, 0: signs plus, minus, none. The unified task vector is 3, -3, 0.
    # a has 1, 2, 1: in the mask, 3; scale 4 / 3. b has 3, -3, -1: all but the last; 7 / 6.
    base = {"w": torch.zeros(3)}
    experts = {"a": {"w": torch.tensor([1.0, 2, 1])}, "b": {"w": torch.tensor([3.0, -3, -1])}}
    out = run(base, experts, tmp_path)
    assert json.loads((out / "task_masks.json").read_text())["scales"] == {"a": 4 / 3, "b": 7 / 6}
    assert load_for_task(out, "a").tensor("w").tolist() == [4, 0, 0]
    assert load_for_task(out, "b").tensor("w").tolist() == [3.5, -3.5, 0]


def test_one_expert_comes_back_as_it_was(tmp_path: Path) -> None:
    base, experts = models(2, experts=1)
    found = load_for_task(run(base, experts, tmp_path), "t0").state_dict()
    for name, expected in experts["t0"].items():
        torch.testing.assert_close(found[name], expected, rtol=1e-12, atol=1e-12)


def test_masks_take_one_bit_an_entry_and_task(tmp_path: Path) -> None:
    base = {"w": torch.zeros(8000)}
    experts = {str(n): {"w": torch.randn(8000)} for n in range(5)}
    out = run(base, experts, tmp_path)
    assert (out / "task_masks.safetensors").stat().st_size == pytest.approx(5 * 1000, abs=200)
