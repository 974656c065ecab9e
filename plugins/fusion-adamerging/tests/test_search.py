"""A whole search equals autograd through the merge and Adam, in float64, for several models."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch.func import functional_call

from fusion_adamerging.components import LearnableComponents
from fusion_adamerging.config import AdaMergingConfig, AdaRankConfig
from fusion_adamerging.deviations import LearnableDeviations
from fusion_adamerging.learnable import LearnableCoefficients
from fusion_adapting import Batches, LiveMerge, Passes, Search, StateStore, entropy, entropy_of
from fusion_core import RunContext, Split
from fusion_core.weights import Linear
from fusion_thresholds import ElectKernel, TrimKernel

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor, nn

    from fusion_adapting import Grain
    from pools_checkpoints import CheckpointsPool

KINDS = ["mlp", "convolution", "transformer", "recurrent"]
CPU = torch.device("cpu")
INIT = 0.3


def live_merge(pool: CheckpointsPool, *, trim: bool, grain: Grain) -> LiveMerge:
    context = RunContext()
    if trim:
        pool = context.transform(context.transform(pool, TrimKernel(0.3)), ElectKernel())
    merged = context.merge_matrices(pool, Linear((INIT,) * len(pool.experts)))
    return LiveMerge(pool, merged, CPU, dtype=torch.float64, grain=grain)


def dense_rows(pool: CheckpointsPool, *, trim: bool) -> dict[str, Tensor]:
    """Task vectors by matrix, shape (experts, ...), trimmed and elected by sorting and masks."""
    base = pool.layout.unpack(pool.base).state_dict()
    experts = [pool.layout.unpack(expert) for expert in pool.experts.values()]
    names = [name for name, value in base.items() if value.is_floating_point()]
    rows = {
        name: torch.stack([expert.tensor(name) - base[name] for expert in experts])
        for name in names
    }
    if not trim:
        return rows
    flat = torch.cat([rows[name].reshape(len(pool.experts), -1) for name in names], dim=1)
    count = int(0.3 * flat.shape[1])
    smallest = flat.abs().sort(dim=1, descending=True).values[:, count - 1 : count]
    trimmed = flat.where(flat.abs() >= smallest, 0)
    signs = trimmed.sum(0).sign()
    majority = signs.sum().sign()
    trimmed = trimmed.where(trimmed.sign() == signs.where(signs != 0, majority), 0)
    parts = trimmed.split([rows[name][0].numel() for name in names], dim=1)
    return {name: part.view_as(rows[name]) for name, part in zip(names, parts, strict=True)}


def scale_row(row: Tensor, factor: Tensor) -> Tensor:
    """A task vector times coefficients, by a plain SVD if they belong to components."""
    if factor.dim() != 1:
        return factor * row
    if len(factor) == sum(row.shape):
        return (factor[: len(row), None] + factor[None, len(row) :]) / 2 * row
    left, values, right = torch.linalg.svd(row, full_matrices=False)
    rest = factor[-1].repeat(len(values) + 1 - len(factor))
    return left @ torch.diag(values * torch.cat([factor[:-1], rest])) @ right


class Merged(torch.nn.Module):
    """The textbook way: coefficients in the graph, functional weights, autograd does the rest."""

    def __init__(
        self, live: LiveMerge, pool: CheckpointsPool, rows: dict[str, Tensor], coefficients: Tensor
    ) -> None:
        super().__init__()
        self.inner = live.model
        for module in live.model.modules():
            if isinstance(module, torch.nn.Embedding):
                module.sparse = False  # autograd cannot sum sparse gradients over a row
        base, layout = pool.layout.unpack(pool.base), pool.layout
        matrices = {
            name: base.tensor(name) + sum(map(scale_row, rows[name], factors))
            for leaf, factors in live.by_leaf(coefficients)
            for name in leaf.names
        }
        self.weights = {
            name: torch.cat(
                [matrices[matrix.name].flatten() for matrix in layout.describe_matrices(info)]
            ).view(info.shape)
            for name, info in pool.base.infos.items()
            if layout.describe_matrices(info)[0].name in matrices
        }
        # Code reads the dtype of a live model from its parameters.
        self.dtype_of = torch.nn.Parameter(torch.zeros((), dtype=torch.float64))

    def forward(self, inputs: Tensor) -> Tensor:
        return functional_call(self.inner, self.weights, (inputs,), tie_weights=False)


def run_search(config: Any, learned: Any, live: LiveMerge, tasks: Any) -> Search:
    passes = Passes(live.model, list(tasks), Batches(8, 1), CPU)
    store = StateStore(None, "search", {})
    search = Search(config, learned, passes, list(tasks.names), store, RunContext())
    search.run(entropy_of)
    return search


def objectives(tasks: Any, model: nn.Module, step: int) -> list[Tensor]:
    batches = [task.batch(step, size=8, split=Split.UNLABELED, seed=1) for task in tasks]
    return [entropy(task.logits(model, batch)) for task, batch in zip(tasks, batches, strict=True)]


@pytest.mark.sampled(3)
@pytest.mark.parametrize("clamp", [False, True])
@pytest.mark.parametrize("trim", [False, True])
@pytest.mark.parametrize("granularity", ["layer", "model", "row", "column", "row+column", "rank"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_whole_search_equals_autograd_and_adam(  # noqa: PLR0913 - a case is six things
    kind: str,
    granularity: str,
    *,
    trim: bool,
    clamp: bool,
    make_pool: Callable[..., CheckpointsPool],
    tasks: Any,
) -> None:
    pool = make_pool(kind, experts=2, dtype=torch.float64)
    config = AdaMergingConfig(
        granularity=granularity, lr=0.2, schedule="cosine", init=INIT, steps=6, clamp=clamp
    )
    live = live_merge(pool, trim=trim, grain=config.grain)
    learned = LearnableCoefficients(live, list(pool.experts), CPU, config)
    search = run_search(config, learned, live, tasks)
    ours = learned.coefficients()

    rows = dense_rows(pool, trim=trim)
    shape = (2, 1 if granularity == "model" else live.columns)
    reference = torch.full(shape, INIT, dtype=torch.float64).requires_grad_(True)
    optimiser = torch.optim.Adam([reference], lr=0.2)
    finer = granularity not in {"layer", "model"}
    factors = [[0.1 if finer and leaf.count == 1 else 1.0] * leaf.count for leaf in live.leaves]
    factor = torch.tensor([value for leaf in factors for value in leaf])
    for step in range(6):
        optimiser.param_groups[0]["lr"] = search.learning_rate(step)
        merged = Merged(live, pool, rows, reference.expand(-1, live.columns))
        optimiser.zero_grad()
        sum(objectives(tasks, merged, step)).backward()
        before = reference.detach().clone()
        optimiser.step()
        with torch.no_grad():
            reference.copy_(before + (factor if finer else 1.0) * (reference - before))
            if clamp:
                reference.clamp_(0, 1)
    torch.testing.assert_close(
        ours, reference.detach().expand(-1, live.columns), rtol=1e-5, atol=1e-12
    )
    assert (ours - INIT).abs().max() > 0.1
    assert not clamp or (ours.min() >= 0 and ours.max() <= 1)


@pytest.mark.sampled(3)
@pytest.mark.parametrize("granularity", ["row", "row+column", "rank"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_search_for_deviations_equals_autograd_with_their_penalty(
    kind: str, granularity: str, make_pool: Callable[..., CheckpointsPool], tasks: Any
) -> None:
    pool, penalty = make_pool(kind, experts=2, dtype=torch.float64), 3.0
    config = AdaMergingConfig(granularity=granularity, lr=0.2, init=INIT, steps=6)
    live = live_merge(pool, trim=False, grain=config.grain)
    learned = LearnableDeviations(live, list(pool.experts), CPU, config, penalty)
    run_search(config, learned, live, tasks)

    rows, counts = dense_rows(pool, trim=False), [leaf.count for leaf in live.leaves]
    whole = torch.full((2, len(counts)), INIT, dtype=torch.float64).requires_grad_()
    shapes = [(2, count) for count in counts if count > 1]
    deviations = [torch.zeros(shape, dtype=torch.float64).requires_grad_() for shape in shapes]
    groups = [{"params": [whole], "lr": 0.02}, {"params": deviations}]
    optimiser = torch.optim.Adam(groups, lr=0.2)

    def coefficients() -> Tensor:
        finer = iter(deviations)
        columns = zip(whole.T.unsqueeze(-1), counts, strict=True)
        return torch.cat([one + next(finer) if n > 1 else one for one, n in columns], dim=1)

    for step in range(6):
        optimiser.zero_grad()
        merged = Merged(live, pool, rows, coefficients())
        squares = torch.cat(deviations, dim=1).square().mean(dim=1).sum()
        (sum(objectives(tasks, merged, step)) + penalty * squares).backward()
        optimiser.step()
    torch.testing.assert_close(
        learned.coefficients(), coefficients().detach(), rtol=1e-5, atol=1e-12
    )
    assert learned.deviations.abs().max() > 0.01


class Step(torch.autograd.Function):
    """A step whose backward pass is that of sigmoid(logit / 10)."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor) -> Tensor:
        ctx.save_for_backward(logits)
        return (torch.sigmoid(logits / 10) > 0.5).double()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (logits,) = ctx.saved_tensors
        return gradient / (40 * torch.cosh(logits / 20) ** 2)


