"""The exact gradient equals autograd through the merge, in float64, for several architectures."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import pytest
import torch
from torch.func import functional_call

from fusion_adapting import LiveMerge
from fusion_core import RunContext, Split
from fusion_core.weights import Linear
from fusion_testing import TinyTasks

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from torch import Tensor, nn

    from fusion_core import Piece
    from pools_checkpoints import CheckpointsPool

CPU = torch.device("cpu")
INIT = 0.3
TASKS = TinyTasks(("a", "b"))


class Squared(Linear):
    """Task vectors squared, for rows that are not task vectors."""

    def rows(self, piece: Piece) -> Tensor:
        return super().rows(piece) ** 2


def live_merge(pool: CheckpointsPool, kernel: type[Linear] = Linear, **options: Any) -> LiveMerge:
    merged = RunContext().merge_matrices(pool, kernel((INIT,) * len(pool.experts)))
    return LiveMerge(pool, merged, CPU, dtype=torch.float64, **options)


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
        self, live: LiveMerge, pool: CheckpointsPool, power: int, coefficients: Tensor
    ) -> None:
        super().__init__()
        self.inner = live.model
        for module in live.model.modules():
            if isinstance(module, torch.nn.Embedding):
                module.sparse = False  # autograd cannot sum sparse gradients over a row
        base, *experts = map(pool.layout.unpack, (pool.base, *pool.experts.values()))
        matrices = {
            name: base.tensor(name)
            + sum(
                scale_row((expert.tensor(name) - base.tensor(name)) ** power, factor)
                for factor, expert in zip(factors, experts, strict=True)
            )
            for leaf, factors in live.by_leaf(coefficients)
            for name in leaf.names
        }
        self.weights = {
            name: torch.cat(
                [matrices[matrix.name].flatten() for matrix in pool.layout.describe_matrices(info)]
            ).view(info.shape)
            for name, info in pool.base.infos.items()
            if pool.layout.describe_matrices(info)[0].name in matrices
        }
        # Code reads the dtype of a live model from its parameters.
        self.dtype_of = torch.nn.Parameter(torch.zeros((), dtype=torch.float64))

    def forward(self, inputs: Tensor) -> Tensor:
        return functional_call(self.inner, self.weights, (inputs,), tie_weights=False)


def objective(model: nn.Module) -> Tensor:
    batches = [task.batch(5, size=8, split=Split.UNLABELED, seed=1) for task in TASKS]
    logits = [task.logits(model, batch) for task, batch in zip(TASKS, batches, strict=True)]
    return sum(logit.log_softmax(-1).square().mean() for logit in logits)


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiny tensors in several blocks and pieces, the last of them shorter."""
    in_library = ("fusion_adapting._sharing._ADDED", "fusion_adapting._sharing._SUMMED")
    for name in ("fusion_core.weights.source.BLOCK", *in_library):
        monkeypatch.setattr(name, 50)


@pytest.mark.sampled(3)
@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("grain", ["tensor", "row", "column", "row+column", "rank", "component"])
@pytest.mark.parametrize(("kernel", "power"), [(Linear, 1), (Squared, 2)])
@pytest.mark.parametrize("storage", ["fp32", "disk"])
@pytest.mark.parametrize("kind", ["mlp", "convolution", "transformer", "recurrent"])
def test_gradient_equals_autograd_through_the_merge(  # noqa: PLR0913, PLR0917 - a case is five
    kind: str,
    storage: str,
    kernel: type[Linear],
    power: int,
    grain: str,
    make_pool: Callable[..., CheckpointsPool],
) -> None:
    pool = make_pool(kind, dtype=torch.float64)
    live = live_merge(pool, kernel, storage=storage, grain=grain)
    generator = torch.Generator().manual_seed(3)
    coefficients = torch.rand((3, live.columns), generator=generator, dtype=torch.float64)

    live.merge(coefficients)
    objective(live.model).backward()
    ours = live.gradient()

    reference = coefficients.clone().requires_grad_(True)
    objective(Merged(live, pool, power, reference)).backward()
    torch.testing.assert_close(ours, reference.grad, rtol=1e-5, atol=1e-12)
    assert ours.abs().max() > 1e-4, "a zero gradient would agree with anything"


def test_tied_parameters_are_one_leaf(make_pool: Callable[..., CheckpointsPool]) -> None:
    live = live_merge(make_pool("transformer"))
    assert ("embedding.weight", "output.weight") in [leaf.names for leaf in live.leaves]


