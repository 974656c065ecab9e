"""Packed experts are merged like the same experts stored as separate linear layers."""

from __future__ import annotations

import json
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest
import torch
from packed_mixtures import (
    EXPERTS,
    MODELS,
    AllTexts,
    Texts,
    make_models,
    merge,
    packed_names,
    packed_pool,
    separate_pool,
)
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from fusion_core import Batch, ModelPool, RunOptions, plan
from fusion_core.weights import Columns, Matrices, Rows
from fusion_regmean.cat import Cat
from fusion_regmean.fisher import Fisher
from fusion_regmean.lot import Lot
from fusion_regmean.plus_plus import RegMeanPlusPlus
from fusion_regmean.regmean import RegMean
from fusion_testing import TinyTasks
from pools_checkpoints import CheckpointsConfig, CheckpointsPool

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from pathlib import Path

    State = dict[str, Tensor]

METHODS: dict[str, Any] = {
    "regmean": RegMean(samples=12),
    "regmean-plus-plus": RegMeanPlusPlus(samples=12),
    "lot": Lot(samples=12),
    "cat": Cat(samples=12),
}


def merge_matrices(algorithm: Any, pool: Any, tasks: Any = None) -> State:
    """Return a merge with every packed matrix as a tensor of its own."""
    merged: State = pool.layout.unpack(merge(algorithm, pool, tasks).weights).state_dict()
    return merged


def assert_near(actual: State, expected: State, tolerance: float) -> None:
    """Compare tensors up to a fraction of the largest entry of each."""
    assert actual.keys() == expected.keys()
    for name, values in expected.items():
        error = (actual[name] - values).abs().max()
        assert error <= tolerance * values.abs().max(), f"{name}: {error}"


def mean_of(pool: Any, name: str) -> Tensor:
    """Return the mean of a matrix over the experts of a pool."""
    experts = [pool.layout.unpack(expert).tensor(name) for expert in pool.experts.values()]
    return torch.stack(experts).mean(0)


@pytest.mark.sampled(3)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", MODELS)
def test_packed_experts_are_merged_like_separate_layers(kind: str, method: str) -> None:
    models = make_models(kind)
    pool = packed_pool(kind, models)
    merged = merge_matrices(METHODS[method], pool)
    assert_near(merged, merge_matrices(METHODS[method], separate_pool(pool, models)), 1e-12)
    names = [*packed_names(merged)]
    assert len(names) == 2 * 3 * EXPERTS
    if method.startswith("regmean"):
        moved = [name for name in names if (merged[name] - mean_of(pool, name)).abs().max() > 1e-3]
        assert len(moved) >= len(names) / 2, "the experts are more than averaged"


def test_fp32_models_agree_up_to_rounding() -> None:
    models = make_models("mixtral", dtype=torch.float32)
    pool = packed_pool("mixtral", models)
    algorithm = RegMean(samples=12, ridge=1e-3)
    expected = merge_matrices(algorithm, separate_pool(pool, models))
    assert_near(merge_matrices(algorithm, pool), expected, 1e-6)


class UntoldPool(CheckpointsPool):
    """A pool that goes by names and shapes alone."""

    matrices = ModelPool.matrices


def test_default_declaration_of_packed_experts_gives_the_same_merge() -> None:
    """The default does not know gate and up, and takes transposed matrices as they are stored."""
    for kind in ("mixtral", "gpt_oss"):
        pool = packed_pool(kind, make_models(kind))
        plain = UntoldPool(pool.config)
        assert plain.layout.slots != pool.layout.slots
        expected = merge(METHODS["regmean"], pool).weights.state_dict()
        assert_near(merge(METHODS["regmean"], plain).weights.state_dict(), expected, 1e-12)


class Attention(nn.Module):
    """Products of query, key and value, from one layer of GPT-2's kind or from three."""

    def __init__(self, *, is_fused: bool) -> None:
        super().__init__()
        self.is_fused = is_fused
        if is_fused:
            self.fused = Conv1D(3 * 4, 48)
            nn.init.normal_(self.fused.bias)
        else:
            self.q, self.k, self.v = (nn.Linear(48, 4) for _ in range(3))

    def forward(self, images: Tensor) -> Tensor:
        rows = images.flatten(1)
        parts = self.fused(rows).chunk(3, 1) if self.is_fused else map(self._part(rows), "qkv")
        query, key, value = parts
        return query * key + value

    def _part(self, rows: Tensor) -> Callable[[str], Tensor]:
        return lambda name: getattr(self, name)(rows)


