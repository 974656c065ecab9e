"""Task overrides: saved by an algorithm, written with the model, loaded for one task."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from fusion_core import (
    Algorithm,
    ComponentConfig,
    Piece,
    RunOptions,
    build_for_task,
    load_for_task,
    run_fusion,
)
from fusion_core.errors import CheckpointError, RecipeError
from fusion_core.plugins.manager import load_plugins
from fusion_core.report.table import report_notes
from fusion_core.running import evaluation
from fusion_core.running.task_overrides import overrides_among
from fusion_core.weights import (
    CheckpointSource,
    Cut,
    Linear,
    PackedMasks,
    RowsKernel,
    StateDictSource,
    source,
    task_weights,
)
from fusion_core.weights.reading.task_masks import MASKS, TaskMask
from fusion_testing import TinyTasks, tiny_pool
from fusion_testing._sources import recut

if TYPE_CHECKING:
    from pathlib import Path

    from fusion_core import ModelPool, RunContext, WeightSource

State = dict[str, torch.Tensor]
SHAPES: dict[str, tuple[int, ...]] = {"m": (13, 7), "v": (1003,), "s": (), "e": (0, 3)}


def random_state(seed: int, dtype: torch.dtype = torch.float32) -> State:
    draw = torch.Generator().manual_seed(seed)
    return {n: torch.randn(s, generator=draw).to(dtype) for n, s in SHAPES.items()}


class Positive(RowsKernel):
    def rows(self, piece: Piece) -> torch.Tensor:
        return (piece.task_vectors > 0).to(piece.task_vectors)


class Summed(Algorithm[ComponentConfig]):
    """The sum of the task vectors, with a mask of each expert's positive entries and scale 2."""

    config_class = ComponentConfig

    def run(self, pool: ModelPool[Any], context: RunContext) -> WeightSource:
        masks = context.transform(pool, Positive()).experts
        context.save_task_masks(masks, dict.fromkeys(masks, 2.0))
        return context.merge(pool, Linear((1.0,) * len(masks)))


def expected(base: State, model: State, expert: State) -> State:
    wide = {n: [source[n].float() for source in (base, model, expert)] for n in base}
    return {n: b + 2 * (e - b > 0) * (m - b) for n, (b, m, e) in wide.items()}


@pytest.fixture
def models(tmp_path: Path) -> dict[str, Any]:
    for number, name in enumerate(("base", "a", "b", "c")):
        state = random_state(number, torch.bfloat16)
        save_file({**state, "steps": torch.tensor(3)}, tmp_path / f"{name}.safetensors")
    paths = {name: str(tmp_path / f"{name}.safetensors") for name in ("base", "a", "b", "c")}
    return {"name": "checkpoints", "base": paths.pop("base"), "models": paths}


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("block", [64, source.BLOCK])
def test_directory_loads_weights_of_each_task(
    models: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    block: int,
    workers: int,
) -> None:
    monkeypatch.setattr("fusion_core.weights.source.BLOCK", block)
    out = tmp_path / "out"
    run_fusion(
        algorithm=Summed(),
        model_pool=models,
        output={"path": str(out), "shard_size": 1000},
        options=RunOptions(executor="threads", workers=workers),
    )
    merged = {k: v for shard in out.glob("model-*") for k, v in load_file(shard).items()}
    base, *experts = (
        {k: v for k, v in load_file(path).items() if k != "steps"}
        for path in (models["base"], *models["models"].values())
    )
    for name, expert in zip("abc", experts, strict=True):
        weights = load_for_task(out, name)
        assert int(weights.tensor("steps")) == 3
        for key, values in expected(base, {k: merged[k] for k in base}, expert).items():
            torch.testing.assert_close(weights.tensor(key), values, rtol=1e-6, atol=1e-6)
    provenance = (out / "provenance.json").read_text()
    assert MASKS in provenance


@pytest.mark.parametrize("cut", Cut, ids=lambda cut: cut.value)
def test_masks_are_restored_for_every_cut(cut: Cut) -> None:
    masks = {n: {k: (v > 0).float() for k, v in random_state(n).items()} for n in range(5)}
    packed = PackedMasks({str(n): recut(StateDictSource(m), cut) for n, m in masks.items()})
    stored = StateDictSource(packed.state_dict())
    infos = StateDictSource(masks[0]).infos
    for number, mask in masks.items():
        one = TaskMask(stored, number, infos)
        for name, values in mask.items():
            assert torch.equal(one.tensor(name), values.to(torch.uint8))
        assert torch.equal(one.read("v", 5, 22), mask["v"][5:22].to(torch.uint8))


def test_masks_in_memory_equal_masks_on_disk() -> None:
    base, a, b = (random_state(n) for n in range(3))
    result = run_fusion(algorithm=Summed(), model_pool={"base": base, "models": {"a": a, "b": b}})
    packed: Any = result.side_files[MASKS]
    weights = task_weights(result.weights, StateDictSource(base), packed, 1, 2.0)
    for name, values in expected(base, result.weights.state_dict(), b).items():
        torch.testing.assert_close(weights.tensor(name), values, rtol=1e-6, atol=1e-6)


def test_missing_task_or_masks_raises(models: dict[str, Any], tmp_path: Path) -> None:
    out = tmp_path / "out"
    run_fusion(algorithm=Summed(), model_pool=models, output=out)
    with pytest.raises(RecipeError, match=r"nothing of its own for task 'd'") as caught:
        load_for_task(out, "d")
    assert caught.value.hint == "Expected one of: a, b, c."
    (out / MASKS).unlink()
    with pytest.raises(CheckpointError, match="its model is the same for every task"):
        load_for_task(out, "a")


