"""FeatCal against least squares on stacked inputs, block by block, in float64."""

from __future__ import annotations

from itertools import count
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor

from fusion_core import run_fusion
from fusion_core.errors import FusionError
from fusion_regmean.featcal import FeatCal
from fusion_testing import Mean, TinyTasks

if TYPE_CHECKING:
    from torch import nn

    from fusion_core import Batch

State = dict[str, Tensor]

BLOCKS = ["embed", "layers.0", "layers.1", "head"]
MERGE = Mean()
OPTIONS: list[dict[str, float]] = [
    {"ridge": 0.05, "anchor": 2.0, "teacher": 0.3},
    {"ridge": 0.5, "anchor": 1.0, "teacher": 1.0},
    {"ridge": 0.01, "anchor": 0.0, "teacher": 0.0},
]


def linear(
    given: dict[str, Tensor], wanted: dict[str, Tensor], experts: dict[str, State], name: str
) -> tuple[list[Tensor], list[Tensor], list[float]]:
    """Return rows and right sides of every expert, and what its rows are divided by."""
    norms = [float((each.T @ each / len(each)).norm()) for each in given.values()]
    scales = [(len(each) * norm) ** -0.5 for each, norm in zip(given.values(), norms, strict=True)]
    rows = [scale * each for scale, each in zip(scales, given.values(), strict=True)]
    sides = [
        scale * wanted[expert] @ own[f"{name}.weight"].T
        for scale, (expert, own) in zip(scales, experts.items(), strict=True)
    ]
    return rows, sides, norms


def least(rows: list[Tensor], sides: list[Tensor], ridge: float, anchor: Tensor) -> Tensor:
    """Solve rows @ X = sides, pulled towards an anchor, both of shape (unknowns, columns)."""
    pull = ridge**0.5 * torch.eye(len(anchor), dtype=torch.float64)
    system = torch.linalg.lstsq(torch.cat([*rows, pull]), torch.cat([*sides, pull @ anchor]))
    return system.solution


def calibrated(
    current: State,
    base: State,
    experts: dict[str, State],
    images: dict[str, Tensor],
    stacks: Any,
    **options: float,
) -> State:
    for block in BLOCKS:
        given = {e: stacks.inputs(current, each) for e, each in images.items()}
        theirs = {e: stacks.inputs(experts[e], each) for e, each in images.items()}
        anchor = {n: torch.lerp(base[n], each, options["anchor"]) for n, each in current.items()}
        found: State = {}
        for tensor in current:
            name = tensor.removesuffix(".weight")
            if name == tensor or not name.startswith(block):
                continue
            own = {e: each[tensor] for e, each in given.items()}
            bias = f"{name}.bias"
            if name.endswith("norm"):
                rows = {
                    e: torch.stack([z, torch.ones_like(z)], -1) / len(z) ** 0.5
                    for e, z in own.items()
                }
                affine = [
                    torch.stack([expert[tensor], expert[bias]]) for expert in experts.values()
                ]
                pulled = torch.stack([anchor[tensor], anchor[bias]])
                solved = [
                    least(
                        [row[:, feature] for row in rows.values()],
                        [
                            e[:, feature] @ a[:, feature, None]
                            for e, a in zip(rows.values(), affine, strict=True)
                        ],
                        options["ridge"],
                        pulled[:, feature, None],
                    )
                    for feature in range(len(current[tensor]))
                ]
                found[tensor], found[bias] = torch.cat(solved, dim=1)
                continue
            wanted = {e: torch.lerp(own[e], theirs[e][tensor], options["teacher"]) for e in own}
            rows, sides, norms = linear(own, wanted, experts, name)
            found[tensor] = least(rows, sides, options["ridge"], anchor[tensor].T).T
            left = sum(
                (
                    experts[e][bias]
                    + experts[e][tensor] @ wanted[e].mean(0)
                    - found[tensor] @ own[e].mean(0)
                )
                / norm
                for e, norm in zip(own, norms, strict=True)
            )
            weight = sum(1 / norm for norm in norms) + options["ridge"]
            found[bias] = (left + options["ridge"] * anchor[bias]) / weight
        current = current | found
    return current


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("seed", [0, 1])
def test_layers_are_solved_block_by_block(
    seed: int, options: dict[str, float], stacks: Any
) -> None:
    pool = stacks.pool(seed=seed)
    found = stacks.merge([MERGE, FeatCal(samples=40, **options)], pool, seed=seed)
    images = {name: stacks.images(name, seed=seed) for name in pool.experts}
    start, base = stacks.merge(MERGE, pool), pool.base.state_dict()
    expected = calibrated(start, base, stacks.experts(pool), images, stacks, **options)
    for name, values in expected.items():
        torch.testing.assert_close(found[name], values, rtol=1e-6, atol=1e-8)
        assert (found[name] - start[name]).abs().max() > 1e-3


def test_a_strong_pull_gives_the_anchor(stacks: Any) -> None:
    pool = stacks.pool()
    found = stacks.merge([MERGE, FeatCal(samples=4, ridge=1e9, anchor=1.0)], pool)
    for name, values in stacks.merge(MERGE, pool).items():
        torch.testing.assert_close(found[name], values)


def test_what_is_left_out_stays_as_it_was_merged(stacks: Any) -> None:
    pool = stacks.pool()
    pipeline = [MERGE, {"name": "featcal", "samples": 4, "only": ["*.up.*", "*.norm.weight"]}]
    found = stacks.merge(pipeline, pool)
    for name, values in stacks.merge(MERGE, pool).items():
        assert torch.equal(found[name], values) != (".up." in name), (
            "a norm has its bias or nothing"
        )


def test_a_task_that_calls_merge_and_expert_differently_is_refused(
    stacks: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    tasks, calls = TinyTasks(), count()
    plain = tasks["a"].logits

    def logits(model: nn.Module, batch: Batch) -> Tensor:
        if next(calls) % 2:
            plain(model, batch)
        return plain(model, batch)

    monkeypatch.setattr(tasks["a"], "logits", logits)
    given: dict[str, Any] = {"model_pool": stacks.pool(), "task_pool": tasks}
    with pytest.raises(FusionError, match=r"task 'a' calls the layer of 'embed.weight' differen"):
        run_fusion(algorithm=[MERGE, FeatCal(samples=4)], **given)
