"""Inputs of packed experts, whatever code multiplies them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from packed_mixtures import Texts, make_models, packed_pool
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.functional import linear

from fusion_adapting import PackedWeights, compute_moments, is_packed
from fusion_core import AdaptiveTask, Batch, Split
from fusion_core.errors import FusionError
from fusion_core.weights import Columns, Matrices, Rows, Stacked
from pools_checkpoints import CheckpointsConfig, CheckpointsPool

if TYPE_CHECKING:
    from collections.abc import Callable

    from fusion_adapting import Moments
    from fusion_core import MetricValues

EXPERTS, INPUTS, OUTPUTS = 3, 8, 4


def loop_over_experts(
    product: Callable[[Tensor, Tensor], Tensor],
) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """Return a function that multiplies the rows of one expert after the other."""

    def multiply(rows: Tensor, weight: Tensor, index: Tensor) -> Tensor:
        outputs = rows.new_zeros(len(rows), OUTPUTS)
        for expert in index.unique().tolist():
            outputs[index == expert] = product(rows[index == expert], weight[expert])
        return outputs

    return multiply


def in_inference_mode(rows: Tensor, weight: Tensor, index: Tensor) -> Tensor:
    with torch.inference_mode():
        return loop_over_experts(linear)(rows, weight, index)


def multiply_grouped(rows: Tensor, weight: Tensor, index: Tensor) -> Tensor:
    order = index.argsort()
    ends = torch.bincount(index, minlength=EXPERTS).cumsum(0).int()
    products = functional.grouped_mm(rows[order], weight.mT, offs=ends)
    return torch.empty_like(products).index_copy(0, order, products)


def dense(rows: Tensor, weight: Tensor, index: Tensor) -> Tensor:
    """Give every expert all rows, zero where it is not chosen."""
    chosen = torch.stack([rows * (index == expert)[:, None] for expert in range(EXPERTS)])
    return torch.bmm(chosen, weight.mT).sum(0)


def multiply_gathered(rows: Tensor, weight: Tensor, index: Tensor) -> Tensor:
    return torch.bmm(weight[index], rows.unsqueeze(-1)).squeeze(-1)


def multiply_transposed_too(rows: Tensor, weight: Tensor, index: Tensor) -> Tensor:
    return loop_over_experts(lambda r, w: linear(linear(linear(r, w), w.mT), w))(
        rows, weight, index
    )


def divide_by_norm(rows: Tensor, weight: Tensor, index: Tensor) -> Tensor:
    return loop_over_experts(linear)(rows, weight, index) / weight.norm()


WAYS: dict[str, Any] = {
    "linear": loop_over_experts(linear),
    "matmul": loop_over_experts(lambda rows, weight: rows @ weight.mT),
    "matmul of three dimensions": loop_over_experts(
        lambda rows, weight: (rows[None] @ weight.mT)[0]
    ),
    "from the left": loop_over_experts(lambda rows, weight: (weight @ rows.mT).mT),
    "vectors": loop_over_experts(lambda rows, weight: torch.stack([weight @ row for row in rows])),
    "einsum": loop_over_experts(lambda rows, weight: torch.einsum("ni,oi->no", rows, weight)),
    "with a bias": loop_over_experts(
        lambda rows, weight: torch.addmm(rows.new_ones(OUTPUTS), rows, weight.mT)
    ),
    "parts": loop_over_experts(
        lambda rows, weight: torch.cat([linear(rows, weight[:1]), linear(rows, weight[1:])], 1)
    ),
    "inference mode": in_inference_mode,
    **({"grouped": multiply_grouped} if hasattr(functional, "grouped_mm") else {}),  # torch 2.9
    "dense": dense,
}
UNKNOWN: dict[str, Any] = {
    "gathered": multiply_gathered,
    "scaled": loop_over_experts(lambda rows, weight: linear(rows, 2 * weight)),
    "rows of a matrix": loop_over_experts(
        lambda rows, weight: torch.cat([linear(rows, weight[:2]), linear(rows, weight[2:])], 1)
    ),
    "columns of a matrix": loop_over_experts(
        lambda rows, weight: linear(rows[:, :3], weight[:, :3]) + linear(rows[:, 3:], weight[:, 3:])
    ),
    "also transposed": multiply_transposed_too,
    "also measured": divide_by_norm,
}


class Mixture(nn.Module):
    """A mixture that chooses an expert by the first entry of a row."""

    def __init__(self, multiply: Any) -> None:
        super().__init__()
        self.experts = nn.ParameterDict({"w": torch.randn(EXPERTS, OUTPUTS, INPUTS)})
        self.multiply = multiply

    def forward(self, rows: Tensor) -> Tensor:
        outputs: Tensor = self.multiply(rows, self.experts["w"], choose(rows))
        return outputs


class Pool(CheckpointsPool):
    def matrices(self, name: str, shape: tuple[int, ...]) -> Matrices:
        del name
        return Matrices((Stacked(shape[0]), Rows(a=1, b=3), Columns(INPUTS)), "e.{index}.{part}")


class RowTask(AdaptiveTask):
    name = "rows"

    def batch(self, step: int, *, size: int, split: Split, seed: int) -> Batch:
        raise NotImplementedError

    def logits(self, model: nn.Module, batch: Batch) -> Tensor:
        scores: Tensor = model(batch.inputs)
        return scores

    def evaluate(self, model: nn.Module) -> MetricValues:
        raise NotImplementedError


def choose(rows: Tensor) -> Tensor:
    """Choose the first expert for half of the rows, and never the last."""
    return (rows[:, 0] > 0).long()


def measure(multiply: Any, batches: list[Tensor]) -> dict[str, Moments]:
    """Return the moments of a mixture that multiplies in this way."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Mixture(multiply).to(batches[0].dtype).eval()
    layout = Pool(CheckpointsConfig(models={"x": model})).layout
    parameters = dict(model.named_parameters())
    return compute_moments(model, parameters, RowTask(), map(Batch, batches), layout=layout)


