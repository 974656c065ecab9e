"""Layers of oneDNN: the same numbers as torch's own, wherever a linear layer may stand."""

from __future__ import annotations

import copy
import pickle
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

from fusion_core.machine import linear_kernels as kernels
from fusion_core.machine.linear_kernels import (
    OneDnnLinear,
    is_onednn_faster,
    use_fast_linear_layers,
)
from fusion_core.running.evaluation import evaluate
from fusion_testing._models import tiny_pool
from fusion_testing._tasks import TinyTask, TinyTasks

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

pytestmark = pytest.mark.skipif(
    not torch.backends.mkldnn.is_available(), reason="this torch has no oneDNN"
)

ROWS, WIDTH, HEIGHT = 96, 320, 288
#: Of a result's norm. A sum of n products of random numbers in fp32, term by term, is off by 6e-8 *
#: sqrt(n / 6) of its size, sums in blocks by less: 4.4e-7 for n = 320, 6.2e-7 between two of them.
ROUNDING = 1e-6
BY_ONE_DNN = "_OneDnnProductBackward"


def cpuinfo(vendor: str, family: int, flags: str = "fpu avx2 avx512f avx512dq") -> str:
    core = (
        f"vendor_id\t: {vendor}\ncpu family\t: {family}\nmodel\t\t: 2\nmodel name\t: AMD EPYC\n"
        f"flags\t\t: {flags}\nbogomips\t: 5192.24\n"
    )
    return f"processor\t: 0\n{core}\nprocessor\t: 1\n{core}\n"


@pytest.fixture
def layer(monkeypatch: pytest.MonkeyPatch) -> nn.Module:
    monkeypatch.setattr(kernels, "_is_outrun_here", lambda: True)
    return use_fast_linear_layers(plain_layer())


def plain_layer(*, bias: bool = True) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(WIDTH, HEIGHT, bias=bias)


