from __future__ import annotations

import copy
import hashlib
import json
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from signed import sign
from torch import nn

from fusion_core import run_fusion
from fusion_core.contracts.algorithm import Algorithm, TensorwiseAlgorithm
from fusion_core.contracts.measurements import Metric
from fusion_core.contracts.report import Report
from fusion_core.contracts.task_pool import AdaptiveTask, Task, TaskPool
from fusion_core.errors import (
    BrokenPluginError,
    DiskError,
    FusionError,
    OutputError,
    RecipeError,
    Terminated,
    WeightsError,
)
from fusion_core.machine.devices import resolve_device
from fusion_core.planning.plan import plan
from fusion_core.planning.run_options import RunOptions
from fusion_core.plugins.recipe_files import load_recipe
from fusion_core.progress import Progress, note
from fusion_core.recipe.config import ComponentConfig
from fusion_core.running import run
from fusion_core.running.run import execute
from fusion_core.weights import CheckpointSource, Piece, StateDictSource, WeightSource, sum_in_order
from fusion_core.weights.writing import _fault as fault
from fusion_core.weights.writing.disk import write_durably
from fusion_core.weights.writing.lock import lock_output
from fusion_core.weights.writing.provenance import Provenance, read_provenance
from pools_checkpoints import CheckpointsConfig, CheckpointsPool

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from conftest import Site
    from fusion_core.contracts.batch import Batch, Split
    from fusion_core.contracts.context import RunContext
    from fusion_core.contracts.measurements import MetricValues
    from fusion_core.contracts.model_pool import ModelPool
    from fusion_core.contracts.subject import Subject
    from fusion_core.progress import Advance

pytestmark = pytest.mark.plugins

Models = dict[str, dict[str, torch.Tensor]]


class Net(nn.Module):
    """Tied weights, BatchNorm with its integer buffer, and a buffer that is not saved."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.embedding = nn.Embedding(6, 4)
        self.norm = nn.BatchNorm1d(4)
        self.head = nn.Linear(4, 6, bias=False)
        self.head.weight = self.embedding.weight
        self.register_buffer("scratch", torch.ones(2), persistent=False)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(self.norm(self.embedding(tokens)))
        return logits


def tuned(base: Net, seed: int) -> Net:
    torch.manual_seed(seed)
    expert = copy.deepcopy(base)
    with torch.no_grad():
        for parameter in expert.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    expert.norm.running_mean += seed
    expert.norm.num_batches_tracked += seed
    return expert


@pytest.fixture
def nets() -> tuple[Net, dict[str, Net]]:
    base = Net(0)
    return base, {"a": tuned(base, 1), "b": tuned(base, 2)}


@pytest.fixture
def paths(models: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Save the models below the working directory, and return the pool's section."""
    monkeypatch.chdir(tmp_path)
    for name, state in models.items():
        directory = tmp_path / "in" / name
        directory.mkdir(parents=True)
        save_file(state, directory / "model.safetensors")
        (directory / "config.json").write_text('{"model_type": "toy", "auto_map": {"x": "y"}}')
        (directory / "tokenizer.json").write_text("{}")
        (directory / "modeling_toy.py").write_text("raise SystemExit")
    return {"base": "in/base", "models": {name: f"in/{name}" for name in ("a", "b", "c")}}


class DropConfig(ComponentConfig):
    floor: float = 0.05


class DropAndAverage(TensorwiseAlgorithm[DropConfig]):
    config_class = DropConfig

    def merge(self, piece: Piece) -> torch.Tensor:
        deltas = piece.task_vectors
        deltas_above = deltas.where(deltas.abs() > self.config.floor, 0)
        return piece.base + sum_in_order(deltas_above) / len(deltas_above)


def files_of(directory: Path, *, but: tuple[str, ...] = ()) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir() if path.name not in but}


# --- live models --------------------------------------------------------------------------------


def test_live_models_give_live_model(nets: tuple[Net, dict[str, Net]]) -> None:
    base, experts = nets
    before = {n: copy.deepcopy(model.state_dict()) for n, model in {"": base, **experts}.items()}
    result = run_fusion(
        algorithm={"name": "task-arithmetic", "scale": 0.5},
        model_pool={"base": base, "models": experts},
    )
    assert result.path is None
    model = result.model
    assert model is result.model
    assert type(model) is Net
    assert not model.training
    merged = model.state_dict()
    for name, value in base.state_dict().items():
        expected = value
        if value.is_floating_point():
            deltas = [expert.state_dict()[name] - value for expert in experts.values()]
            expected = value + 0.5 * sum(deltas)
        torch.testing.assert_close(merged[name], expected)
    assert model.head.weight is model.embedding.weight
    assert merged["norm.num_batches_tracked"] == 0  # the base's
    assert model(torch.tensor([1, 2])).shape == (2, 6)
    for name, net in {"": base, **experts}.items():
        assert net.training
        for key, value in net.state_dict().items():
            assert torch.equal(value, before[name][key])
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert base.embedding.weight.abs().sum() > 0


def test_the_merged_model_can_be_trained(nets: tuple[Net, dict[str, Net]]) -> None:
    base, experts = nets
    model = run_fusion(algorithm="ties", model_pool={"base": base, "models": experts}).model
    model(torch.tensor([1, 2])).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_sources_of_every_kind_can_be_mixed(
    nets: tuple[Net, dict[str, Net]], tmp_path: Path
) -> None:
    base, experts = nets
    state = {n: v.clone() for n, v in experts["a"].state_dict().items()}
    save_file(state, tmp_path / "a.safetensors")
    one = run_fusion(algorithm="ties", model_pool={"base": base, "models": experts})
    other = run_fusion(
        algorithm="ties",
        model_pool={
            "base": base.state_dict(),
            "models": {"a": tmp_path / "a.safetensors", "b": experts["b"]},
        },
    )
    for name in base.state_dict():
        assert torch.equal(one.weights.tensor(name), other.weights.tensor(name))
    assert other.path is None
    assert type(other.model) is Net


