"""Methods whose result has other tensors than their models."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from fusion_core import (
    Algorithm,
    ComponentConfig,
    ModelPool,
    Outline,
    RunContext,
    RunOptions,
    WeightSource,
    check,
    plan,
    run_fusion,
)
from fusion_core.errors import BrokenPluginError, RecipeError
from fusion_core.weights import AlignedSource, StateDictSource
from fusion_testing import TinyTasks, tiny_pool

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.plugins

STACK = {
    "name": "stack",
    "slices": [{"model": "a", "layers": [0, 3]}, {"model": "b", "layers": [1, 3]}],
}


#: As many layers as the models have, in another order.
SWAPPED = {
    "name": "stack",
    "slices": [{"model": "a", "layers": [1, 3]}, {"model": "b", "layers": [0, 1]}],
}


class Doubled(Algorithm[ComponentConfig]):
    """The first expert with its last layer twice, as a source or as a live model."""

    config_class = ComponentConfig
    is_live = False
    promises = 2

    def outline(self, pool: ModelPool[Any]) -> Outline:
        infos = pool.reference.infos
        doubled = {
            name: replace(infos[name], shape=(self.promises * rows, *rest))
            for name, (rows, *rest) in (("3.weight", (4, 16)), ("3.bias", (4,)))
        }
        return Outline({**infos, **doubled})

    def run(self, pool: ModelPool[Any], context: RunContext) -> WeightSource | nn.Module:
        expert = next(iter(pool.experts.values()))
        tensors = {name: expert.tensor(name) for name in ("3.weight", "3.bias")}
        twice = {name: torch.cat([tensor, tensor]) for name, tensor in tensors.items()}
        source = AlignedSource(StateDictSource(twice), expert)
        if not self.is_live:
            return source
        module = nn.Sequential(nn.Flatten(), nn.Linear(48, 16), nn.Tanh(), nn.Linear(16, 8))
        module.load_state_dict(source.state_dict())
        return module


@pytest.mark.parametrize("form", ["source", "live model"])
def test_the_result_has_the_tensors_of_the_outline(
    form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Doubled, "is_live", form == "live model")
    pool = tiny_pool("mlp")
    weights = run_fusion(algorithm=Doubled(), model_pool=pool).weights
    assert weights.infos["3.weight"].shape == (8, 16)
    assert torch.equal(weights.tensor("3.bias"), pool.experts["a"].tensor("3.bias").repeat(2))


def test_a_result_with_other_tensors_than_the_outline_is_the_plugins_fault(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Doubled, "promises", 3)
    with pytest.raises(BrokenPluginError, match=r"its outline has: 2, among them '3\.bias'"):
        run_fusion(algorithm=Doubled(), model_pool=tiny_pool("mlp"))


@pytest.fixture
def pool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Write models of three and of five layers; return the section that names the first."""
    monkeypatch.chdir(tmp_path)
    for seed, (name, layers) in enumerate({"base": 3, "a": 3, "b": 3, "deep": 5}.items()):
        draw = torch.Generator().manual_seed(seed)
        state = {f"layers.{n}.w": torch.randn(8, 8, generator=draw) for n in range(layers)}
        (tmp_path / name).mkdir()
        save_file({n: value.bfloat16() for n, value in state.items()}, f"{name}/model.safetensors")
        config = {
            "num_hidden_layers": layers,
            "layer_types": ["t0", "t1", "t2", "t1", "t2"][:layers],
        }
        (tmp_path / name / "config.json").write_text(json.dumps(config))
    return {"base": "base", "models": {"a": "a", "b": "b"}}


