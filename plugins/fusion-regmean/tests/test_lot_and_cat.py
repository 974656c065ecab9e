"""LOT and CAT against dense computations over stacked inputs, in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from fusion_regmean.cat import Cat
from fusion_regmean.least_squares import LeastSquares
from fusion_regmean.lot import Lot
from fusion_regmean.seen import Seen

State = dict[str, Tensor]


def vectors_of(pool: Any, stacks: Any) -> dict[str, State]:
    base = pool.base.state_dict()
    return {
        expert: {name: each - base[name] for name, each in own.items()}
        for expert, own in stacks.experts(pool).items()
    }


def given_to(pool: Any, stacks: Any, *, samples: int, seed: int) -> dict[str, State]:
    return {
        expert: stacks.inputs(own, stacks.images(expert, samples=samples, seed=seed))
        for expert, own in stacks.experts(pool).items()
    }


@pytest.mark.parametrize("scale", [1.0, 1.5])
@pytest.mark.parametrize("seed", [0, 1])
def test_lot_is_the_least_drift_of_every_layer(seed: int, scale: float, stacks: Any) -> None:
    pool = stacks.pool(seed=seed)
    found = stacks.merge(Lot(samples=40, scale=scale), pool, seed=seed)
    vectors = vectors_of(pool, stacks)
    given = given_to(pool, stacks, samples=40, seed=seed)
    for name, base in pool.base.state_dict().items():
        own = [each[name] for each in vectors.values()]
        rows = [each.get(name) for each in given.values()]
        if name.endswith("norm.weight"):
            weights = torch.stack([row.square().sum(0) for row in rows])
            vector = (weights * torch.stack(own)).sum(0) / weights.sum(0)
        elif name.endswith(".weight"):
            sides = [each @ vector.T for each, vector in zip(rows, own, strict=True)]
            vector = torch.linalg.lstsq(torch.cat(rows), torch.cat(sides)).solution.T
        else:
            vector = sum(own) / 3
        torch.testing.assert_close(found[name], base + scale * vector, rtol=1e-6, atol=1e-8)


def test_lot_changes_nothing_where_nothing_is_given() -> None:
    sums = LeastSquares(torch.zeros(1, 3), 1)
    sums.add(torch.tensor([[1.0, 2.0, 3.0]]), torch.diag(torch.tensor([2.0, 0.0, 1.0])).double())
    sums.add(torch.tensor([[4.0, 5.0, 6.0]]), torch.diag(torch.tensor([1.0, 0.0, 0.0])).double())
    torch.testing.assert_close(sums.solve_smallest(), torch.tensor([[2.0, 0.0, 3.0]]))


def test_one_expert_is_that_expert_to_lot(stacks: Any) -> None:
    pool = stacks.pool(experts=1)
    found = stacks.merge(Lot(samples=40, scale=1.0), pool)
    for name, values in pool.experts["a"].state_dict().items():
        torch.testing.assert_close(found[name], values, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("kind", [nn.LayerNorm, nn.RMSNorm, LlamaRMSNorm])
def test_what_a_normalisation_multiplies_is_its_output_without_weight(kind: Any) -> None:
    layer, seen = kind(5).double(), Seen()
    given = torch.randn(7, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    seen.add(layer, "norm", given)
    expected = layer(given).detach().square().mean(0)  # weight one, bias zero
    # Llama's normalises in fp32: a mean of five squares, its root and a product, rounded by 6e-8
    # each, make at most 4e-7 of an entry and twice as much of its square.
    torch.testing.assert_close(seen.energies["norm"].mean, expected, rtol=1e-6, atol=0)


def largest(scores: Tensor, count: int) -> list[int]:
    """Return the indices of the largest positive scores."""
    ranked = sorted(range(len(scores)), key=lambda index: -float(scores[index]))
    return [index for index in ranked[:count] if scores[index] > 0]


def trimmed(
    name: str, vectors: dict[str, State], given: dict[str, State], *, count: int, penalty: float
) -> dict[str, Tensor]:
    own = {expert: each[name] for expert, each in vectors.items()}
    found = dict(own)
    for k in vectors:
        others = [i for i in vectors if i != k]
        if not name.endswith(".weight"):
            spared = largest(sum(own[i].square() for i in others), count)
        elif name.endswith("norm.weight"):
            size = {e: each[name].square().mean(0) for e, each in given.items()}
            gains = (own[i].square() * (size[k] - penalty * size[i]) for i in others)
            spared = largest(sum(gains), count)
        else:
            form = torch.zeros(*own[k].shape[:1] * 2, dtype=torch.float64)
            for i in others:
                disturbed, lost = given[k][name] @ own[i].T, given[i][name] @ own[i].T
                form += disturbed.T @ disturbed / len(disturbed)
                form -= penalty * lost.T @ lost / len(lost)
            values, columns = torch.linalg.eigh(form)
            spared = columns[:, largest(values, count)]
        for i in others:
            if isinstance(spared, Tensor):
                for column in spared.T:
                    found[i] = found[i] - torch.outer(column, column @ found[i])
            else:
                found[i] = found[i].index_fill(0, torch.tensor(spared, dtype=torch.long), 0.0)
    return found


@pytest.mark.parametrize(
    "options",
    [
        {"directions": 1, "penalty": 0.0},
        {"directions": 2, "penalty": 0.3},
        {"directions": 3, "penalty": 5.0},
    ],
)
@pytest.mark.parametrize("seed", [0, 1])
def test_cat_takes_away_what_disturbs_other_tasks(
    seed: int, options: dict[str, Any], stacks: Any
) -> None:
    pool = stacks.pool(seed=seed)
    found = stacks.merge(Cat(samples=20, scale=0.5, **options), pool, seed=seed)
    vectors = vectors_of(pool, stacks)
    given = given_to(pool, stacks, samples=20, seed=seed)
    for name, base in pool.base.state_dict().items():
        kept = trimmed(
            name, vectors, given, count=options["directions"], penalty=options["penalty"]
        )
        torch.testing.assert_close(
            found[name], base + 0.5 * sum(kept.values()), rtol=1e-6, atol=1e-8
        )


def test_without_directions_cat_is_task_arithmetic(stacks: Any) -> None:
    pool = stacks.pool()
    found = stacks.merge(Cat(samples=2, directions=0), pool)
    vectors = vectors_of(pool, stacks)
    for name, base in pool.base.state_dict().items():
        summed = sum(vector[name] for vector in vectors.values())
        torch.testing.assert_close(found[name], base + 0.4 * summed)


def test_cat_spares_a_task_the_outputs_that_others_disturb(stacks: Any) -> None:
    """Two experts disturb each other in all four outputs of the head: with no penalty, both go."""
    pool = stacks.pool(experts=2)
    vectors = vectors_of(pool, stacks)
    found = stacks.merge(Cat(samples=20, scale=1.0, directions=4, penalty=0.0), pool)
    change = found["head.weight"] - pool.base.state_dict()["head.weight"]
    torch.testing.assert_close(change, torch.zeros_like(change), rtol=0, atol=1e-9)
    assert vectors["a"]["head.weight"].any()