def add_remainder(live: LiveMerge, logits: list[Tensor], scales: Tensor) -> Tensor:
    """The coefficients of all components and, last in each tensor, that of the remainder."""
    columns = []
    for tensor, scale in zip(logits, scales.T.unsqueeze(-1), strict=True):
        columns += [Step.apply(tensor) * scale, scale]
    return torch.cat(columns, dim=1)


@pytest.mark.sampled(2)
@pytest.mark.parametrize("rank", [1.0, 0.4])
@pytest.mark.parametrize("kind", KINDS)
def test_a_search_for_components_equals_autograd_through_an_estimator(
    kind: str, rank: float, make_pool: Callable[..., CheckpointsPool], tasks: Any
) -> None:
    pool = make_pool(kind, experts=2, dtype=torch.float64)
    config = AdaRankConfig(rank=rank, lr=0.07, schedule="cosine", init=INIT, steps=6)
    live = live_merge(pool, trim=False, grain="component")
    learned = LearnableComponents(live, list(pool.experts), CPU, config)
    first = learned.coefficients()
    search = run_search(config, learned, live, tasks)

    rows = dense_rows(pool, trim=False)
    logits = []
    for leaf in live.leaves:
        shape = leaf.vectors.sharing.info.shape
        count = min(shape) if len(shape) == 2 else 0
        number = torch.arange(count).expand(2, -1)
        logits.append(torch.where(number < int(rank * count), 0.1, -0.1).double().requires_grad_())
    scales = torch.full((2, len(logits)), INIT, dtype=torch.float64).requires_grad_()
    optimiser = torch.optim.Adam([*logits, scales], lr=0.07)
    for step in range(6):
        optimiser.param_groups[0]["lr"] = search.learning_rate(step)
        merged = Merged(live, pool, rows, add_remainder(live, logits, scales))
        optimiser.zero_grad()
        sum(objectives(tasks, merged, step)).backward()
        optimiser.step()
    references = torch.cat(logits, dim=1), scales, add_remainder(live, logits, scales)
    for ours, reference in zip(
        (*learned.tensors.values(), learned.coefficients()), references, strict=True
    ):
        torch.testing.assert_close(ours, reference.detach(), rtol=1e-5, atol=1e-12)
    switches = ((first != 0) != (learned.coefficients() != 0)).any()
    assert switches or (kind, rank) == ("convolution", 1.0), "four components, and all are useful"
