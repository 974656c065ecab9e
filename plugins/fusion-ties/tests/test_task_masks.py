"""EMR-Merging and TALL masks against the papers' definitions, read from a directory."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import save_file

from fusion_core import RunOptions, check, load_for_task, plan, run_fusion
from fusion_core.errors import RecipeError

if TYPE_CHECKING:
    from pathlib import Path

State = dict[str, torch.Tensor]
SHAPES: dict[str, tuple[int, ...]] = {"m": (13, 7), "v": (29,), "s": (), "e": (0, 3)}


def models(seed: int, experts: int = 3) -> tuple[State, dict[str, State]]:
    draw = torch.Generator().manual_seed(seed)

    def state() -> State:
        return {n: torch.randn(s, generator=draw, dtype=torch.float64) for n, s in SHAPES.items()}

    base, size = state(), (1, 1e-4)[seed % 2]  # far smaller than a mask, as after fine-tuning
    return base, {
        f"t{n}": {k: base[k] + size * v for k, v in state().items()} for n in range(experts)
    }


def run(
    base: State, experts: dict[str, State], tmp_path: Path, name: str = "emr", **options: Any
) -> Path:
    """Merge saved models into a directory that `load_for_task` reads."""
    for model, state in {"base": base, **experts}.items():
        save_file(state, tmp_path / f"{model}.safetensors")
    pool = {
        "name": "checkpoints",
        "base": str(tmp_path / "base.safetensors"),
        "models": {model: str(tmp_path / f"{model}.safetensors") for model in experts},
    }
    out = tmp_path / "out"
    run_fusion(algorithm={"name": name, **options}, model_pool=pool, output=out)
    return out


@pytest.mark.parametrize("rescale", ["paper", "authors"])
@pytest.mark.parametrize("seed", [0, 1])
def test_emr_weights_for_a_task(seed: int, rescale: str, tmp_path: Path) -> None:
    base, experts = models(seed)
    out = run(base, experts, tmp_path, rescale=rescale)
    tasks = {name: {k: state[k] - base[k] for k in SHAPES} for name, state in experts.items()}
    unified: State = {}
    for name in SHAPES:
        rows = torch.stack([vectors[name] for vectors in tasks.values()])
        sign = rows.sum(0).sign()
        unified[name] = sign * rows.abs().where(rows.sign() == sign, 0).amax(0)
    for task, vectors in tasks.items():
        masks = {name: vectors[name] * unified[name] > 0 for name in SHAPES}
        filled = [name for name in SHAPES if vectors[name].numel()]
        size = torch.mean if rescale == "authors" else torch.sum
        before = sum(size(vectors[name].abs()) for name in filled)
        after = sum(size((unified[name] * masks[name]).abs()) for name in filled)
        loaded = load_for_task(out, task)
        for name in SHAPES:
            expected = base[name] + before / after * masks[name] * unified[name]
            torch.testing.assert_close(loaded.tensor(name), expected, rtol=1e-9, atol=1e-12)


def test_a_case_computed_by_hand(tmp_path: Path) -> None:
    # The sums are 4, -1, 0, with signs plus, minus, none. The unified task vector is 3, -3, 0.
    # a is 1, 2, 1: its mask has the first entry, 3, and its scale is 4 / 3.
    # b is 3, -3, -1: its mask has the first two entries, and its scale is 7 / 6.
    base = {"w": torch.zeros(3)}
    experts = {"a": {"w": torch.tensor([1.0, 2, 1])}, "b": {"w": torch.tensor([3.0, -3, -1])}}
    out = run(base, experts, tmp_path)
    assert json.loads((out / "task_masks.json").read_text())["scales"] == {"a": 4 / 3, "b": 7 / 6}
    assert load_for_task(out, "a").tensor("w").tolist() == [4, 0, 0]
    assert load_for_task(out, "b").tensor("w").tolist() == [3.5, -3.5, 0]


def test_one_expert_is_restored(tmp_path: Path) -> None:
    base, experts = models(2, experts=1)
    loaded = load_for_task(run(base, experts, tmp_path), "t0").state_dict()
    for name, expected in experts["t0"].items():
        torch.testing.assert_close(loaded[name], expected, rtol=1e-12, atol=1e-12)


def test_masks_take_one_bit_per_entry_and_task(tmp_path: Path) -> None:
    base = {"w": torch.zeros(8000)}
    experts = {str(n): {"w": torch.randn(8000)} for n in range(5)}
    out = run(base, experts, tmp_path)
    assert (out / "task_masks.safetensors").stat().st_size == pytest.approx(5 * 1000, abs=200)


@pytest.mark.parametrize("options", [{"scale": 0.3}, {"k": 0, "scale": -2.0, "tall_lambda": 0.9}])
@pytest.mark.parametrize(("seed", "count"), [(0, 3), (1, 2), (2, 6)])
def test_tall_masks_select_a_task_from_the_whole_sum(
    seed: int, count: int, options: dict[str, Any], tmp_path: Path
) -> None:
    base, experts = models(seed, count)
    out = run(base, experts, tmp_path, "consensus", task_masks=True, **options)
    tall_lambda = options.get("tall_lambda", 0.4)
    for task, expert in experts.items():
        loaded = load_for_task(out, task)
        for name in SHAPES:
            total = sum(model[name] - base[name] for model in experts.values())
            multi_task = base[name] + total
            away_from_base = (base[name] - expert[name]).abs()
            mask = away_from_base >= tall_lambda * (multi_task - expert[name]).abs()
            expected = base[name] + mask * total
            torch.testing.assert_close(loaded.tensor(name), expected, rtol=1e-9, atol=1e-12)


def test_tall_masks_do_not_change_the_model(tmp_path: Path) -> None:
    base, experts = models(3)
    plain, masked = tmp_path / "plain", tmp_path / "masked"
    plain.mkdir()
    masked.mkdir()
    without = run(base, experts, plain, "consensus", k=1)
    with_masks = run(base, experts, masked, "consensus", task_masks=True)
    name = "model.safetensors"
    assert (without / name).read_bytes() == (with_masks / name).read_bytes()
    assert not (without / "task_masks.json").exists()


@pytest.mark.parametrize("merge", ["emr", {"name": "consensus", "task_masks": True}])
@pytest.mark.parametrize("stage", ["lines", "rescale-norm", "core-space"])
def test_stages_that_change_what_masks_select_from_are_refused(stage: str, merge: Any) -> None:
    base, experts = models(0)
    stages = [stage, merge] if stage == "core-space" else [merge, stage]
    recipe = {"algorithm": stages, "model_pool": {"base": base, "models": experts}}
    with pytest.raises(RecipeError, match=f"saves a mask per task.* {stage} changes that result"):
        plan(recipe, RunOptions())


@pytest.mark.parametrize("options", [{"name": "emr"}, {"name": "consensus", "task_masks": True}])
def test_the_predicted_size_includes_the_masks(options: dict[str, Any], tmp_path: Path) -> None:
    base, experts = models(0)
    for name, state in {"base": base, **experts}.items():
        save_file(state, tmp_path / f"{name}.safetensors")
    paths = {name: str(tmp_path / f"{name}.safetensors") for name in experts}
    pool = {"base": str(tmp_path / "base.safetensors"), "models": paths}
    for selection in ({}, {"skip": next(iter(base))}):
        out = tmp_path / f"out-{len(selection)}"
        recipe = {
            "algorithm": {**options, **selection},
            "model_pool": pool,
            "output": {"path": str(out)},
        }
        predicted = check(plan(recipe, RunOptions())).disk.needed
        run_fusion(recipe)
        assert predicted == sum(path.stat().st_size for path in out.glob("*.safetensors"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k": 2}, "k can be at most 1, got 2: entries that only one"),
        ({"scale": 0}, "scale cannot be 0"),
    ],
)
def test_options_that_break_masks_are_errors(
    options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    base, experts = models(0)
    with pytest.raises(RecipeError, match=message):
        run(base, experts, tmp_path, "consensus", task_masks=True, **options)