def test_state_dicts_alone_give_no_live_model(models: Models) -> None:
    pool = {"base": models["base"], "models": {"a": models["a"]}}
    result = run_fusion(algorithm="ties", model_pool=pool)
    with pytest.raises(FusionError, match="does not know the class of its models") as caught:
        _ = result.model
    assert caught.value.exit_code == 1


def test_live_models_are_written_to_named_output(
    nets: tuple[Net, dict[str, Net]], tmp_path: Path
) -> None:
    base, experts = nets
    pool = {"base": base, "models": experts}
    result = run_fusion(algorithm="ties", model_pool=pool, output=tmp_path / "out")
    assert result.path == tmp_path / "out"
    loaded = load_file(tmp_path / "out" / "model.safetensors")
    assert loaded.keys() == base.state_dict().keys()
    in_memory = run_fusion(algorithm="ties", model_pool=pool).weights
    assert all(torch.equal(loaded[name], in_memory.tensor(name)) for name in loaded)
    assert torch.equal(result.model.head.weight, loaded["head.weight"])


def test_state_without_tensor_is_refused(models: Models) -> None:
    odd: dict[str, Any] = {**models["a"], "_extra_state": {"x": 1}}
    with pytest.raises(WeightsError, match=r"a \(live\): '_extra_state' is a dict"):
        run_fusion(algorithm="ties", model_pool={"base": models["base"], "models": {"a": odd}})


def test_half_precision_is_preserved(nets: tuple[Net, dict[str, Net]]) -> None:
    base, experts = nets
    pool = {"base": base.bfloat16(), "models": {n: e.bfloat16() for n, e in experts.items()}}
    result = run_fusion(algorithm="ties", model_pool=pool)
    assert result.weights.infos["head.weight"].dtype is torch.bfloat16
    assert result.model.head.weight.dtype is torch.bfloat16
    wide = run_fusion(algorithm="ties", model_pool=pool, output={"dtype": "float32"})
    assert wide.weights.infos["head.weight"].dtype is torch.float32
    assert wide.weights.infos["norm.num_batches_tracked"].dtype is torch.int64


# --- algorithms as objects ----------------------------------------------------------------------


def test_algorithm_may_be_an_object(paths: dict[str, Any], models: Models) -> None:
    result = run_fusion(
        algorithm=DropAndAverage(DropConfig(floor=0.1)), model_pool=paths, output="out"
    )
    base = models["base"]["layer.weight"]
    deltas = [models[name]["layer.weight"] - base for name in "abc"]
    expected = base + sum(delta.where(delta.abs() > 0.1, 0) for delta in deltas) / 3
    torch.testing.assert_close(result.weights.tensor("layer.weight"), expected)
    assert result.path is not None
    recipe = load_recipe(result.path / "recipe.yaml")
    assert recipe["algorithm"]["name"].endswith(":DropAndAverage")
    assert recipe["algorithm"]["floor"] == 0.1


class ReturnsModule(Algorithm[ComponentConfig]):
    config_class = ComponentConfig

    def run(self, pool: ModelPool[Any], context: RunContext) -> nn.Module:
        del context
        model = pool.build(pool.experts["a"])
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.fill_(0.25)
            model.norm.running_mean.fill_(7)  # type: ignore[union-attr, operator]
        return model


def test_algorithm_may_return_live_model(nets: tuple[Net, dict[str, Net]]) -> None:
    base, experts = nets
    result = run_fusion(algorithm=ReturnsModule(), model_pool={"base": base, "models": experts})
    assert result.weights.infos.keys() == base.state_dict().keys()
    merged = result.model.state_dict()
    assert (merged["head.weight"] == 0.25).all()
    assert (merged["norm.running_mean"] == 7).all()
    assert merged["norm.num_batches_tracked"] == 1  # the returned model's own


@pytest.mark.parametrize("change", ["missing", "extra", "shape", "kind"])
def test_result_with_other_tensors_is_refused(models: Models, change: str) -> None:
    class Wrong(Algorithm[ComponentConfig]):
        config_class = ComponentConfig

        def run(self, pool: ModelPool[Any], context: RunContext) -> WeightSource:
            del context
            state = dict(pool.experts["a"].state_dict())
            if change == "missing":
                del state["scale"]
            elif change == "extra":
                state["scale2"] = torch.ones(())
            elif change == "kind":
                state["scale"] = state["scale"].int()
            else:
                state["scale"] = torch.ones(2)
            return StateDictSource(state)

    pool = {"base": models["base"], "models": {"a": models["a"]}}
    with pytest.raises(BrokenPluginError, match=r"returned other tensors .* among them 'scale"):
        run_fusion(algorithm=Wrong(), model_pool=pool)


def test_a_result_that_is_no_source_is_refused(models: Models) -> None:
    class Forgetful(Algorithm[ComponentConfig]):
        config_class = ComponentConfig

        def run(self, pool: ModelPool[Any], context: RunContext) -> WeightSource:
            return pool.experts["a"].state_dict()  # type: ignore[return-value]

    pool = {"base": models["base"], "models": {"a": models["a"]}}
    with pytest.raises(BrokenPluginError, match="returned a dict, not weights"):
        run_fusion(algorithm=Forgetful(), model_pool=pool)


@pytest.mark.parametrize("to_file", [False, True])
def test_negative_variances_are_refused(tmp_path: Path, to_file: bool) -> None:  # noqa: FBT001
    pool = {"base": {"n.running_var": torch.full((3,), 2.0)}}
    pool["models"] = {name: {"n.running_var": torch.full((3,), 0.5)} for name in "ab"}
    output = tmp_path / "out" if to_file else None
    with pytest.raises(WeightsError, match=r"variances 'n.running_var' are negative, down to -1\b"):
        run_fusion(
            algorithm={"name": "task-arithmetic", "scale": 1.0}, model_pool=pool, output=output
        )
    assert not (tmp_path / "out").exists()