class FusedPool(CheckpointsPool):
    def matrices(self, name: str, shape: tuple[int, ...]) -> Matrices:
        parts = Columns(q=4, k=4, v=4), Rows(q=4, k=4, v=4)
        axes = (Rows(48), parts[0]) if name == "fused.weight" else (parts[1],)
        return Matrices(axes, "{part}." + name.partition(".")[2])


@pytest.mark.parametrize("method", METHODS)
def test_fused_projection_is_merged_like_three_layers(method: str) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        fused = {name: Attention(is_fused=True).double() for name in ("base", "a", "b")}
    separate = {name: Attention(is_fused=False).double() for name in fused}
    for name, module in separate.items():
        chunks = (tensor.chunk(3, -1) for tensor in fused[name].fused.parameters())
        for part, weight, bias in zip("qkv", *chunks, strict=True):
            module.load_state_dict({f"{part}.weight": weight.T, f"{part}.bias": bias}, strict=False)
    pools = [
        kind(CheckpointsConfig(base=models["base"], models={n: models[n] for n in "ab"}))
        for kind, models in ((FusedPool, fused), (CheckpointsPool, separate))
    ]
    tasks = TinyTasks(("a", "b"))
    merged = merge(METHODS[method], pools[0], tasks).weights.state_dict()
    expected = merge(METHODS[method], pools[1], tasks).weights.state_dict()
    columns = torch.cat([expected[f"{part}.weight"] for part in "qkv"]).mT
    biases = torch.cat([expected[f"{part}.bias"] for part in "qkv"])
    assert_near(merged, {"fused.weight": columns, "fused.bias": biases}, 1e-12)


class TransposedPool(CheckpointsPool):
    """A pool that says that `Conv1D` stores its matrix transposed, as those of language models."""

    def matrices(self, name: str, shape: tuple[int, ...]) -> Matrices:
        is_matrix = name.endswith("weight")
        return Matrices((Columns(shape[0]), Rows(shape[1]))) if is_matrix else Matrices()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("sizes", [(48, 12, 4), (48, 48, 4)], ids=["oblong", "square"])
def test_transposed_matrices_are_merged_like_linear_layers(
    method: str, sizes: tuple[int, ...]
) -> None:
    pairs = list(pairwise(sizes))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        plain = {
            name: nn.Sequential(nn.Flatten(), *(nn.Linear(*pair) for pair in pairs)).double()
            for name in ("base", "a", "b")
        }
    turned = {}
    for name, module in plain.items():
        layers = (Conv1D(outputs, inputs) for inputs, outputs in pairs)
        turned[name] = nn.Sequential(nn.Flatten(), *layers).double()
        state = {key: tensor.mT if tensor.dim() > 1 else tensor for key, tensor in state_of(module)}
        turned[name].load_state_dict(state)
    merges = [
        merge(METHODS[method], kind(_config(models)), TinyTasks(("a", "b"))).weights.state_dict()
        for kind, models in ((TransposedPool, turned), (CheckpointsPool, plain))
    ]
    restored = {key: tensor.mT if tensor.dim() > 1 else tensor for key, tensor in merges[0].items()}
    assert_near(restored, merges[1], 1e-12)


def state_of(module: nn.Module) -> Iterable[tuple[str, Tensor]]:
    return module.state_dict().items()


def _config(models: Mapping[str, nn.Module]) -> CheckpointsConfig:
    return CheckpointsConfig(base=models["base"], models={name: models[name] for name in "ab"})


@pytest.mark.parametrize("kind", ["mixtral", "gpt_oss"])
def test_fisher_needs_no_layers(kind: str) -> None:
    models = make_models(kind)
    for model in models.values():  # grouped products of torch have no fp64
        model.set_experts_implementation("eager")
    pool, algorithm = packed_pool(kind, models), Fisher(samples=4, labels="sampled")
    expected = merge_matrices(algorithm, separate_pool(pool, models))
    assert_near(merge_matrices(algorithm, pool), expected, 1e-12)


