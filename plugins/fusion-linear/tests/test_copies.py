"""NearSwap, Arcee Fusion and passthrough: what is one expert's, and what stays the base's."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from fusion_core import merge
from fusion_core.errors import RecipeError

State = dict[str, torch.Tensor]


def models(shape: tuple[int, ...], seed: int) -> tuple[State, State]:
    draw = torch.Generator().manual_seed(seed)
    base = torch.randn(shape, generator=draw)
    return {"w": base}, {"w": base + 0.1 * torch.randn(shape, generator=draw)}


def found(algorithm: Any, base: State, expert: State) -> torch.Tensor:
    return merge(algorithm, {"base": base, "models": {"e": expert}}).tensor("w")


def test_nearswap_takes_what_is_near_and_goes_a_way_towards_the_rest() -> None:
    base = {"w": torch.tensor([0.0, 0.0, 0.0, 1.0])}
    expert = {"w": torch.tensor([0.25, -0.5, 4.0, -3.0])}
    assert found({"name": "nearswap", "t": 0.5}, base, expert).tolist() == [0.25, -0.5, 0.5, 0.5]


def important(base: torch.Tensor, expert: torch.Tensor) -> torch.Tensor:
    """The importance of every entry, row by row, in fp64."""
    rows = []
    for ours, theirs in zip(expert.double(), base.double(), strict=True):
        p, q = ours.softmax(0) + 1e-8, theirs.softmax(0) + 1e-8
        rows.append((ours - theirs).abs() * float((p * (p / q).log()).sum()))
    return torch.stack(rows)


@pytest.mark.parametrize(("shape", "seed"), [((3, 5), 0), ((40, 70), 1), ((700, 900), 2)])
def test_arcee_fusion_takes_the_outliers(shape: tuple[int, int], seed: int) -> None:
    base, expert = models(shape, seed)
    importance = important(base["w"], expert["w"])
    ordered = importance.ravel().sort().values
    low, median, high = (ordered[int(s * (len(ordered) - 1))] for s in (0.25, 0.5, 0.75))
    threshold = median + 1.5 * (high - low)
    merged = found("arcee-fusion", base, expert)
    clear = (importance - threshold).abs() > 1e-3 * threshold  # fp32 tells these apart
    taken = torch.where(importance >= threshold, expert["w"], base["w"])
    torch.testing.assert_close(merged[clear], taken[clear])
    assert clear.float().mean() > 0.99
    assert 0 < (taken != base["w"]).float().mean() < 0.5


def test_passthrough_copies_the_model_that_is_named() -> None:
    base, one = models((3, 4), 0)
    two, _ = models((3, 4), 1)
    pool = {"base": base, "models": {"one": one, "two": two}}
    for name, state in (("base", base), ("one", one), ("two", two)):
        merged = merge({"name": "passthrough", "model": name}, pool)
        assert torch.equal(merged.tensor("w"), state["w"])


def test_passthrough_needs_a_name_that_is_known() -> None:
    _, one = models((3, 4), 0)
    pool = {"models": {"one": one, "two": one}}
    with pytest.raises(RecipeError, match=r"algorithm\.model: required"):
        merge("passthrough", pool)
    with pytest.raises(RecipeError, match="there is no model 'base'") as caught:
        merge({"name": "passthrough", "model": "base"}, pool)
    assert "one, two" in str(caught.value.hint)


def test_passthrough_reads_no_other_model() -> None:
    _, one = models((3, 4), 0)
    spoiled = {"w": torch.full((3, 4), torch.nan)}
    pool = {"models": {"bad": spoiled, "one": one}}
    assert torch.equal(merge({"name": "passthrough", "model": "one"}, pool).tensor("w"), one["w"])


def test_passthrough_shows_what_a_transform_left() -> None:
    base, expert = models((3, 4), 0)
    merged = found(["depth-scale", {"name": "passthrough", "model": "e"}], base, expert)
    torch.testing.assert_close(merged, expert["w"])  # what is in no layer