# --- files --------------------------------------------------------------------------------------


def test_output_directory_is_complete(paths: dict[str, Any], tmp_path: Path) -> None:
    result = run_fusion(algorithm="ties", model_pool=paths, output="out", seed=5)
    assert sorted(files_of(tmp_path / "out")) == [
        "README.md",
        "config.json",
        "model.safetensors",
        "provenance.json",
        "recipe.yaml",
        "tokenizer.json",
    ]
    assert json.loads((tmp_path / "out" / "config.json").read_text()) == {"model_type": "toy"}
    assert load_recipe("out/recipe.yaml") == {
        "algorithm": {
            "name": "ties",
            "density": 0.2,
            "scale": 1.0,
            "scope": "model",
            "weights": None,
            "normalize": True,
            "zero_sign": "majority",
            "rescale": "none",
        },
        "model_pool": {
            "name": "checkpoints",
            "base": "../in/base",
            "models": {name: f"../in/{name}" for name in "abc"},
        },
        "seed": 5,
        "output": {"dtype": None, "shard_size": 5_000_000_000, "licence": None},
        "alignment": {
            "missing": "error",
            "extra": "error",
            "dtype": "promote",
            "config": "error",
            "tokenizer": "error",
            "vocab": "error",
            "nan": "error",
            "outliers": "error",
            "matrices": "separate",
        },
    }
    assert isinstance(result.weights, CheckpointSource)
    assert result.report is None
    provenance = json.loads((tmp_path / "out" / "provenance.json").read_text())["predicate"]
    absent = {"schema_version", "subject", "command", "tasks", "output"}
    assert provenance.keys() == Provenance.model_fields.keys() - absent
    assert provenance["plugins"].keys() == {"fusion-ties", "fusion-thresholds", "pools-checkpoints"}
    assert provenance["inputs"].keys() == {"base", "a", "b", "c"}
    assert provenance["inputs"]["a"]["source"] == "a"
    assert provenance["tensors"] == {"merged": 5, "copied": 1, "dropped": 0}
    assert read_provenance(tmp_path / "out").subject.keys() == {
        "config.json",
        "model.safetensors",
        "recipe.yaml",
        "tokenizer.json",
    }
    assert provenance["run"].keys() == {"finished", "seconds", "peak_memory", "checksum"}
    assert 10**7 < provenance["run"]["peak_memory"] < 10**12  # bytes


@pytest.mark.parametrize("output", [".", "..", "../here", "below/.."])
def test_working_directory_is_refused_as_output(
    paths: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, output: str
) -> None:
    (tmp_path / "at" / "here" / "below").mkdir(parents=True)
    pool = {name: str(tmp_path / at) for name, at in paths["models"].items()}
    monkeypatch.chdir(tmp_path / "at" / "here")
    with pytest.raises(OutputError, match="is the working directory, or contains it"):
        run_fusion(
            algorithm="simple-average",
            model_pool={"models": pool},
            output=output,
            options=RunOptions(overwrite=True),
        )


def test_an_output_inside_another_is_refused(paths: dict[str, Any], tmp_path: Path) -> None:
    """Its files would be unknown to the provenance of the other."""
    run_fusion(algorithm="simple-average", model_pool=paths, output="out")
    before = files_of(tmp_path / "out")
    for output in ("out/sub", "out/a/b", "out/../out/sub"):
        with pytest.raises(OutputError, match=r"out/.* is inside .*out, which a run of fuse wrote"):
            run_fusion(
                algorithm="simple-average",
                model_pool=paths,
                output=output,
                options=RunOptions(overwrite=True),
            )
    assert files_of(tmp_path / "out") == before
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "provenance.json").write_text("{}")  # of another program
    run_fusion(algorithm="simple-average", model_pool=paths, output="other/out")


def test_inputs_are_not_touched(paths: dict[str, Any], tmp_path: Path) -> None:
    before = {name: files_of(tmp_path / "in" / name) for name in ("base", "a", "b", "c")}
    run_fusion(algorithm="ties", model_pool=paths, output="out")
    assert {name: files_of(tmp_path / "in" / name) for name in before} == before


def test_equal_runs_differ_only_in_run_details(paths: dict[str, Any], tmp_path: Path) -> None:
    statements = []
    for n, options in enumerate(
        [
            RunOptions(),
            RunOptions(executor="serial"),
            RunOptions(executor={"name": "threads", "workers": 2}),
            RunOptions(workers=1),
            RunOptions(workers=4),
        ]
    ):
        run_fusion(algorithm="ties", model_pool=paths, output=f"out{n}", options=options)
        assert files_of(tmp_path / f"out{n}", but=("provenance.json",)) == files_of(
            tmp_path / "out0", but=("provenance.json",)
        )
        statement = json.loads((tmp_path / f"out{n}" / "provenance.json").read_text())
        del statement["predicate"]["run"]
        statements.append(statement)
    assert all(statement == statements[0] for statement in statements)


def test_executor_of_recipe_is_used_but_not_recorded(paths: dict[str, Any]) -> None:
    recipe = {"algorithm": "ties", "model_pool": paths}
    chosen = {**recipe, "executor": {"name": "threads", "workers": 3}}
    for options, executor in (
        (RunOptions(), {"name": "threads", "workers": 3}),
        (RunOptions(workers=2), {"name": "threads", "workers": 2}),
        (RunOptions(executor="serial"), {"name": "serial"}),
    ):
        planned = plan(chosen, options)
        assert planned.resolved.executor.as_recipe() == executor
        assert planned.recipe == plan(recipe, RunOptions()).recipe