@pytest.fixture
def batches() -> list[Tensor]:
    draw = torch.Generator().manual_seed(1)
    return [torch.randn(count, INPUTS, generator=draw).double() for count in (6, 5)]


@pytest.mark.parametrize("way", WAYS)
def test_inputs_are_the_rows_that_an_expert_multiplies(way: str, batches: list[Tensor]) -> None:
    dtype = torch.float32 if way == "grouped" else torch.float64  # torch has it in fp32 only
    result = measure(WAYS[way], [batch.to(dtype) for batch in batches])
    assert result.keys() == {f"e.{expert}.{part}" for expert in (0, 1) for part in "ab"}
    rows = torch.cat(batches)
    for name, moments in result.items():
        inputs = rows[choose(rows) == int(name[2])]
        assert (moments.count, moments.dim) == (len(inputs), 1)
        tolerance = 1e-5 if way == "grouped" else 1e-13
        expected = (inputs.mT @ inputs).to(dtype)
        torch.testing.assert_close(moments.total, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("way", UNKNOWN)
def test_a_parameter_that_is_used_otherwise_has_no_inputs(way: str, batches: list[Tensor]) -> None:
    assert measure(UNKNOWN[way], batches) == {}


def test_only_batches_of_matrices_are_packed() -> None:
    layout = packed_pool("gpt_oss", make_models("gpt_oss")).layout
    packed = [name for name, slots in layout.slots.items() if is_packed(layout.shapes[name], slots)]
    assert packed == [name for name in layout.slots if name.endswith("_proj")]
    assert not is_packed((4, 3, 2), ())


def test_views_of_matrices_lead_to_the_parameter() -> None:
    model = make_models("gpt_oss")["a"]
    layout = packed_pool("gpt_oss", make_models("gpt_oss")).layout
    packed = PackedWeights(dict(model.named_parameters()), layout)
    name = "model.layers.0.mlp.experts.1.up_proj.weight"
    packed.matrices[name].fill_(7.0)
    experts = model.model.layers[0].mlp.experts
    assert bool((experts.gate_up_proj[1, :, 1::2] == 7).all())
    assert not bool((experts.gate_up_proj[1, :, 0::2] == 7).any())
    assert packed.tied_names[name] == [name]


def test_a_model_keeps_its_way_to_multiply_experts() -> None:
    model = make_models("mixtral")["a"]
    model.set_experts_implementation("batched_mm")
    pool, task = packed_pool("mixtral", make_models("mixtral")), Texts("a")
    batch = task.batch(0, size=2, split=Split.UNLABELED, seed=0)
    seen: list[str] = []

    class Watching(Texts):
        def logits(self, model: Any, batch: Batch) -> Tensor:
            seen.append(model.config._experts_implementation)  # noqa: SLF001
            raise FusionError("stop")

    parameters = dict(model.named_parameters())
    result = compute_moments(model, parameters, task, [batch], layout=pool.layout)
    assert len([name for name in result if ".experts." in name]) > 0
    with pytest.raises(FusionError, match="stop"):
        compute_moments(model, parameters, Watching("a"), [batch], layout=pool.layout)
    assert seen == ["eager"]
    assert model.config._experts_implementation == "batched_mm"  # noqa: SLF001