def test_the_check_predicts_the_run(pool: dict[str, Any], tmp_path: Path) -> None:
    recipe = {"algorithm": STACK, "model_pool": pool, "output": {"path": "out"}}
    checked = check(plan(recipe, RunOptions()))
    run_fusion(recipe)
    provenance = json.loads((tmp_path / "out" / "provenance.json").read_text())["predicate"]
    assert checked.tensors == provenance["tensors"] == {"merged": 5, "copied": 0, "dropped": 0}
    files = (tmp_path / "out" / name for name in ("model.safetensors", "config.json"))
    assert checked.disk.needed == sum(path.stat().st_size for path in files)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config == {"num_hidden_layers": 5, "layer_types": ["t0", "t1", "t2", "t1", "t2"]}


@pytest.mark.parametrize("role", ["base", "d"])
def test_a_recipe_with_another_outline_may_be_a_model(pool: dict[str, Any], role: str) -> None:
    inner = {"algorithm": STACK, "model_pool": pool}
    run_fusion({**inner, "output": {"path": "between"}})
    for number, model in enumerate(("between", inner)):
        named = {"base": "deep", "d": "deep", role: model}
        models = {"base": named["base"], "models": {"d": named["d"]}}
        run_fusion(
            algorithm="task-arithmetic",
            model_pool=models,
            output={"path": f"out-{number}", "dtype": "float32"},
        )
    first, second = (load_file(f"out-{number}/model.safetensors") for number in range(2))
    assert len(first) == 5
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize(
    ("algorithm", "message"),
    [
        ([STACK, "lines"], "lines works on a merge that has the models' tensors, .* has others"),
        ([SWAPPED, "lines"], "lines works on .* the result of stack has them in other places"),
        (["core-space", SWAPPED], "core-space works on .* has them in other places"),
        ({**SWAPPED, "skip": "**.0.**"}, r"algorithm\.skip: stack takes .* in other places"),
        (["core-space", STACK], "core-space works on a merge that has the models' tensors"),
        ({**STACK, "only": "**.0.**"}, r"algorithm\.only: stack takes"),
        ({**STACK, "skip": "**.0.**"}, r"algorithm\.skip: stack takes"),
        (
            {**STACK, "overrides": [{"match": "**.0.**", "slices": STACK["slices"]}]},
            r"algorithm\.overrides",
        ),
    ],
)
def test_stages_and_options_that_need_the_models_tensors_are_refused(
    pool: dict[str, Any], algorithm: Any, message: str
) -> None:
    with pytest.raises(RecipeError, match=message):
        plan({"algorithm": algorithm, "model_pool": pool}, RunOptions())


def test_layers_in_their_places_take_every_stage_and_option(pool: dict[str, Any]) -> None:
    slices = [{"model": "a", "layers": [0, 1]}, {"model": "b", "layers": [1, 3]}]
    stack = {"name": "stack", "slices": slices}
    a, b = (load_file(f"{name}/model.safetensors") for name in "ab")
    expected = {name: a[name] if name == "layers.0.w" else b[name] for name in a}
    for algorithm in (stack, ["core-space", stack]):
        merged = run_fusion(algorithm=algorithm, model_pool=pool, output=None).weights
        for name, tensor in expected.items():
            torch.testing.assert_close(merged.tensor(name), tensor, rtol=1e-5, atol=1e-5)


def test_a_transform_before_another_outline_takes_patterns(pool: dict[str, Any]) -> None:
    trim = {"name": "trim", "density": 0.5, "only": "layers.1.*"}
    run_fusion(algorithm=[trim, STACK], model_pool=pool, output="out")
    tensors = load_file("out/model.safetensors")
    assert torch.equal(tensors["layers.0.w"], load_file("a/model.safetensors")["layers.0.w"])
    assert not torch.equal(tensors["layers.1.w"], load_file("a/model.safetensors")["layers.1.w"])


def test_tasks_are_refused_where_the_pool_cannot_build_the_result() -> None:
    live = tiny_pool("mlp")
    with pytest.raises(RecipeError, match="builds models with the tensors of its own"):
        plan({"algorithm": Doubled(), "model_pool": live, "task_pool": TinyTasks()}, RunOptions())