class OwnBias(Algorithm[ComponentConfig]):
    """The mean, with each expert's last bias for its task, or an adapter that halves scores."""

    config_class = ComponentConfig
    adapters = False

    def run(self, pool: ModelPool[Any], context: RunContext) -> WeightSource:
        if self.adapters:
            half = torch.eye(4)[:2] / 2
            context.save_task_adapters({"a": (half, half.T)}, {"a": "3"})
        else:
            tensors = {
                name: {"3.bias": expert.tensor("3.bias")} for name, expert in pool.experts.items()
            }
            context.save_task_tensors(tensors)
        return context.merge(pool, Linear((0.5,) * len(pool.experts), relative=False))


def test_task_tensors_replace_tensors_of_the_model(tmp_path: Path) -> None:
    pool, out = tiny_pool("mlp", experts=2), tmp_path / "out"
    result = run_fusion(algorithm=OwnBias(), model_pool=pool, output=out)
    for name, expert in pool.experts.items():
        weights = load_for_task(out, name).state_dict()
        assert torch.equal(weights.pop("3.bias"), expert.tensor("3.bias"))
        assert all(torch.equal(tensor, result.weights.tensor(n)) for n, tensor in weights.items())
        built = build_for_task(out, name, pool=pool)
        assert torch.equal(built[3].bias, expert.tensor("3.bias"))
    with pytest.raises(RecipeError, match=r"nothing of its own for task 'd'"):
        build_for_task(out, "d", pool=pool)


def test_adapter_changes_live_model_but_not_weights(tmp_path: Path) -> None:
    pool, out = tiny_pool("mlp", experts=2), tmp_path / "out"
    algorithm = OwnBias()
    algorithm.adapters = True
    pools: dict[str, Any] = {"model_pool": pool, "task_pool": TinyTasks(("a", "b"))}
    result = run_fusion(algorithm=algorithm, **pools, output=out)
    inputs = torch.randn(5, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        plain = result.model(inputs)
        bent = plain.clone()
        bent[:, :2] -= bent[:, :2].clamp_min(0) / 4
        model = build_for_task(out, "a", pool=pool)
        torch.testing.assert_close(model(inputs), bent)
    tasks = pools["task_pool"]
    assert result.report.tasks == {
        "a": tasks["a"].evaluate(model),
        "b": tasks["b"].evaluate(result.model),
    }
    with pytest.raises(RecipeError, match="has an adapter or other modules for task 'a'"):
        load_for_task(out, "a")


@pytest.mark.plugins
def test_nested_recipe_base_is_merged_again_for_masks(
    models: dict[str, Any], tmp_path: Path
) -> None:
    paths = models["models"]

    def mean(*names: str) -> dict[str, Any]:
        pool = {"models": {name: paths[name] for name in names}}
        return {"algorithm": {"name": "simple-average"}, "model_pool": pool}

    outer = {"name": "checkpoints", "base": mean("a", "b"), "models": {"c": mean("c", "b")}}
    out = tmp_path / "out"
    run_fusion(algorithm=Summed(), model_pool=outer, output=out)
    a, b, c = (load_file(paths[name]) for name in "abc")
    middle, expert = ({n: (x[n].float() + b[n].float()) / 2 for n in SHAPES} for x in (a, c))
    weights = load_for_task(out, "c")
    for name, values in expected(middle, load_file(out / "model.safetensors"), expert).items():
        torch.testing.assert_close(weights.tensor(name), values, rtol=1e-6, atol=1e-6)


@pytest.mark.plugins
def test_masks_use_recorded_models_whatever_pool_builds_the_model(
    models: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, measured = tmp_path / "out", []
    run_fusion(algorithm=Summed(), model_pool=models, output=out)
    monkeypatch.setattr(
        evaluation, "evaluate", lambda *_, overrides, **__: measured.append(overrides)
    )
    cpu = torch.device("cpu")
    recipe = {"model_pool": "mini8"}
    evaluation.evaluate_directory(out, load_plugins(), recipe=recipe, device=cpu)
    (masks,) = measured
    # mini8, which builds the model, has no tensor "v"
    weights = masks.weights_of("a", CheckpointSource(out))
    assert torch.equal(weights.tensor("v"), load_for_task(out, "a").tensor("v"))


@pytest.mark.plugins
def test_skipped_tensors_are_those_of_the_base(models: dict[str, Any], tmp_path: Path) -> None:
    out = tmp_path / "out"
    run_fusion(algorithm={"name": "emr", "skip": "v"}, model_pool=models, output=out)
    base = load_file(models["base"])
    assert torch.equal(load_for_task(out, "a").tensor("v").to(torch.bfloat16), base["v"])
    assert set(load_file(out / MASKS)) == {"m", "s", "e"}


def test_merge_with_masks_is_measured_with_task_weights(tmp_path: Path) -> None:
    pool, tasks = tiny_pool("mlp", experts=2), TinyTasks(("a", "b"))
    options = {"algorithm": Summed(), "model_pool": pool, "task_pool": tasks}
    in_memory = run_fusion(**options)
    written = run_fusion(**options, output=tmp_path / "out")
    expected = {}
    for name in tasks.names:
        weights = overrides_among(in_memory.side_files, pool, load_plugins()).weights_of(
            name, in_memory.weights
        )
        expected[name] = tasks[name].evaluate(pool.build(weights))
    for result in (in_memory, written):
        assert result.report.tasks == expected
        assert result.report.needs_task
        assert "needs the task at inference" in "\n".join(report_notes({"summed": result.report}))
    assert expected != {n: tasks[n].evaluate(pool.build(in_memory.weights)) for n in tasks.names}