class OneByOne(Texts):
    """The same texts, each in a call of its own without padding."""

    def logits(self, model: nn.Module, batch: Batch) -> Tensor:
        words, mask = batch.tensors["input_ids"], batch.tensors["attention_mask"].sum(1)
        texts = [text[None, :length] for text, length in zip(words, mask.tolist(), strict=True)]
        calls = (model(text, attention_mask=torch.ones_like(text)) for text in texts)
        return torch.cat([call.logits[:, -1, :3] for call in calls])


@pytest.mark.sampled(6)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", ["mixtral", "gpt_oss"])
def test_padding_is_no_input_of_packed_experts(kind: str, method: str) -> None:
    pool = packed_pool(kind, make_models(kind))
    algorithm = type(METHODS[method])(samples=4)  # of which two are padded
    merged, expected = (
        merge_matrices(algorithm, pool, AllTexts(partial(task, is_padded=True)))
        for task in (Texts, OneByOne)
    )
    assert_near(merged, expected, 1e-9)


def warnings_of(algorithm: Any, pool: Any, folder: Path, **kinds: Any) -> list[str]:
    tasks = AllTexts(partial(Texts, **kinds))
    merge(algorithm, pool, tasks, output={"path": str(folder / "merged")})
    provenance = json.loads((folder / "merged" / "provenance.json").read_text())["predicate"]
    warnings: list[str] = provenance["warnings"]
    return [warning for warning in warnings if "observed no layer" in warning]


def test_padding_of_unknown_place_leaves_experts_to_the_mean(tmp_path: Path) -> None:
    """Llama 4 gives its experts copies of all positions without their indices."""
    pool = packed_pool("llama4", make_models("llama4"))
    (warning,) = warnings_of(METHODS["regmean"], pool, tmp_path, is_padded=True)
    assert "uses 25 tensors" in warning  # the matrices of two layers, and the embedding
    assert warning.endswith(": averaged")


def never_choose(model: Any, expert: int) -> None:
    for layer in model.model.layers:
        layer.mlp.router.bias.data[expert] = -1e4


def test_experts_without_tokens_are_averaged_and_counted(tmp_path: Path) -> None:
    models = make_models("gpt_oss")
    for model in models.values():
        never_choose(model, 3)
    never_choose(models["a"], 2)
    pool = packed_pool("gpt_oss", models)
    merged = merge_matrices(METHODS["regmean"], pool)
    expected = merge_matrices(METHODS["regmean"], separate_pool(pool, models))
    assert_near(merged, expected, 1e-12)
    for part in ("gate_proj", "up_proj", "down_proj"):
        unused = f"model.layers.1.mlp.experts.3.{part}.weight"
        torch.testing.assert_close(merged[unused], mean_of(pool, unused), rtol=1e-14, atol=1e-15)
    (warning,) = warnings_of(METHODS["regmean"], pool, tmp_path)
    # the embedding, the router and two stacks of biases in either layer, and three matrices each
    assert "uses 13 tensors" in warning


@pytest.mark.parametrize("method", METHODS)
def test_checks_do_not_report_packed_experts(method: str) -> None:
    pool = packed_pool("mixtral", make_models("mixtral"))
    planned = plan({"algorithm": method, "model_pool": pool, "task_pool": AllTexts()}, RunOptions())
    assert not [fallback for fallback in planned.fallbacks if "experts" in fallback.example]


def test_featcal_reports_packed_experts() -> None:
    pool = packed_pool("mixtral", make_models("mixtral"))
    planned = plan(
        {"algorithm": ["task-arithmetic", "featcal"], "model_pool": pool, "task_pool": AllTexts()},
        RunOptions(),
    )
    (fallback,) = (item for item in planned.fallbacks if item.stage == "featcal")
    assert (fallback.tensors, fallback.treatment) == (4, "left as they were merged")
    assert ".experts." in fallback.example
    merged, calibrated = (
        merge_matrices(algorithm, pool)
        for algorithm in ("task-arithmetic", ["task-arithmetic", {"name": "featcal", "samples": 4}])
    )
    for name in merged:
        is_kept = ".experts." in name or "embed" in name or "norm" in name or "mlp.gate" in name
        assert torch.equal(calibrated[name], merged[name]) is is_kept, name
