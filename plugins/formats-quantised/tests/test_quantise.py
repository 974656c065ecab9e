"""The arithmetic of `output.quantise` and its pass over tensors, against transformers."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest
import torch

from formats_quantised.fp8_blocks import E4M3, decode_band, decode_numbers, encode_band
from formats_quantised.linear_weights import choose_weights
from formats_quantised.quantisation import Quantisation, QuantisedSource, lay_out
from formats_quantised.quantise_config import QuantiseConfig
from fusion_core import Cut, TensorInfo
from fusion_core.errors import WeightsError
from fusion_core.weights import DataFile, SerialExecutor, StateDictSource, run_all

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

FLOOR = 448 / torch.finfo(torch.float32).max
Pair = tuple[torch.Tensor, torch.Tensor]


def quantise_with_transformers(values: torch.Tensor, block_size: tuple[int, int]) -> Pair:
    """Return codes and scales; the last blocks are filled up with zeros, which change neither."""
    from transformers import FineGrainedFP8Config
    from transformers.integrations.finegrained_fp8 import Fp8Quantize

    *_, rows, width = values.shape
    below, right = (-side % size for side, size in zip((rows, width), block_size, strict=True))
    padded = torch.nn.functional.pad(values, (0, right, 0, below))
    config = FineGrainedFP8Config(weight_block_size=block_size)
    operation = Fp8Quantize(SimpleNamespace(quantization_config=config))
    codes, scales = operation.convert({"layer.weight": padded}).values()
    return codes[..., :rows, :width], scales


def assert_equal(first: torch.Tensor, second: torch.Tensor) -> None:
    assert (first.dtype, first.shape) == (second.dtype, second.shape)
    octets = (tensor.contiguous().view(torch.uint8) for tensor in (first, second))
    assert torch.equal(*octets)


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    """Return blocks of very different magnitudes, and some zeros of both signs."""
    random = torch.Generator().manual_seed(seed)
    values = torch.randn(shape, generator=random)
    values *= 10 ** torch.randint(-12, 6, (shape[-1],), generator=random)
    values[torch.rand(shape, generator=random) < 0.1] = 0.0
    values[torch.rand(shape, generator=random) < 0.1] = -0.0
    return values


HARD = {
    "random": noise(64, 96),
    "weights": torch.randn(64, 96, generator=torch.Generator().manual_seed(1)).bfloat16().float(),
    "zeros": torch.cat((torch.zeros(32, 32), -torch.zeros(32, 32))),
    "small": torch.linspace(-1, 1, 2048).view(32, 64) * 1e-35,
    "denormals in a block": torch.full((4, 8, 64), 1e-41)
    .index_fill(1, torch.tensor(0), 1.0)
    .flatten(0, 1),
    "huge": torch.linspace(-1, 1, 2048).view(32, 64) * torch.finfo(torch.bfloat16).max,
    "outlier": torch.cat((torch.full((1, 32), 3e4), torch.linspace(-1, 1, 992).view(31, 32))),
    "halves of steps": (torch.arange(-1024, 1024) / 2048 * 448).view(32, 64),
}


@pytest.mark.parametrize("values", HARD.values(), ids=HARD)
@pytest.mark.parametrize("size", [8, 32])
def test_codes_and_scales_are_those_of_transformers(values: torch.Tensor, size: int) -> None:
    expected, scales = quantise_with_transformers(values, (size, size))
    for row in range(0, len(values), size):
        band = encode_band(values[row : row + size], size)
        assert_equal(band[0], expected[row : row + size])
        assert_equal(band[1], scales[row // size])


@pytest.mark.parametrize("width", [1, 31, 32, 33, 100])
def test_codes_are_the_nearest_numbers_of_the_published_formula(width: int) -> None:
    values = noise(16, width, seed=width).double()
    codes, scales = encode_band(values.float(), 32)
    numbers = torch.arange(256, dtype=torch.uint8).view(E4M3).double()
    numbers = numbers[numbers.isfinite()]
    for column in range(0, width, 32):
        block = values[:, column : column + 32]
        scale = block.abs().max() / 448 or torch.ones(()).double()
        torch.testing.assert_close(scales[column // 32].double(), scale, rtol=2**-22, atol=0)
        distances = (block.unsqueeze(-1) / scale - numbers).abs()
        chosen = (block / scale - codes[:, column : column + 32].double()).abs()
        assert (chosen <= distances.amin(-1) + 1e-4).all()


def test_blocks_too_small_for_a_scale_are_zero() -> None:
    values = torch.tensor([[FLOOR, -1.3e-36, 1e-45, 0.0], [FLOOR, 1.3e-36, -1e-45, -0.0]])
    codes, scales = encode_band(values[:, 1:], 2)
    assert not decode_band(codes, scales, 2).any()
    assert scales.tolist() == [1, 1]
    codes, scales = encode_band(values * 1.001, 4)
    assert codes[0, 0].float() == 448
    assert scales.isfinite().all()


@pytest.mark.parametrize("dtype", [E4M3, torch.float8_e5m2])
def test_numbers_are_decoded_as_in_torch(dtype: torch.dtype) -> None:
    codes = torch.arange(256, dtype=torch.uint8).view(16, 16).T.contiguous().T.view(dtype)
    assert_equal(decode_numbers(codes), codes.float())


class CutSource(StateDictSource):
    """A model that is read in given ranges only, each of them once."""

    def __init__(self, state: dict[str, torch.Tensor], step: int | None) -> None:
        super().__init__(state)
        self.step = step
        self.cut = Cut.ELEMENT if step else Cut.TENSOR
        self.reads: list[tuple[str, int, int]] = []

    def ranges(self, name: str) -> Iterator[tuple[int, int]]:
        numel = self.infos[name].numel
        step = self.step or numel
        return ((start, min(start + step, numel)) for start in range(0, numel, step))

    def read(self, name: str, start: int, stop: int) -> torch.Tensor:
        assert (start, stop) in set(self.ranges(name))
        self.reads.append((name, start, stop))
        return super().read(name, start, stop)


class OtherProcess(SerialExecutor):
    """An executor that pickles its work, as those of other processes do."""

    in_process = False


@pytest.mark.sampled(4)
@pytest.mark.parametrize("block_size", [(8, 16), (5, 7), (1, 1), (64, 2**16)], ids=str)
@pytest.mark.parametrize("step", [None, 1, 97, 2**18])
def test_tensors_are_quantised_alike_in_all_ranges(
    step: int | None, block_size: tuple[int, int], tmp_path: Path
) -> None:
    state = {
        "a.weight": noise(21, 40).bfloat16(),
        "norm": noise(3, 9),
        "experts.down_proj": noise(3, 11, 16, seed=2).half().clamp(-6e4, 6e4),
    }
    source = CutSource(state, step)
    chosen = [info for info in source.infos.values() if info.name != "norm"]
    tensors = lay_out(chosen, block_size)
    work = Quantisation(source, tensors, DataFile(tmp_path / "fp8"), is_remote=False)
    executor = OtherProcess() if step == 97 else SerialExecutor()
    losses = {loss.name: loss for loss in run_all(executor, work, tensors)}
    written = QuantisedSource(source, tensors, tmp_path / "fp8")
    assert [*written.infos] == [
        *("a.weight", "a.weight_scale_inv", "norm"),
        *("experts.down_proj", "experts.down_proj_scale_inv"),
    ]
    if step != 97:  # the copy of another process counts its own
        assert len(source.reads) == len(set(source.reads))
    for info in chosen:
        values = state[info.name]
        sides = tuple(map(min, block_size, values.shape[-2:]))  # as large as the matrix suffices
        codes, scales = quantise_with_transformers(values, sides)
        assert_equal(written.tensor(info.name), codes)
        assert_equal(written.tensor(f"{info.name}_scale_inv"), scales)
        height, width = values.shape[-2:]
        spread = scales.repeat_interleave(sides[0], -2).repeat_interleave(sides[1], -1)
        decoded = (codes.float() * spread[..., :height, :width]).to(values.dtype)
        error = (decoded.double() - values.double()).square().sum().item()
        assert losses[info.name].squared_error == pytest.approx(error, rel=1e-6)
    assert_equal(written.state_dict()["norm"], state["norm"])


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_nan_and_infinity_are_refused(value: float, tmp_path: Path) -> None:
    values = torch.ones(9, 9)
    values[8, 8] = value
    source = StateDictSource({"layer.weight": values})
    tensors = lay_out(source.infos.values(), (4, 4))
    work = Quantisation(source, tensors, DataFile(tmp_path / "fp8"), is_remote=False)
    with pytest.raises(WeightsError, match=r"'layer.weight' holds 1 values that are NaN or inf"):
        work("layer.weight")


def test_only_linear_layers_and_whole_layers_of_experts_are_chosen() -> None:
    shapes: dict[str, tuple[int, ...]] = {
        "lm_head.weight": (256, 128),
        "model.embed_tokens.weight": (256, 128),
        "model.norm.weight": (128,),
        "model.layers.0.mlp.gate.weight": (128, 128),
        "model.layers.0.mlp.gate_proj.weight": (128, 128),
        "model.layers.0.mlp.up_proj.weight": (0, 128),
        "model.layers.0.q_proj.weight": (100, 128),
        "model.layers.0.q_proj.lora_A": (128, 128),
        "model.layers.0.conv.weight": (128, 128, 128),
        # straight, transposed as in Llama 4, and with a bias as in gpt-oss
        "model.layers.0.mlp.experts.gate_up_proj": (2, 512, 128),
        "model.layers.0.mlp.experts.down_proj": (2, 128, 256),
        "model.layers.1.mlp.experts.gate_up_proj": (2, 128, 512),
        "model.layers.1.mlp.experts.down_proj": (2, 256, 128),
        "model.layers.2.mlp.experts.gate_up_proj": (2, 512, 128),
        "model.layers.2.mlp.experts.gate_up_proj_bias": (2, 512),
        "model.layers.2.mlp.experts.down_proj": (2, 128, 256),
        # one matrix of an expert does not fit
        "model.layers.3.mlp.experts.0.up_proj.weight": (128, 128),
        "model.layers.3.mlp.experts.1.up_proj.weight": (128, 100),
        "model.layers.3.mlp.shared_experts.up_proj.weight": (128, 128),
    }
    infos = {name: TensorInfo(name, shape, torch.bfloat16) for name, shape in shapes.items()}
    reference = StateDictSource({name: torch.zeros(0) for name in infos})
    weights = choose_weights(infos, reference, QuantiseConfig(skip=()))
    assert weights.chosen == (
        "model.layers.0.mlp.gate_proj.weight",
        "model.layers.0.mlp.experts.gate_up_proj",
        "model.layers.0.mlp.experts.down_proj",
        "model.layers.3.mlp.shared_experts.up_proj.weight",
    )
    assert weights.plain_modules == [
        "lm_head",
        "model.embed_tokens",
        "model.layers.0.mlp.gate",
        "model.layers.0.q_proj",
        *(f"model.layers.{number}.mlp.experts" for number in (1, 2, 3)),
        "proj_out",
    ]
    more = choose_weights(infos, reference, QuantiseConfig(partial_blocks=True, skip=("*shared*",)))
    assert set(more.chosen) - set(weights.chosen) == {
        "model.layers.0.q_proj.weight",
        *(name for name in infos if name.startswith("model.layers.3.mlp.experts.")),
    }
    assert set(weights.chosen) - set(more.chosen) == {
        "model.layers.3.mlp.shared_experts.up_proj.weight"
    }