def test_unchanged_parameters_are_not_leaves(
    make_pool: Callable[..., CheckpointsPool],
) -> None:
    pool = make_pool("mlp")
    for module in pool.config.models.values():
        module.load_state_dict({**module.state_dict(), "1.weight": pool.config.base[1].weight})
    live = live_merge(type(pool)(pool.config))
    assert "1.weight" not in {name for leaf in live.leaves for name in leaf.names}
    assert not dict(live.model.named_parameters())["1.weight"].requires_grad


def test_running_statistics_are_merged_with_the_initial_coefficients(
    make_pool: Callable[..., CheckpointsPool],
) -> None:
    pool = make_pool("convolution")
    live = live_merge(pool)
    deltas = [expert.tensor("1.running_mean") for expert in pool.experts.values()]
    expected = INIT * sum(deltas)  # a fresh base has zeros there
    buffers = dict(live.model.named_buffers())
    torch.testing.assert_close(buffers["1.running_mean"], expected.double())
    assert buffers["1.running_mean"].abs().max() > 0.05


@pytest.mark.parametrize(
    ("grain", "of_matrix", "of_kernel"),
    [
        ("tensor", (), ()),
        ("row", (4, 1), (5, 1)),  # a kernel (5, 3, 3, 3) is a matrix (5, 27)
        ("column", (1, 20), (1, 27)),
        ("row+column", (24,), (32,)),
        ("rank", (2,), (2,)),  # one component of four or five per expert, and the remainder
    ],
)
def test_vectors_have_one_coefficient_per_expert(
    grain: str, of_matrix: Any, of_kernel: Any, make_pool: Callable[..., CheckpointsPool]
) -> None:
    shapes = {
        leaf.names[0]: leaf.shape
        for leaf in live_merge(make_pool("convolution"), grain=grain).leaves
    }
    parameters = {"0.weight", "0.bias", "1.weight", "1.bias", "4.weight", "4.bias"}
    vectors = dict.fromkeys(parameters, ())
    assert shapes == {**vectors, "0.weight": of_kernel, "4.weight": of_matrix}


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("grain", ["tensor", "row", "column", "row+column", "rank"])
@pytest.mark.parametrize("storage", ["bf16", "disk"])
def test_every_storage_of_task_vectors_gives_the_same_model(
    storage: str, grain: str, make_pool: Callable[..., CheckpointsPool]
) -> None:
    pool = make_pool("transformer", experts=3)
    models = []
    for kind in ("fp32", storage):
        live = live_merge(pool, storage=kind, grain=grain)
        live.merge(torch.full((3, live.columns), 0.4, dtype=torch.float64))
        models.append(dict(live.model.named_parameters()))
    largest = 3 * 0.4 * 0.2 * 5  # of a sum of weighted task vectors, five sigmas out
    tolerance = largest * 2**-8 if storage == "bf16" else 1e-12
    for name, value in models[0].items():
        torch.testing.assert_close(models[1][name], value, rtol=0, atol=tolerance)


class Counted(Linear):
    """Counts the pieces whose rows it computes."""

    pieces: ClassVar[list[str]] = []

    def rows(self, piece: Piece) -> Tensor:
        self.pieces.append(piece.info.name)
        return super().rows(piece)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("grain", ["tensor", "row", "row+column", "component"])
def test_steps_read_a_file_of_task_vectors_that_take_long_to_compute(
    grain: str, make_pool: Callable[..., CheckpointsPool], tmp_path: Path
) -> None:
    pool = make_pool("transformer", experts=3)
    plain = live_merge(pool, storage="disk", grain=grain)
    written = live_merge(pool, Counted, storage="disk", grain=grain, rows_in=tmp_path)
    assert not any(tmp_path.iterdir()), "a killed process would leave it behind"
    Counted.pieces.clear()
    gradients = []
    for live in (plain, written):
        live.merge(torch.full((3, live.columns), 0.4, dtype=torch.float64))
        objective(live.model).backward()
        gradients.append(live.gradient())
    assert not Counted.pieces
    assert torch.equal(*gradients)


def test_task_vectors_in_bf16_take_half_the_memory(
    make_pool: Callable[..., CheckpointsPool],
) -> None:
    pool = make_pool("mlp")
    leaves = live_merge(pool, storage="bf16").leaves
    assert {leaf.vectors.rows.dtype for leaf in leaves} == {torch.bfloat16}