def test_recorded_recipe_gives_the_same_files(paths: dict[str, Any], tmp_path: Path) -> None:
    algorithm = {"name": "task-arithmetic", "weights": {"b": 0.5}, "scale": 1e-3}
    output = {"path": "one", "dtype": "bfloat16", "shard_size": 60}
    run_fusion(algorithm=algorithm, model_pool=paths, output=output, seed=3)
    run_fusion(
        "one/recipe.yaml", output={**load_recipe("one/recipe.yaml")["output"], "path": "two"}
    )
    one, two = (files_of(tmp_path / name, but=("provenance.json",)) for name in ("one", "two"))
    assert len([name for name in one if name.endswith(".safetensors")]) > 1
    assert one == two


def test_other_shard_size_gives_the_same_tensors(paths: dict[str, Any], tmp_path: Path) -> None:
    digests = set()
    for size in (1, 300, "5GB"):
        output = {"path": f"out-{size}", "shard_size": size}
        run_fusion(algorithm="ties", model_pool=paths, output=output)
        digests.add(read_provenance(tmp_path / f"out-{size}").outputs.tensors_blake3)
    assert len(digests) == 1


def test_output_dtype_is_recorded_in_configuration(paths: dict[str, Any], tmp_path: Path) -> None:
    run_fusion(algorithm="ties", model_pool=paths, output={"path": "out", "dtype": "float16"})
    loaded = load_file(tmp_path / "out" / "model.safetensors")
    assert loaded["layer.weight"].dtype is torch.float16
    assert loaded["steps"].dtype is torch.int64
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "float16"


def test_overflow_of_output_dtype_leaves_nothing(models: Models, paths: dict[str, Any]) -> None:
    from pathlib import Path

    save_file({**models["a"], "scale": torch.tensor(1e6)}, "in/a/model.safetensors")
    output = {"path": "out", "dtype": "float16"}
    with pytest.raises(WeightsError, match=r"'scale' holds 1 values"):
        run_fusion(algorithm="simple-average", model_pool=paths, output=output)
    assert [path.name for path in Path.cwd().iterdir()] == ["in"]
    raw = {"alignment": {"nan": "allow"}}
    run_fusion(raw, algorithm="simple-average", model_pool=paths, output=output)
    assert load_file("out/model.safetensors")["scale"].isinf()


@pytest.mark.parametrize("how", ["by the argument", "by the recipe"])
def test_output_none_writes_nothing(how: str, paths: dict[str, Any], tmp_path: Path) -> None:
    raw: dict[str, Any] = {"algorithm": "ties", "model_pool": paths}
    written = run_fusion(raw, output={"path": "out", "dtype": "float16"})
    before = sorted(tmp_path.rglob("*"))
    path = "elsewhere" if how == "by the argument" else None
    raw["output"] = {"path": path, "dtype": "float16"}
    in_memory = run_fusion(raw, output=None) if path else run_fusion(raw)
    assert in_memory.path is None
    assert sorted(tmp_path.rglob("*")) == before
    merged = in_memory.weights.state_dict()
    for name, tensor in written.weights.state_dict().items():
        assert torch.equal(merged[name], tensor)
        assert merged[name].dtype is tensor.dtype


def test_default_output_is_numbered(paths: dict[str, Any]) -> None:
    for n in (1, 2):
        result = run_fusion(algorithm="ties", model_pool=paths)
        assert str(result.path) == f"outputs/checkpoints-ties-{n}"
    named = run_fusion(algorithm=DropAndAverage(), model_pool=paths)
    assert str(named.path) == "outputs/checkpoints-fused-1"


