"""Live models from weights: their values, dtypes, tied tensors, errors and memory."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
from typing import TYPE_CHECKING

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from fusion_core import WeightSource, build_model
from fusion_core.contracts.live_models import tensors_of
from fusion_core.contracts.selected_pool import SelectedPool
from fusion_core.errors import AlignmentError, BrokenPluginError
from fusion_core.weights import StateDictSource
from fusion_testing._sources import as_delta, doubled, flattened, shifted, without
from pools_checkpoints import CheckpointsConfig, CheckpointsPool

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


class Net(nn.Module):
    """Tied matrices, a random parameter, and every kind of buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(7, 4, padding_idx=0)
        self.norm = nn.BatchNorm1d(4)
        self.output = nn.Linear(4, 7, bias=False)
        self.output.weight = self.words.weight
        self.token = nn.Parameter(torch.randn(4), requires_grad=False)
        self.register_buffer("positions", torch.arange(4), persistent=False)
        self.register_buffer("frequencies", 1 / (1 + torch.arange(4.0)), persistent=False)


@pytest.fixture
def weights() -> WeightSource:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        state = {name: (value + 0.25).to(value.dtype) for name, value in Net().state_dict().items()}
    return StateDictSource(state, label="the weights")


def equal(model: nn.Module, source: WeightSource) -> bool:
    tensors = tensors_of(model)
    return all(
        torch.equal(tensors[name], source.tensor(name).to(tensors[name].dtype))
        for name in source.infos
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, None])
def test_weights_are_loaded_and_missing_buffers_keep_their_values(
    weights: WeightSource, dtype: torch.dtype | None
) -> None:
    before = torch.get_rng_state()
    model = build_model(Net, weights, dtype=dtype)
    assert torch.equal(torch.get_rng_state(), before)
    assert equal(model, weights)
    assert not any(part.training for part in model.modules())
    wanted = dtype or torch.float32
    assert {parameter.dtype for parameter in model.parameters()} == {wanted}
    assert model.norm.running_mean is not None
    assert model.norm.running_mean.dtype == wanted
    assert model.frequencies.tolist() == [1, 1 / 2, torch.tensor(1 / 3).item(), 1 / 4]
    assert model.positions.tolist() == [0, 1, 2, 3]
    assert model.norm.num_batches_tracked is not None
    assert model.norm.num_batches_tracked.dtype == torch.int64
    assert not model.token.requires_grad
    assert model.words.weight.requires_grad


def test_an_unsaved_buffer_is_loaded_if_the_weights_have_it(weights: WeightSource) -> None:
    more = {"positions": torch.tensor([9, 8, 7, 6]), "frequencies": torch.zeros(4)}
    source = StateDictSource(weights.state_dict() | more)
    model = build_model(Net, source, dtype=torch.bfloat16)
    assert equal(model, source)
    assert model.frequencies.dtype == torch.float32


@pytest.mark.parametrize("lacking", ["words.weight", "output.weight"])
def test_tied_parameters_stay_tied_and_either_name_will_do(
    weights: WeightSource, lacking: str
) -> None:
    model = build_model(Net, without(weights, lacking))
    assert model.output.weight is model.words.weight
    assert equal(model, weights)


def test_tied_parameters_are_untied_if_the_weights_differ(weights: WeightSource) -> None:
    state = weights.state_dict()
    state["output.weight"] += 1
    model = build_model(Net, StateDictSource(state))
    assert model.output.weight is not model.words.weight
    assert equal(model, StateDictSource(state))


def test_parameters_that_are_tied_before_they_are_registered_stay_tied() -> None:
    def construct() -> nn.Module:
        shared = nn.Parameter(torch.empty(2, 2))
        one, other = nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)
        one.weight = other.weight = shared
        return nn.Sequential(one, other)

    model = build_model(construct, StateDictSource({"0.weight": torch.ones(2, 2)}))
    assert torch.equal(model.get_parameter("1.weight"), torch.ones(2, 2))
    assert len(list(model.parameters())) == 1


def test_a_recurrent_layer_knows_its_new_weights() -> None:
    """Recurrent layers keep a list of their weights besides the parameters."""
    layer = nn.LSTM(3, 4).eval()
    built = build_model(lambda: nn.LSTM(3, 4), StateDictSource(layer.state_dict()))
    inputs = torch.ones(2, 3)
    assert torch.equal(built(inputs)[0], layer(inputs)[0])


