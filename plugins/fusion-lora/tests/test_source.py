"""LoRA adapters, held against products written out; `test_peft.py` holds them against PEFT."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

import peft
import pytest
import torch
from safetensors.torch import save_file

from fusion_core import Algorithm, AlignmentPolicy, ComponentConfig, Cut, run_fusion
from fusion_core.errors import AlignmentError, CheckpointError, IntegrityError
from fusion_core.weights import (
    BLOCK,
    Linear,
    Location,
    MergedSource,
    Operands,
    SerialExecutor,
    StateDictSource,
    check_unchanged,
)
from fusion_lora import LoraSource
from fusion_lora.reading.config import KNOWN_OPTIONS
from pools_checkpoints import CheckpointsConfig, CheckpointsPool

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from fusion_core import ModelPool, RunContext, WeightSource

CONFIG = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "base_model_name_or_path": "org/base"}
PREFIX = "base_model.model."


def noise(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def adapter(path: Path, tensors: Mapping[str, torch.Tensor], **config: Any) -> Location:
    """Write an adapter as PEFT does."""
    path.mkdir(exist_ok=True)
    named = {f"{PREFIX}{name}": tensor.contiguous() for name, tensor in tensors.items()}
    save_file(named, path / "adapter_model.safetensors", metadata={"format": "pt"})
    (path / "adapter_config.json").write_text(json.dumps({**CONFIG, **config}))
    return Location(path, "the adapter")


def factors(module: str, out: int, into: int, rank: int = 4) -> dict[str, torch.Tensor]:
    return {
        f"{module}.lora_A.weight": noise(rank, into, seed=1),
        f"{module}.lora_B.weight": noise(out, rank, seed=2),
    }


def lora(path: Path, base: Mapping[str, torch.Tensor], tensors: Any, **config: Any) -> LoraSource:
    return LoraSource(adapter(path, tensors, **config), StateDictSource(base))


# --- against products written out ---------------------------------------------------------------


@pytest.mark.parametrize("rslora", [False, True])
def test_a_task_vector_is_the_scaled_product(tmp_path: Path, *, rslora: bool) -> None:
    base = {"a.weight": torch.ones(6, 5), "a.bias": torch.ones(6), "n": torch.ones(2).long()}
    tensors = factors("a", 6, 5)
    source = lora(tmp_path, base, tensors, use_rslora=rslora)
    scale = 8 / math.sqrt(4) if rslora else 8 / 4
    product = tensors["a.lora_B.weight"] @ tensors["a.lora_A.weight"] * scale
    assert source.is_delta
    assert source.infos.keys() == base.keys()
    torch.testing.assert_close(source.tensor("a.weight"), product)
    assert source.tensor("a.bias").tolist() == [0] * 6
    assert source.tensor("n").tolist() == [0, 0]


def test_patterns_give_modules_their_own_rank_and_alpha(tmp_path: Path) -> None:
    base = {f"h.{n}.q.weight": torch.zeros(6, 5) for n in range(2)}
    tensors = factors("h.0.q", 6, 5, rank=2) | factors("h.1.q", 6, 5)
    source = lora(tmp_path, base, tensors, rank_pattern={"h.0.q": 2}, alpha_pattern={r"0\.q": 32})
    for layer, scale in ((0, 32 / 2), (1, 8 / 4)):
        one, other = (tensors[f"h.{layer}.q.lora_{part}.weight"] for part in "BA")
        torch.testing.assert_close(source.tensor(f"h.{layer}.q.weight"), one @ other * scale)


@pytest.mark.parametrize("size", [(6, 5), (5, 5)])
def test_a_transposed_weight_has_a_transposed_product(
    tmp_path: Path, size: tuple[int, int]
) -> None:
    out, into = size
    tensors = factors("a", out, into)
    base = {"a.weight": torch.zeros(into, out)}
    source = lora(tmp_path, base, tensors, fan_in_fan_out=True)
    product = tensors["a.lora_B.weight"] @ tensors["a.lora_A.weight"] * 2
    torch.testing.assert_close(source.tensor("a.weight"), product.T)


@pytest.mark.parametrize("turned", [False, True])
def test_a_square_weight_has_the_orientation_of_its_neighbours(
    tmp_path: Path, *, turned: bool
) -> None:
    wide = torch.zeros(5, 7) if turned else torch.zeros(7, 5)
    base = {
        "h.0.proj.weight": torch.zeros(5, 5),
        "h.0.proj.bias": torch.zeros(5),
        "h.0.fc.weight": wide,
        "h.0.fc.bias": torch.zeros(7),
        "other.weight": wide.T,
        "other.bias": torch.zeros(7),
    }
    tensors = factors("h.0.proj", 5, 5)
    source = lora(tmp_path, base, tensors, fan_in_fan_out=not turned)
    product = tensors["h.0.proj.lora_B.weight"] @ tensors["h.0.proj.lora_A.weight"] * 2
    expected = product.T if turned else product
    torch.testing.assert_close(source.tensor("h.0.proj.weight"), expected)


def test_a_rewritten_adapter_is_an_integrity_error(tmp_path: Path) -> None:
    base, tensors = {"a.weight": torch.zeros(6, 5)}, factors("a", 6, 5)
    source = lora(tmp_path, base, tensors)
    check_unchanged(source)
    adapter(tmp_path, {name: tensor + 1 for name, tensor in tensors.items()})
    with pytest.raises(IntegrityError, match=r"adapter_model\.safetensors"):
        check_unchanged(source)


def test_the_scale_is_part_of_an_adapters_identity(tmp_path: Path) -> None:
    base, tensors = {"a.weight": torch.zeros(6, 5)}, factors("a", 6, 5)
    location = adapter(tmp_path, tensors)
    identities = []
    for alpha in (8, 8, 16):
        config = {**CONFIG, "lora_alpha": alpha}
        (tmp_path / "adapter_config.json").write_text(json.dumps(config))
        identities.append(LoraSource(location, StateDictSource(base)).origin.files)
    assert identities[0] == identities[1] != identities[2]


@pytest.mark.parametrize("shapes", [((4,), (6, 4)), ((4, 5), ())])
def test_malformed_factors_are_named(tmp_path: Path, shapes: tuple[tuple[int, ...], ...]) -> None:
    a, b = map(torch.zeros, shapes)
    with pytest.raises(CheckpointError, match=r"^the adapter: .* a "):
        lora(
            tmp_path,
            {"a.weight": torch.zeros(6, 5)},
            {"a.lora_A.weight": a, "a.lora_B.weight": b},
        )


def test_an_embedding_is_looked_up_by_columns(tmp_path: Path) -> None:
    a, b = noise(4, 9, seed=1), noise(3, 4, seed=2)
    tensors = {"e.lora_embedding_A": a, "e.lora_embedding_B": b}
    source = lora(tmp_path, {"e.weight": torch.zeros(9, 3)}, tensors)
    torch.testing.assert_close(source.tensor("e.weight"), (b @ a).T * 2)


def test_a_convolution_has_its_kernel_in_the_columns(tmp_path: Path) -> None:
    a, b = noise(4, 3, 2, 2, seed=1), noise(6, 4, 1, 1, seed=2)
    tensors = {"c.lora_A.weight": a, "c.lora_B.weight": b}
    source = lora(tmp_path, {"c.weight": torch.zeros(6, 3, 2, 2)}, tensors)
    expected = torch.einsum("or,rikl->oikl", b.flatten(1), a) * 2
    torch.testing.assert_close(source.tensor("c.weight"), expected)


def test_whole_weights_are_differences_from_the_base(tmp_path: Path) -> None:
    base = {"a.weight": torch.ones(6, 5), "head.weight": noise(2, 5), "a.bias": torch.ones(6)}
    tensors = {
        **factors("a", 6, 5),
        "head.weight": noise(2, 5, seed=3),
        "a.base_layer.bias": torch.full((6,), 3.0),
    }
    source = lora(tmp_path, base, tensors)
    difference = tensors["head.weight"].double() - base["head.weight"].double()
    assert torch.equal(source.tensor("head.weight"), difference)
    assert source.tensor("a.bias").tolist() == [2] * 6


def test_names_may_have_a_prefix_that_the_base_lacks_and_the_reverse(tmp_path: Path) -> None:
    tensors = factors("transformer.h.0.q", 6, 5)
    source = lora(tmp_path / "a", {"h.0.q.weight": torch.zeros(6, 5)}, tensors)
    assert source.tensor("h.0.q.weight").any()
    source = lora(tmp_path / "b", {"model.transformer.h.0.q.weight": torch.zeros(6, 5)}, tensors)
    assert source.tensor("model.transformer.h.0.q.weight").any()


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_the_bytes_are_independent_of_cut_and_threads(
    tmp_path: Path, *, transposed: bool, dtype: torch.dtype
) -> None:
    out, into = 1300, 1400
    assert out * into > 3 * BLOCK
    tensors = {name: tensor.to(dtype) for name, tensor in factors("a", out, into).items()}
    shape = (into, out) if transposed else (out, into)
    source = lora(tmp_path, {"a.weight": torch.zeros(shape)}, tensors, fan_in_fan_out=transposed)
    info = source.infos["a.weight"]
    whole = source.read("a.weight", 0, info.numel)
    parts = [source.read("a.weight", *span) for span in Cut.ROW.ranges(info)]
    assert len(parts) > 2
    assert torch.equal(torch.cat(parts), whole)
    row = shape[1]
    assert torch.equal(source.read("a.weight", 7 * row, 9 * row), whole[7 * row : 9 * row])
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        assert torch.equal(source.read("a.weight", 0, info.numel), whole)
    finally:
        torch.set_num_threads(before)
    b, a = (tensors[f"a.lora_{part}.weight"].double() for part in "BA")
    product = (b @ a * 2).T if transposed else b @ a * 2
    torch.testing.assert_close(whole.reshape(shape).double(), product, rtol=1e-5, atol=1e-5)


def test_a_merge_adds_the_task_vector_to_the_base(tmp_path: Path) -> None:
    base = {"a.weight": noise(600, 700, seed=5), "a.bias": noise(600, seed=6)}
    expert = lora(tmp_path, base, factors("a", 600, 700))
    source = StateDictSource(base)
    merged = MergedSource(Linear((0.5,)), Operands(source, {"x": expert}))
    merged.prepare(SerialExecutor())
    torch.testing.assert_close(
        merged.state_dict()["a.weight"], base["a.weight"] + 0.5 * expert.tensor("a.weight")
    )
    assert torch.equal(merged.state_dict()["a.bias"], base["a.bias"])


def test_an_algorithm_that_returns_an_adapter_returns_its_model(tmp_path: Path) -> None:
    class First(Algorithm[ComponentConfig]):
        config_class = ComponentConfig

        def run(self, pool: ModelPool[Any], context: RunContext) -> WeightSource:
            return next(iter(pool.experts.values()))

    base, tensors = {"a.weight": torch.ones(6, 5)}, factors("a", 6, 5)
    adapter(tmp_path, tensors)
    pool = {"base": base, "models": {"x": str(tmp_path)}}
    merged = run_fusion(algorithm=First(), model_pool=pool).weights.tensor("a.weight")
    product = tensors["a.lora_B.weight"] @ tensors["a.lora_A.weight"] * 2
    torch.testing.assert_close(merged, base["a.weight"] + product)


# --- what is refused ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"peft_type": "LOHA"}, "peft_type LOHA"),
        ({"peft_type": "IA3"}, "peft_type IA3"),
        ({"use_dora": True}, "a has no lora_magnitude_vector, and use_dora is on"),
        ({"lora_bias": True}, "lora_bias"),
        ({"layer_replication": [[0, 4]]}, "layer_replication"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights 'pissa', which changes the base"),
        ({"init_lora_weights": "olora", "lora_bias": True}, "lora_bias, init_lora_weights 'olora'"),
        ({"r": 3}, "which do not fit rank 3"),
        ({"r": 0}, "has no valid rank and alpha for a"),
        ({"r": None}, "has no valid rank and alpha for a"),
        (
            {"rank_pattern": {"(a": 4}},
            "rank_pattern in adapter_config.json: the pattern '(a' is in",
        ),
        ({"rank_pattern": {"(" * 5000: 4}}, "the pattern '((("),
        ({"alpha_pattern": {r"(a)\9": 4}}, "alpha_pattern in adapter_config.json: the pattern"),
        ({"alpha_pattern": {"a": [4]}}, "has no valid rank and alpha for a"),
        ({"rank_pattern": [1]}, "rank_pattern in adapter_config.json"),
    ],
)
def test_other_adapters_are_refused_by_name(
    tmp_path: Path, config: dict[str, Any], says: str
) -> None:
    with pytest.raises(CheckpointError) as caught:
        lora(tmp_path, {"a.weight": torch.zeros(6, 5)}, factors("a", 6, 5), **config)
    assert says in caught.value.message
    assert caught.value.message.startswith("the adapter:")


def test_an_endless_pattern_is_refused(tmp_path: Path) -> None:
    module = "a" * 100
    base = {f"{module}.weight": torch.zeros(6, 5)}
    with pytest.raises(
        CheckpointError, match=r"rank_pattern in adapter_config\.json: matching its"
    ):
        lora(tmp_path, base, factors(module, 6, 5), rank_pattern={"(a*)*b": 4})


def test_a_convolution_with_groups_is_refused(tmp_path: Path) -> None:
    tensors = {"c.lora_A.weight": noise(4, 8, 3, 3), "c.lora_B.weight": noise(6, 2, 1, 1)}
    with pytest.raises(CheckpointError, match="c is a convolution with 2 groups"):
        lora(tmp_path, {"c.weight": torch.zeros(6, 4, 3, 3)}, tensors)


@pytest.mark.parametrize(
    ("extra", "says"),
    [
        ({"a.lora_magnitude_vector": torch.ones(6)}, "a.lora_magnitude_vector"),
        ({"a.lora_B.bias": torch.ones(6)}, "a.lora_B.bias"),
        ({"a.hada_w1_a": torch.ones(6)}, "a.hada_w1_a"),
        ({"b.lora_A.weight": torch.ones(4, 5)}, "b has lora_A alone"),
    ],
)
def test_tensors_outside_a_lora_are_named(
    tmp_path: Path, extra: dict[str, torch.Tensor], says: str
) -> None:
    with pytest.raises(CheckpointError) as caught:
        lora(tmp_path, {"a.weight": torch.zeros(6, 5)}, {**factors("a", 6, 5), **extra})
    assert says in caught.value.message


def pool(base: Any, **models: Any) -> CheckpointsPool:
    return CheckpointsPool(CheckpointsConfig(base=base, models=models))


def test_an_adapter_of_another_base_is_listed_in_the_error(tmp_path: Path) -> None:
    adapter(tmp_path, factors("a", 6, 5) | factors("other", 3, 3))
    models = pool({"a.weight": torch.zeros(6, 4)}, x=str(tmp_path))
    with pytest.raises(AlignmentError) as caught:
        models.aligned(AlignmentPolicy())
    assert "a.weight  x: shape [6, 5], the base's is [6, 4]" in caught.value.message
    assert "other.weight  x: extra: not in the base" in caught.value.message


def test_an_adapter_needs_its_base(tmp_path: Path) -> None:
    adapter(tmp_path, factors("a", 6, 5))
    with pytest.raises(CheckpointError, match=r"the adapter .* needs its base") as caught:
        pool(None, x=str(tmp_path))
    assert caught.value.hint == "Name the base: --set model_pool.base=org/base"
    with pytest.raises(CheckpointError, match=r"expected a full model, found an adapter \(lora\)"):
        pool(str(tmp_path), x={"a.weight": torch.ones(1)})


def test_an_adapter_may_have_another_dtype_than_the_base(tmp_path: Path) -> None:
    adapter(tmp_path, factors("a", 6, 5))
    models = pool({"a.weight": torch.zeros(6, 5, dtype=torch.bfloat16)}, x=str(tmp_path))
    assert models.aligned(AlignmentPolicy(dtype="error")).experts["x"].is_delta


def test_every_option_that_peft_writes_is_known() -> None:
    written = peft.LoraConfig(r=4, target_modules=["q"]).to_dict()
    assert written.keys() <= KNOWN_OPTIONS