def inputs(*shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(*(shape or (ROWS,)), WIDTH, generator=generator).requires_grad_()


def made_by(result: Tensor) -> str:
    assert result.grad_fn is not None
    return result.grad_fn.name()


def weighted(result: Tensor) -> Tensor:
    """Return a scalar whose gradient is another one for every entry."""
    return (result * torch.linspace(0.1, 1, result.numel()).reshape(result.shape)).sum()


def gradients(result: Tensor, *of: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(weighted(result), of)


def distance(result: Tensor, right: Tensor) -> float:
    return ((result - right).norm() / right.norm()).item()


def test_layers_are_changed_only_where_that_is_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    class Other(nn.Linear):
        pass

    for faster in (False, True):
        monkeypatch.setattr(kernels, "_is_outrun_here", lambda faster=faster: faster)
        model = nn.Sequential(plain_layer(), nn.Tanh(), nn.Sequential(plain_layer()), Other(2, 2))
        before = {name: value.data_ptr() for name, value in model.state_dict().items()}
        assert use_fast_linear_layers(model) is model
        kinds = [type(module) for module in model.modules() if isinstance(module, nn.Linear)]
        assert kinds == [*(2 * [OneDnnLinear if faster else nn.Linear]), Other]
        assert {name: value.data_ptr() for name, value in model.state_dict().items()} == before


@pytest.mark.parametrize("shape", [(ROWS,), (4, 24), (2, 3, 16)])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.usefixtures("layer")
def test_products_and_gradients_are_exact(shape: tuple[int, ...], *, bias: bool) -> None:
    layer, batch = use_fast_linear_layers(plain_layer(bias=bias)), inputs(*shape)
    exact, exactly_given = plain_layer(bias=bias).double(), batch.detach().double().requires_grad_()
    result, expected = layer(batch), exact(exactly_given)
    assert made_by(result) == BY_ONE_DNN
    ways_back = gradients(result, batch, *layer.parameters())
    right = gradients(expected, exactly_given, *exact.parameters())
    for ours, theirs in zip((result, *ways_back), (expected, *right), strict=True):
        assert ours.dtype is torch.float32
        assert distance(ours, theirs) < ROUNDING


def test_only_the_gradients_that_are_asked_for_are_made(layer: nn.Linear) -> None:
    batch, plain = inputs(), plain_layer()
    expected = gradients(plain(batch), batch, plain.weight, plain.bias)
    layer.requires_grad_(False)
    (passed_on,) = gradients(layer(batch), batch)
    layer.bias.requires_grad_(True)
    (of_bias,) = gradients(layer(batch.detach()), layer.bias)
    layer.bias.requires_grad_(False)
    layer.weight.requires_grad_(True)
    (of_weight,) = gradients(layer(batch.detach()), layer.weight)
    assert max(map(distance, (passed_on, of_weight, of_bias), expected)) < ROUNDING


def test_strided_operands_and_gradients_are_read_as_they_are(layer: nn.Linear) -> None:
    batch = inputs().detach().t().contiguous().t().requires_grad_()
    layer.weight.data = layer.weight.detach().t().contiguous().t()
    result = layer(batch)
    assert made_by(result) == BY_ONE_DNN
    summed = torch.autograd.grad(result.sum(), (batch, layer.weight))  # its gradient is expanded
    plain = plain_layer()
    expected = torch.autograd.grad(plain(batch).sum(), (batch, plain.weight))
    assert max(map(distance, (result, *summed), (plain(batch), *expected))) < ROUNDING


def test_results_stay_reproducible_to_the_bit(layer: nn.Linear) -> None:
    batch = inputs()

    def every() -> Sequence[Tensor]:
        return [layer(batch), *gradients(layer(batch), batch, layer.weight, layer.bias)]

    first = every()
    for _ in range(5):
        assert all(map(torch.equal, every(), first))


def test_a_gradient_can_be_differentiated_again(layer: nn.Linear) -> None:
    def twice(layer: nn.Module) -> tuple[Tensor, ...]:
        batch = (inputs(), *layer.parameters())
        once = torch.autograd.grad(layer(batch[0]).pow(3).sum(), batch, create_graph=True)
        return torch.autograd.grad(sum(tensor.pow(2).sum() for tensor in once), batch)

    assert max(map(distance, twice(layer), twice(plain_layer()))) < 1e-5


@pytest.mark.parametrize("reentrant", [True, False])
def test_a_checkpointed_layer_is_computed_again(layer: nn.Linear, *, reentrant: bool) -> None:
    batch = inputs()
    expected = gradients(layer(batch), batch, layer.weight)
    weighted(checkpoint(layer, batch, use_reentrant=reentrant)).backward()
    assert torch.equal(batch.grad, expected[0])
    assert torch.equal(layer.weight.grad, expected[1])


@pytest.mark.parametrize(
    "call",
    [
        pytest.param(lambda layer: layer(inputs(4)), id="small"),
        pytest.param(lambda layer: layer.double()(inputs().double()), id="double"),
        pytest.param(lambda layer: layer.bfloat16()(inputs().bfloat16()), id="bf16"),
        pytest.param(lambda layer: layer.to("meta")(inputs().to("meta")), id="meta"),
    ],
)
def test_other_products_are_left_to_torch(
    layer: nn.Linear, call: Callable[[nn.Module], Tensor]
) -> None:
    result = call(layer)
    assert BY_ONE_DNN not in made_by(result)
    if result.device.type != "meta":
        assert torch.equal(result, call(plain_layer()))


def test_a_single_vector_is_left_to_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "_is_outrun_here", lambda: True)
    monkeypatch.setattr(kernels, "_WORTHWHILE", 1)
    layer = use_fast_linear_layers(plain_layer())
    assert made_by(layer(inputs())) == BY_ONE_DNN
    assert made_by(layer(inputs()[0])) != BY_ONE_DNN


def test_autocast_takes_precedence(layer: nn.Linear) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(inputs()).dtype is torch.bfloat16


class Marked(Tensor):
    """A tensor of another kind."""


def test_tensors_of_other_kinds_keep_their_kind(layer: nn.Linear) -> None:
    assert type(layer(inputs().detach().as_subclass(Marked))) is Marked


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
def test_function_transforms_work_on_a_layer(layer: nn.Linear) -> None:
    batch, weight = inputs(4, 24).detach(), layer.weight.detach()

    def every(layer: nn.Module) -> Any:
        def loss(weight: Tensor) -> Tensor:
            return functional_call(layer, {"weight": weight}, (batch,)).square().mean()

        return (
            torch.vmap(layer)(batch.repeat(1, 4, 1)),
            torch.func.grad(loss)(weight),
            torch.func.jvp(loss, (weight,), (weight,)),
        )

    torch.testing.assert_close(every(layer), every(plain_layer()))


@pytest.mark.thorough
def test_a_layer_can_be_compiled(layer: nn.Linear) -> None:
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    assert distance(compiled(inputs()), plain_layer()(inputs())) < ROUNDING


def test_a_layer_can_be_copied_and_pickled(layer: nn.Linear) -> None:
    for again in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(again(inputs()), layer(inputs()))


@pytest.mark.parametrize(
    ("processor", "expected"),
    [
        (cpuinfo("AuthenticAMD", 26), True),
        (cpuinfo("AuthenticAMD", 27), True),
        (cpuinfo("AuthenticAMD", 25), False),  # Zen 4 takes two goes for 512 bits
        (cpuinfo("AuthenticAMD", 26, "fpu avx2"), False),
        (cpuinfo("GenuineIntel", 26), False),
        ("processor\t: 0\nBogoMIPS\t: 50.00\nCPU implementer\t: 0x41\n", False),
        ("", False),
    ],
)
def test_processors_with_slow_products_are_recognised(processor: str, *, expected: bool) -> None:
    assert is_onednn_faster(processor) is expected


def test_evaluation_uses_the_fast_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    pool, tasks = tiny_pool("mlp"), TinyTasks()
    cpu, seen = torch.device("cpu"), []
    plainly = evaluate(pool, tasks, pool.experts["a"], device=cpu)

    def measured(task: TinyTask, model: nn.Module) -> Any:
        seen.append({type(module) for module in model.modules() if isinstance(module, nn.Linear)})
        return unchanged(task, model)

    unchanged = TinyTask.evaluate
    monkeypatch.setattr(TinyTask, "evaluate", measured)
    monkeypatch.setattr(kernels, "_is_outrun_here", lambda: True)
    monkeypatch.setattr(kernels, "_WORTHWHILE", 1)
    assert evaluate(pool, tasks, pool.experts["a"], device=cpu) == plainly
    models = 3 + 3 + 3  # the merged one and the base on every task, each task's own expert
    assert seen == models * [{OneDnnLinear}]