def test_names_may_differ(weights: WeightSource) -> None:
    state = {f"model.{name}": value for name, value in weights.state_dict().items()}
    model = build_model(Net, StateDictSource(state), rename=lambda n: n.removeprefix("model."))
    assert equal(model, weights)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda weights: without(weights, "token"), "'token' is missing"),
        (lambda weights: without(weights, "norm.running_var"), "'norm.running_var' is missing"),
        (lambda weights: doubled(weights, "token", name="more"), "'more' is unexpected"),
        (lambda weights: flattened(weights, "token"), r"'token' has shape \[4, 1, 1\], .* \[4\]"),
        (lambda _: StateDictSource({}, label="the weights"), "; and 4 more$"),
    ],
)
def test_misfit_tensors_are_named(
    weights: WeightSource, change: Callable[[WeightSource], WeightSource], message: str
) -> None:
    with pytest.raises(AlignmentError) as error:
        build_model(Net, change(weights))
    assert error.value.message.startswith("the weights does not fit Net: tensor '")
    assert re.search(message, error.value.message)


def test_two_tensors_for_one_parameter_are_refused(weights: WeightSource) -> None:
    twice = doubled(weights, "token", name="old.token")
    with pytest.raises(AlignmentError, match="'token' is unexpected"):
        build_model(Net, twice, rename=lambda name: name.removeprefix("old."))


def test_differences_need_their_base(weights: WeightSource) -> None:
    delta = as_delta(shifted(weights), weights)
    assert equal(build_model(Net, delta, base=weights), shifted(weights))
    with pytest.raises(BrokenPluginError, match="no base was given"):
        build_model(Net, delta)


def test_a_buffer_without_values_is_refused_by_name() -> None:
    def construct() -> nn.Module:
        layer = nn.Linear(1, 1, bias=False)
        layer.register_buffer("mean", layer.weight.detach().clone(), persistent=False)
        return layer

    weights = StateDictSource({"weight": torch.ones(1, 1)})
    with pytest.raises(BrokenPluginError, match="'mean' is constructed without values"):
        build_model(construct, weights)
    assert build_model(construct, weights, device="meta").weight.is_meta


def test_modules_of_other_threads_have_their_values() -> None:
    modules: list[nn.Module] = []

    def construct() -> nn.Module:
        thread = threading.Thread(target=lambda: modules.append(nn.Linear(1, 1)))
        thread.start()
        thread.join()
        return nn.Linear(1, 1)

    build_model(construct, StateDictSource(nn.Linear(1, 1).state_dict()))
    assert not any(parameter.is_meta for parameter in modules[0].parameters())
    assert not any(parameter.is_meta for parameter in nn.Linear(1, 1).parameters())


def test_live_models_keep_their_dtype_if_none_is_asked_for() -> None:
    base = Net().to(torch.float64)
    pool = CheckpointsPool(CheckpointsConfig(base=base, models={"a": base}))
    assert pool.build(pool.reference).token.dtype == torch.float32
    assert pool.build(pool.reference, dtype=None).token.dtype == torch.float64


def test_a_selected_pool_builds_with_the_requested_dtype_and_device() -> None:
    pool = CheckpointsPool(CheckpointsConfig(base=Net(), models={"a": Net()}))
    some = SelectedPool(pool, ["token", "norm.weight"])
    assert some.base is not None
    for source in (
        some.experts["a"],
        shifted(some.experts["a"]),
        as_delta(some.experts["a"], some.base),
    ):
        model = some.build(source, dtype=torch.bfloat16, device="meta")
        assert all(tensor.is_meta for tensor in tensors_of(model).values())
        assert model.token.dtype == torch.bfloat16
    delta = as_delta(shifted(some.base), some.base)
    model = some.build(delta)
    assert equal(model, shifted(some.base))
    assert torch.equal(model.norm.bias, pool.base.tensor("norm.bias"))


# --- memory -------------------------------------------------------------------------------------

_PROGRAM = """
import re, sys
import torch
from torch import nn
from fusion_core import build_model
from fusion_core.weights import CheckpointSource, StateDictSource

def peak():
    with open("/proc/self/status") as status:
        return 1024 * int(re.search(r"VmHWM:\\s+(\\d+)", status.read())[1])

def construct(width):
    return nn.Sequential(*(nn.Linear(width, width, bias=False) for _ in range(48)))

dtype = getattr(torch, sys.argv[2])
build_model(lambda: construct(8), StateDictSource(construct(8).state_dict()), dtype=dtype)
source = CheckpointSource(sys.argv[1])
before = peak()
model = build_model(lambda: construct(1024), source, dtype=dtype)
taken = peak() - before
print(taken / sum(parameter.nbytes for parameter in model.parameters()))
"""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    values = torch.arange(1024 * 1024.0).reshape(1024, 1024)
    save_file({f"{number}.weight": values + number for number in range(48)}, path)
    return path


@pytest.mark.skipif(sys.platform != "linux", reason="the peak is read from /proc")
@pytest.mark.sampled(2)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_building_takes_at_most_a_tenth_more_memory_than_the_model(
    checkpoint: Path, dtype: str
) -> None:
    command = [sys.executable, "-c", _PROGRAM, str(checkpoint), dtype]
    process = subprocess.run(command, capture_output=True, text=True, check=True)
    assert 0.9 < float(process.stdout) < 1.1
