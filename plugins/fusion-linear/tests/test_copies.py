"""NearSwap, Arcee Fusion and passthrough: which entries change, and to which values."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from fusion_core import merge
from fusion_core.errors import RecipeError

State = dict[str, torch.Tensor]


def make_models(shape: tuple[int, ...], seed: int, delta: float = 0.1) -> tuple[State, State]:
    draw = torch.Generator().manual_seed(seed)
    base = torch.randn(shape, generator=draw)
    return {"w": base}, {"w": base + delta * torch.randn(shape, generator=draw)}


def merge_expert(algorithm: Any, base: State, expert: State) -> torch.Tensor:
    return merge(algorithm, {"base": base, "models": {"e": expert}}).tensor("w")


def test_nearswap_copies_near_entries_and_moves_the_others_by_t() -> None:
    base = {"w": torch.tensor([0.0, 0.0, 0.0, 1.0])}
    expert = {"w": torch.tensor([0.25, -0.5, 4.0, -3.0])}
    assert merge_expert({"name": "nearswap", "t": 0.5}, base, expert).tolist() == [
        0.25,
        -0.5,
        0.5,
        0.5,
    ]


def importances(base: torch.Tensor, expert: torch.Tensor) -> torch.Tensor:
    """The importance of every entry, row by row, in fp64."""
    rows = []
    for tuned, origin in zip(expert.double(), base.double(), strict=True):
        p, q = tuned.softmax(0) + 1e-8, origin.softmax(0) + 1e-8
        rows.append((tuned - origin).abs() * float((p * (p / q).log()).sum()))
    return torch.stack(rows)


@pytest.mark.parametrize("delta", [0.1, 1e-4])
@pytest.mark.parametrize(("shape", "seed"), [((3, 5), 0), ((40, 70), 1), ((700, 900), 2)])
def test_arcee_fusion_copies_the_outliers(shape: tuple[int, int], seed: int, delta: float) -> None:
    base, expert = make_models(shape, seed, delta)
    importance = importances(base["w"], expert["w"])
    ordered = importance.ravel().sort().values
    low, median, high = (ordered[int(s * (len(ordered) - 1))] for s in (0.25, 0.5, 0.75))
    threshold = median + 1.5 * (high - low)
    merged = merge_expert("arcee-fusion", base, expert)
    clear = (importance - threshold).abs() > 1e-3 * threshold  # beyond the rounding of fp32
    expected = torch.where(importance >= threshold, expert["w"], base["w"])
    torch.testing.assert_close(merged[clear], expected[clear])
    assert clear.float().mean() > 0.99
    assert 0 < (expected != base["w"]).float().mean() < 0.5


def test_passthrough_copies_the_named_model() -> None:
    base, one = make_models((3, 4), 0)
    two, _ = make_models((3, 4), 1)
    pool = {"base": base, "models": {"one": one, "two": two}}
    for name, state in (("base", base), ("one", one), ("two", two)):
        merged = merge({"name": "passthrough", "model": name}, pool)
        assert torch.equal(merged.tensor("w"), state["w"])


def test_passthrough_needs_a_known_name() -> None:
    _, one = make_models((3, 4), 0)
    pool = {"models": {"one": one, "two": one}}
    with pytest.raises(RecipeError, match=r"algorithm\.model: required"):
        merge("passthrough", pool)
    with pytest.raises(RecipeError, match="unknown model 'base'") as caught:
        merge({"name": "passthrough", "model": "base"}, pool)
    assert "one, two" in str(caught.value.hint)


def test_passthrough_reads_no_other_model() -> None:
    _, one = make_models((3, 4), 0)
    spoiled = {"w": torch.full((3, 4), torch.nan)}
    pool = {"models": {"bad": spoiled, "one": one}}
    assert torch.equal(merge({"name": "passthrough", "model": "one"}, pool).tensor("w"), one["w"])


def test_passthrough_copies_the_output_of_a_transform() -> None:
    base, expert = make_models((3, 4), 0)
    merged = merge_expert(["depth-scale", {"name": "passthrough", "model": "e"}], base, expert)
    torch.testing.assert_close(merged, expert["w"])  # belongs to no layer