def test_existing_output_is_refused_before_reading(
    paths: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_fusion(algorithm="ties", model_pool=paths, output="out")
    before = files_of(tmp_path / "out")
    with monkeypatch.context() as patch:
        patch.setattr(CheckpointSource, "read", None)
        with pytest.raises(OutputError, match="already exists") as caught:
            run_fusion(algorithm="simple-average", model_pool=paths, output="out")
    assert caught.value.exit_code == 7
    assert files_of(tmp_path / "out") == before


def test_side_files_are_committed_with_the_model(paths: dict[str, Any], tmp_path: Path) -> None:
    class Learning(DropAndAverage):
        def run(self, pool: ModelPool[Any], context: RunContext) -> WeightSource:
            context.save("coefficients.json", {"a": 0.5})
            return super().run(pool, context)

    result = run_fusion(algorithm=Learning(), model_pool=paths, output="out")
    assert json.loads((tmp_path / "out" / "coefficients.json").read_text()) == {"a": 0.5}
    assert result.side_files.keys() == {"coefficients.json"}
    assert "coefficients.json" in read_provenance(tmp_path / "out").subject


@pytest.mark.parametrize("name", ["../escaped", "recipe.yaml", "model.safetensors"])
def test_side_file_cannot_replace_another(paths: dict[str, Any], tmp_path: Path, name: str) -> None:
    class Hostile(DropAndAverage):
        def run(self, pool: ModelPool[Any], context: RunContext) -> WeightSource:
            context.save(name, b"x")
            return super().run(pool, context)

    with pytest.raises(BrokenPluginError, match="side file"):
        run_fusion(algorithm=Hostile(), model_pool=paths, output="out")
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


# --- recipes ------------------------------------------------------------------------------------


def test_arguments_override_the_recipe(paths: dict[str, Any], tmp_path: Path) -> None:
    raw = {"algorithm": "ties", "model_pool": paths, "seed": 1, "output": {"path": "no"}}
    run_fusion(raw, algorithm={"name": "ties", "density": 0.5}, seed=2, output="yes")
    recipe = load_recipe(tmp_path / "yes" / "recipe.yaml")
    assert (recipe["algorithm"]["density"], recipe["seed"]) == (0.5, 2)
    assert raw == {"algorithm": "ties", "model_pool": paths, "seed": 1, "output": {"path": "no"}}
    assert not (tmp_path / "no").exists()


def test_dropped_tensors_are_counted(paths: dict[str, Any], models: Models, tmp_path: Path) -> None:
    save_file({**models["a"], "head": torch.ones(1)}, "in/a/model.safetensors")
    raw = {"alignment": {"extra": "drop"}}
    run_fusion(raw, algorithm="ties", model_pool=paths, output="out")
    statement = json.loads((tmp_path / "out" / "provenance.json").read_text())["predicate"]
    assert statement["tensors"] == {"merged": 5, "copied": 1, "dropped": 1}


@pytest.mark.parametrize("expert_count", [0, 1, 3, 4])
def test_number_of_experts_is_checked(models: Models, site: Site, expert_count: int) -> None:
    site.install(
        "picky-x",
        """
        from fusion_core import AlgorithmSpec, hookimpl
        @hookimpl
        def fusion_register_algorithms():
            yield AlgorithmSpec(
                name="picky", summary="", target="fusion_linear.averages:SimpleAverage",
                config="fusion_linear.config:SimpleAverageConfig", min_experts=2, max_experts=3,
            )
        """,
    )
    pool = {"models": {str(n): models["a"] for n in range(expert_count)}}
    if expert_count == 3:
        run_fusion(algorithm="picky", model_pool=pool)
        return
    with pytest.raises(
        RecipeError, match=f"takes 2 to 3 experts, the model pool has {expert_count}"
    ):
        run_fusion(algorithm="picky", model_pool=pool)


def test_pool_without_experts_is_refused(models: Models) -> None:
    pool = CheckpointsPool(CheckpointsConfig(base=models["base"], models={}))
    with pytest.raises(RecipeError, match="no experts"):
        run_fusion(algorithm=DropAndAverage(), model_pool=pool)


@pytest.mark.parametrize("device", ["nonsense", "cuda:999", "meta", "cpu:3", "", "xla"])
def test_unknown_device_is_refused(models: Models, device: str) -> None:
    pool = {"base": models["base"], "models": {"a": models["a"]}}
    with pytest.raises(RecipeError, match=f"device '{device}'"):
        run_fusion(algorithm="ties", model_pool=pool, options=RunOptions(device=device))


def test_gpu_index_out_of_range_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(RecipeError, match="no CUDA device"):
        resolve_device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert [resolve_device(name).index for name in ("cuda", "cuda:0", "cuda:1")] == [None, 0, 1]
    for name in ("cuda:2", "cuda:999"):  # torch wraps 999 to a negative index
        with pytest.raises(RecipeError, match=f"'{name}': torch finds 2 CUDA devices here"):
            resolve_device(name)


def test_seed_reaches_random_methods(models: Models) -> None:
    class Noise(DropAndAverage):
        def merge(self, piece: Piece) -> torch.Tensor:
            return piece.uniform(0)

    pool = {"base": models["base"], "models": {"a": models["a"]}}

    def draw_noise(seed: int) -> torch.Tensor:
        return run_fusion(algorithm=Noise(), model_pool=pool, seed=seed).weights.tensor(
            "layer.bias"
        )

    assert torch.equal(draw_noise(1), draw_noise(1))
    assert not torch.equal(draw_noise(1), draw_noise(2))


# --- tasks --------------------------------------------------------------------------------------


class Norm(AdaptiveTask):
    """Measures the mean absolute value of a model's embedding."""

    def __init__(self, name: str) -> None:
        self.name = name

    def batch(self, step: int, *, size: int, split: Split, seed: int) -> Batch:
        raise NotImplementedError

    def logits(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        raise NotImplementedError

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        if self.name == "fails":
            raise RuntimeError("the data set is gone")
        assert not model.training
        weight = model.embedding.weight
        return {"accuracy": float(weight.detach().abs().mean()), "other": 1.0}  # type: ignore[operator, union-attr, arg-type]


class Norms(TaskPool[ComponentConfig]):
    config_class = ComponentConfig

    def __init__(self, *names: str) -> None:
        super().__init__(ComponentConfig())
        self.names = names

    def __getitem__(self, name: str) -> Task:
        return Norm(name)


def size(model: Net) -> float:
    return float(model.embedding.weight.detach().abs().mean())


def test_report_includes_base_and_experts(nets: tuple[Net, dict[str, Net]], tmp_path: Path) -> None:
    base, experts = nets
    result = run_fusion(
        algorithm="simple-average",
        model_pool={"base": base, "models": experts},
        task_pool=Norms("b", "x", "a"),
        output=tmp_path / "out",
    )
    report = result.report
    assert report is not None
    assert list(report.tasks) == ["b", "x", "a"]
    merged = size(result.model)  # type: ignore[arg-type]
    assert report.average == pytest.approx(merged)
    assert {name: metrics["accuracy"] for name, metrics in report.reference.experts.items()} == {
        "b": pytest.approx(size(experts["b"])),
        "a": pytest.approx(size(experts["a"])),
    }
    assert report.reference.base["x"]["accuracy"] == pytest.approx(size(base))
    assert report.normalised_average is None  # nobody was tuned for x
    assert report.transductive is None
    assert json.loads((tmp_path / "out" / "report.json").read_text()) == report.as_json()
    evaluation = read_provenance(tmp_path / "out").run.evaluation
    assert evaluation is not None
    content = (tmp_path / "out" / "report.json").read_bytes()
    assert evaluation.files["report.json"] == hashlib.sha256(content).hexdigest()
    assert evaluation.tasks == list(report.tasks)


class Sizes(Norms):
    """Measures models by path without building them. A smaller size is better."""

    def __init__(self, value: object, *names: str) -> None:
        super().__init__(*names)
        self.value = value
        self.measured: list[Path | None] = []

    def __getitem__(self, name: str) -> Task:
        task = super().__getitem__(name)
        task.metrics = (Metric("size", unit="bytes", higher_is_better=False),)
        return task

    def measure(
        self, subject: Subject, tasks: Sequence[str] | None = None, **options: object
    ) -> dict[str, MetricValues]:
        del options
        assert subject.weights is not None
        self.measured.append(subject.path)
        return {name: {"size": self.value} for name in tasks or self.names}  # type: ignore[dict-item]


def test_task_pool_may_measure_without_live_model(
    nets: tuple[Net, dict[str, Net]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(CheckpointsPool, "build", None)  # no live model is asked for
    pool = {"base": nets[0], "models": nets[1]}
    tasks = Sizes(2.0, "a", "b")
    result = run_fusion(algorithm="ties", model_pool=pool, task_pool=tasks, output=tmp_path / "out")
    assert tasks.measured == [tmp_path / "out", None, None, None]
    assert result.report is not None
    stored = json.loads((tmp_path / "out" / "report.json").read_text())
    assert stored["metrics"]["a"] == {"size": {"unit": "bytes", "higher_is_better": False}}
    assert Report.from_json(stored) == result.report
    for value in ("good", torch.tensor(1.0)):
        with pytest.raises(
            BrokenPluginError, match="task 'a', metric 'size': expected a Python number"
        ):
            run_fusion(algorithm="ties", model_pool=pool, task_pool=Sizes(value, "a"))


def test_evaluation_progress_shows_notes_of_tasks(
    nets: tuple[Net, dict[str, Net]], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[str, str]] = []

    class Recording(Progress):
        @contextmanager
        def track(self, label: str, *, total: int, unit: str = "") -> Iterator[Advance]:
            def advance(count: int = 1, *, note: str = "") -> None:
                if not count:
                    seen.append((label, note))

            yield advance

    def measure(task: Norm, _: object) -> dict[str, float]:
        note(f"{task.name}: half")
        return {"accuracy": 1.0}

    monkeypatch.setattr(Norm, "evaluate", measure)
    run_fusion(
        algorithm="ties",
        model_pool={"base": nets[0], "models": nets[1]},
        task_pool=Norms("a"),
        options=RunOptions(progress=Recording()),
    )
    bars = ("evaluate merged", "evaluate base", "evaluate experts")
    assert seen == [(bar, "a: half") for bar in bars]


def test_report_without_base_has_no_base_row(nets: tuple[Net, dict[str, Net]]) -> None:
    result = run_fusion(
        algorithm="simple-average", model_pool={"models": nets[1]}, task_pool=Norms("a")
    )
    assert result.report is not None
    assert result.report.as_json()["reference"].keys() == {"experts"}


class Bound(Norms):
    """Tasks that need the models' files before they can be measured."""

    files: frozenset[str] = frozenset()

    def bind(self, pool: ModelPool[Any]) -> Bound:
        clone = copy.copy(self)
        clone.files = frozenset(pool.assets()) | {"known"}
        return clone

    def __getitem__(self, name: str) -> Task:
        assert "known" in self.files
        return super().__getitem__(name)


def test_tasks_are_bound_to_models_before_use(
    nets: tuple[Net, dict[str, Net]],
) -> None:
    class Looking(Algorithm[ComponentConfig]):
        config_class = ComponentConfig
        uses_tasks = True

        def tasks(self, pool: TaskPool[Any]) -> TaskPool[Any]:
            assert list(pool)
            return pool

        def run(self, pool: ModelPool[Any], context: RunContext) -> WeightSource:
            assert context.tasks is not None
            assert list(context.tasks)
            return pool.experts["a"]

    pool = {"base": nets[0], "models": nets[1]}
    tasks = Bound("a")
    assert run_fusion(algorithm=Looking(), model_pool=pool, task_pool=tasks).report is not None
    assert not tasks.files  # they are as they were


def leave(*_: object) -> None:
    sys.exit()


def refuse_for_space(*_: object) -> None:
    raise DiskError("no room for images", hint="Make some.")


@pytest.mark.parametrize(
    ("evaluate", "kind", "message", "hint"),
    [
        (None, FusionError, "the data set is gone", ""),
        (
            refuse_for_space,
            DiskError,
            "but its evaluation failed: no room for images\n",
            "Make some.\n",
        ),
        (leave, BrokenPluginError, r"the model is complete in .*: SystemExit, in ", None),
    ],
)
def test_failed_evaluation_keeps_model(  # noqa: PLR0913, PLR0917
    nets: tuple[Net, dict[str, Net]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    evaluate: Callable[..., None] | None,
    kind: type[FusionError],
    message: str,
    hint: str | None,
) -> None:
    if evaluate is not None:
        monkeypatch.setattr(Norm, "evaluate", evaluate)
    pool, output = {"base": nets[0], "models": nets[1]}, tmp_path / "out"
    with pytest.raises(kind, match=message) as caught:
        run_fusion(algorithm="ties", model_pool=pool, task_pool=Norms("a", "fails"), output=output)
    assert caught.value.exit_code == kind.exit_code
    if hint is not None:
        assert caught.value.hint == f"{hint}Try again with: fuse evaluate {output}"
    assert "the model is complete" in caught.value.message
    assert CheckpointSource(output).infos.keys() == nets[0].state_dict().keys()
    assert not (output / "report.json").exists()


def test_failed_evaluation_in_memory_raises_original_error(
    nets: tuple[Net, dict[str, Net]],
) -> None:
    pool = {"base": nets[0], "models": nets[1]}
    with pytest.raises(RuntimeError, match="gone"):
        run_fusion(algorithm="ties", model_pool=pool, task_pool=Norms("fails"))


def test_interrupted_evaluation_reports_complete_model(
    nets: tuple[Net, dict[str, Net]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object) -> None:
        raise Terminated

    monkeypatch.setattr(Norm, "evaluate", stop)
    base, experts = nets
    pool, output = {"base": base, "models": experts}, tmp_path / "out"
    with pytest.raises(Terminated) as caught:
        run_fusion(algorithm="ties", model_pool=pool, task_pool=Norms("a"), output=output)
    assert caught.value.__notes__ == [
        f"The model is complete in {output}; to measure it: fuse evaluate {output}"
    ]
    with pytest.raises(Terminated) as caught:
        run_fusion(algorithm="ties", model_pool=pool, task_pool=Norms("a"))
    assert not hasattr(caught.value, "__notes__")


def test_interrupt_after_commit_reports_complete_model(
    paths: dict[str, Any], tmp_path: Path, site: Site
) -> None:
    site.install(
        "slow-x",
        """
        from fusion_core import hookimpl
        @hookimpl
        def fusion_run_finished():
            raise KeyboardInterrupt
        """,
    )
    with pytest.raises(KeyboardInterrupt) as caught:
        run_fusion(algorithm="ties", model_pool=paths, output=tmp_path / "out")
    assert caught.value.__notes__ == [f"The model is complete in {tmp_path / 'out'}."]


class Leaving(Algorithm[ComponentConfig]):
    config_class = ComponentConfig

    def run(self, pool: ModelPool[Any], context: RunContext) -> WeightSource:
        sys.exit(0)


def test_algorithm_that_exits_raises(paths: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(BrokenPluginError, match=r"SystemExit: 0, in Leaving\.run \(.*test_run"):
        run_fusion(algorithm=Leaving(), model_pool=paths, output=tmp_path / "out")
    assert not [path for path in tmp_path.iterdir() if "out" in path.name]


def test_evaluation_can_be_disabled(nets: tuple[Net, dict[str, Net]]) -> None:
    base, experts = nets
    result = run_fusion(
        algorithm="ties",
        model_pool={"base": base, "models": experts},
        task_pool=Norms("fails"),
        options=RunOptions(evaluate=False),
    )
    assert result.report is None


def test_task_pool_without_tasks_is_refused(nets: tuple[Net, dict[str, Net]]) -> None:
    base, experts = nets
    with pytest.raises(RecipeError, match="the task pool has no tasks"):
        run_fusion(
            algorithm="ties",
            model_pool={"base": base, "models": experts},
            task_pool=Norms(),
        )


def test_only_algorithms_that_ask_for_tasks_see_them(
    nets: tuple[Net, dict[str, Net]], site: Site
) -> None:
    base, experts = nets
    site.install(
        "seeing-x",
        """
        from fusion_core import Algorithm, AlgorithmSpec, ComponentConfig, hookimpl
        SEEN = []
        class Look(Algorithm):
            config_class = ComponentConfig
            def run(self, pool, context):
                SEEN.append(context.tasks)
                return pool.base
        KEYS = {"summary": "", "target": "seeing_x:Look", "config": "seeing_x:ComponentConfig"}
        @hookimpl
        def fusion_register_algorithms():
            yield AlgorithmSpec(name="blind", **KEYS)
            yield AlgorithmSpec(name="sees", needs_tasks="unlabeled", **KEYS)
        """,
    )
    tasks = Norms("a")
    pool = {"base": base, "models": experts}
    blind = run_fusion(algorithm="blind", model_pool=pool, task_pool=tasks)
    sees = run_fusion(algorithm="sees", model_pool=pool, task_pool=tasks)
    from seeing_x import SEEN  # type: ignore[import-not-found]

    assert [None, tasks] == SEEN
    assert blind.report is not None
    assert sees.report is not None
    assert (blind.report.transductive, sees.report.transductive) == (None, False)
    with pytest.raises(RecipeError, match="needs tasks with unlabeled data"):
        run_fusion(algorithm="sees", model_pool=pool)


class Peek(Algorithm[ComponentConfig]):
    config_class = ComponentConfig
    uses_tasks = True

    def run(self, pool: ModelPool[Any], context: RunContext) -> WeightSource:
        return pool.reference if context.tasks is not None else pool.experts["a"]


class Ignore(Algorithm[ComponentConfig]):
    config_class = ComponentConfig

    def run(self, pool: ModelPool[Any], context: RunContext) -> WeightSource:
        return pool.experts["a"]


@pytest.mark.parametrize(
    ("algorithm", "transductive"), [(DropAndAverage(), None), (Ignore(), None), (Peek(), False)]
)
def test_algorithm_object_sees_tasks_only_if_declared(
    nets: tuple[Net, dict[str, Net]],
    algorithm: Algorithm[Any],
    transductive: bool | None,  # noqa: FBT001
) -> None:
    pool = {"base": nets[0], "models": nets[1]}
    report = run_fusion(algorithm=algorithm, model_pool=pool, task_pool=Norms("a")).report
    assert report is not None
    assert report.transductive is transductive


# --- hooks --------------------------------------------------------------------------------------


def test_hooks_are_called_in_order_and_cannot_stop_a_run(
    paths: dict[str, Any], site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    site.install(
        "watching-x",
        """
        from fusion_core import hookimpl
        SEEN = []
        @hookimpl
        def fusion_run_started(run):
            SEEN.append(("started", run.path.name, run.path.exists(), run.recipe["seed"]))
        @hookimpl
        def fusion_metrics_logged(run, step, metrics):
            SEEN.append(("metrics", step, dict(metrics)))
        @hookimpl
        def fusion_run_finished(run, result):
            SEEN.append(("finished", result.path.name, (result.path / "recipe.yaml").exists()))
        @hookimpl
        def fusion_output_written(path):
            SEEN.append(("written", path.name))
        """,
    )
    raising = "\n".join(
        f"""
@hookimpl
def {hook}():
    raise RuntimeError("no")
"""
        for hook in ("fusion_run_started", "fusion_metrics_logged", "fusion_run_finished")
    )
    site.install("angry-x", "from fusion_core import hookimpl\n" + raising)

    class Logging(DropAndAverage):
        def run(self, pool: ModelPool[Any], context: RunContext) -> WeightSource:
            context.log(1, {"loss": 2.0})
            context.log(2, {"loss": 1.0})
            return super().run(pool, context)

    run_fusion(algorithm=Logging(), model_pool=paths, output="out", seed=9)
    from watching_x import SEEN  # type: ignore[import-not-found]

    assert SEEN == [
        ("started", "out", False, 9),
        ("metrics", 1, {"loss": 2.0}),
        ("metrics", 2, {"loss": 1.0}),
        ("finished", "out", True),
        ("written", "out"),
    ]
    failed = [record.getMessage() for record in caplog.records if "angry-x" in record.getMessage()]
    assert [message.split(" failed in ")[1].split(":")[0] for message in failed] == [
        "fusion_run_started",
        "fusion_metrics_logged",
        "fusion_metrics_logged",
        "fusion_run_finished",
    ]


def test_failed_run_is_not_announced_as_finished(models: Models, site: Site) -> None:
    site.install(
        "watching-y",
        """
        from fusion_core import hookimpl
        SEEN = []
        @hookimpl
        def fusion_run_started(): SEEN.append("started")
        @hookimpl
        def fusion_run_finished(): SEEN.append("finished")
        """,
    )
    models["a"]["scale"] = torch.tensor(float("nan"))
    with pytest.raises(WeightsError):
        run_fusion(
            algorithm="simple-average", model_pool={"models": {"a": models["a"], "b": models["b"]}}
        )
    from watching_y import SEEN  # type: ignore[import-not-found]

    assert SEEN == ["started"]


@pytest.mark.parametrize("output", ["in", "in/base", "in/link"])
def test_output_containing_inputs_is_not_overwritten(
    models: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, output: str
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, state in models.items():
        (tmp_path / "in" / name).mkdir(parents=True)
        save_file(state, tmp_path / "in" / name / "model.safetensors")
        sign(tmp_path / "in" / name)
    (tmp_path / "in" / "link").mkdir()
    (tmp_path / "in" / "link" / "x").write_text("kept")
    sign(tmp_path / "in" / "link")
    pool = {"base": "in/base", "models": {name: f"in/{name}" for name in "ab"}}
    recipe = {"algorithm": "ties", "model_pool": pool, "output": {"path": output}}
    if output == "in/link":
        run_fusion(recipe, options=RunOptions(overwrite=True))
        assert not (tmp_path / "in" / "link" / "x").exists()
        return
    reasons = {
        "in": "in was not written by fuse",
        "in/base": "the input in/base, which --overwrite would delete",
    }
    with pytest.raises(OutputError, match=reasons[output]):
        run_fusion(recipe, options=RunOptions(overwrite=True))
    assert {path.name for path in (tmp_path / "in").iterdir()} == {*models, "link"}


# --- numbers -------------------------------------------------------------------------------------


def test_locked_output_number_is_skipped(paths: dict[str, Any]) -> None:
    Path("outputs").mkdir()
    with lock_output(Path("outputs/checkpoints-ties-1")):
        result = run_fusion(algorithm="ties", model_pool=paths)
    assert result.path == Path("outputs/checkpoints-ties-2")


def test_output_number_taken_since_planning_is_skipped(paths: dict[str, Any]) -> None:
    first, second = (plan(ties_recipe(paths), RunOptions()) for _ in range(2))
    assert first.path == second.path
    numbers = [execute(planned).path for planned in (first, second)]
    assert numbers == [Path(f"outputs/checkpoints-ties-{n}") for n in (1, 2)]


def ties_recipe(paths: dict[str, Any], *, seed: int = 0) -> dict[str, Any]:
    return {"algorithm": "ties", "model_pool": {"name": "checkpoints", **paths}, "seed": seed}


def test_each_stopped_run_resumes_its_own_work(
    paths: dict[str, Any], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def interrupt(point: str) -> None:
        if point == "headers synced":
            raise KeyboardInterrupt

    for seed in (1, 2, 3):
        monkeypatch.setattr(fault, "listener", interrupt)
        with pytest.raises(KeyboardInterrupt):
            run_fusion(ties_recipe(paths, seed=seed))
    reached: list[str] = []
    monkeypatch.setattr(fault, "listener", reached.append)
    for seed in (3, 1, 2):
        result = run_fusion(ties_recipe(paths, seed=seed), options=RunOptions(resume=True))
        assert result.path == Path(f"outputs/checkpoints-ties-{seed}")
    assert "piece written" not in reached
    assert not caplog.text


def test_unfinished_numbered_output_is_kept_and_reported(
    paths: dict[str, Any], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def interrupt(point: str) -> None:
        if point == "headers synced":
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(fault, "listener", interrupt)
        run_fusion(ties_recipe(paths))
    assert run_fusion(ties_recipe(paths)).path == Path("outputs/checkpoints-ties-2")
    assert "checkpoints-ties-1.fuse-" in caplog.text
    assert "--resume would continue it" in caplog.text


def test_second_run_fails_before_downloading(
    paths: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "_download", None)
    with lock_output(Path("out")), pytest.raises(OutputError, match="is being written by"):
        run_fusion(ties_recipe(paths), output="out")


# --- memory --------------------------------------------------------------------------------------


def test_out_of_memory_is_reported_and_work_kept(paths: dict[str, Any]) -> None:
    class Greedy(Algorithm[ComponentConfig]):
        config_class = ComponentConfig

        def run(self, pool: ModelPool[Any], context: RunContext) -> WeightSource:
            assert context.state is not None
            write_durably(context.state / "step", b"1")
            torch.empty(2**60, dtype=torch.uint8)
            return pool.experts["a"]

    with pytest.raises(FusionError, match="out of memory: ") as caught:
        run_fusion(algorithm=Greedy(), model_pool={"name": "checkpoints", **paths}, output="out")
    assert "--workers" in str(caught.value)
    assert any("--resume" in note for note in caught.value.__notes__)
