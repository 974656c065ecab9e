"""Nested recipes: merges of merges, without intermediate files."""

from __future__ import annotations

import json
import pickle
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from fusion_core import run_fusion
from fusion_core.checking.check import scan
from fusion_core.commands import read_provenance
from fusion_core.contracts.algorithm import Algorithm
from fusion_core.contracts.batch import Batch, Split
from fusion_core.contracts.task_pool import AdaptiveTask, Task, TaskPool
from fusion_core.errors import AlignmentError, BrokenPluginError, CheckpointError, RecipeError
from fusion_core.planning.plan import plan
from fusion_core.planning.run_options import RunOptions
from fusion_core.plugins.recipe_files import load_recipe
from fusion_core.recipe.config import ComponentConfig
from fusion_core.recipe.text import dump_yaml
from fusion_core.recipe.validation import validate
from fusion_core.running.run import execute
from fusion_ties.ties import Ties
from pools_checkpoints import CheckpointsConfig

if TYPE_CHECKING:
    from pathlib import Path

    from conftest import Site
    from fusion_core.contracts.context import RunContext
    from fusion_core.contracts.model_pool import ModelPool
    from fusion_core.weights import WeightSource

pytestmark = pytest.mark.plugins

ADAPTER = "adapter_model.safetensors"
Models = dict[str, dict[str, torch.Tensor]]


@pytest.fixture
def inner(models: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Save the models in bf16 below the working directory; return a recipe that merges two."""
    monkeypatch.chdir(tmp_path)
    for name, state in models.items():
        directory = tmp_path / "in" / name
        directory.mkdir(parents=True)
        half = {n: v.bfloat16() if v.is_floating_point() else v for n, v in state.items()}
        save_file(half, directory / "model.safetensors")
        (directory / "config.json").write_text('{"model_type": "toy"}')
    return {
        "algorithm": {"name": "ties", "density": 0.4},
        "model_pool": {"base": "in/base", "models": {"a": "in/a", "b": "in/b"}},
    }


def outer(math: object, **models: object) -> dict[str, Any]:
    return {
        "algorithm": {"name": "task-arithmetic", "scale": 0.7},
        "model_pool": {"base": "in/base", "models": {"math": math, "c": "in/c", **models}},
    }


def weights_of(directory: Path) -> bytes:
    return (directory / "model.safetensors").read_bytes()


@pytest.mark.parametrize("name", ["ties", "task-arithmetic", "simple-average"])
@pytest.mark.parametrize("scope", ["model", "tensor"])
def test_a_nested_recipe_equals_a_directory_with_its_result(
    inner: dict[str, Any], tmp_path: Path, name: str, scope: str
) -> None:
    inner["algorithm"]["scope"] = scope
    run_fusion({**inner, "output": {"path": "between", "dtype": "float32"}})
    algorithm = {"name": name, **({"scope": scope} if name == "ties" else {})}
    run_fusion({**outer("between"), "algorithm": algorithm, "output": {"path": "two-steps"}})
    run_fusion({**outer(inner), "algorithm": algorithm, "output": {"path": "one-step"}})
    assert weights_of(tmp_path / "one-step") == weights_of(tmp_path / "two-steps")
    assert sorted(p.name for p in (tmp_path / "one-step").iterdir()) == sorted(
        p.name for p in (tmp_path / "two-steps").iterdir()
    )


def test_a_nested_result_is_rounded_only_on_request(inner: dict[str, Any], tmp_path: Path) -> None:
    run_fusion({**inner, "output": {"path": "between"}})  # bf16, as the base
    run_fusion({**outer("between"), "output": {"path": "two-steps"}})
    rounded = {**inner, "output": {"path": "nowhere", "dtype": "bfloat16"}}
    run_fusion({**outer(rounded), "output": {"path": "rounded"}})
    run_fusion({**outer(inner), "output": {"path": "exact"}})
    assert weights_of(tmp_path / "rounded") == weights_of(tmp_path / "two-steps")
    assert weights_of(tmp_path / "exact") != weights_of(tmp_path / "two-steps")
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize(("nested_dtype", "expected"), [(None, "float32"), ("float16", "float16")])
def test_the_configuration_names_the_dtype_of_a_merge_on_a_nested_base(
    inner: dict[str, Any], tmp_path: Path, nested_dtype: str | None, expected: str
) -> None:
    for config in (tmp_path / "in").glob("*/config.json"):
        config.write_text('{"model_type": "toy", "torch_dtype": "bfloat16"}')
    base = {**inner, **({"output": {"dtype": nested_dtype}} if nested_dtype else {})}
    pool = {"base": base, "models": {"c": "in/c"}}
    run_fusion(algorithm="task-arithmetic", model_pool=pool, output="out")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == expected
    stored = load_file(tmp_path / "out" / "model.safetensors")
    assert stored["layer.weight"].dtype is getattr(torch, expected)


def test_a_recipe_under_adapters_is_run_once(
    inner: dict[str, Any], tmp_path: Path, models: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, into = models["base"]["layer.weight"].shape
    config = {"peft_type": "LORA", "r": 1, "lora_alpha": 1}
    for number, name in enumerate("xy"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "adapter_config.json").write_text(json.dumps(config))
        layer = "base_model.model.layer.lora"
        pair = {f"{layer}_A.weight": torch.ones(1, into), f"{layer}_B.weight": torch.ones(out, 1)}
        save_file({n: v + number for n, v in pair.items()}, tmp_path / name / ADAPTER)
    runs: list[str] = []
    original_run = Ties.run
    monkeypatch.setattr(Ties, "run", lambda *all: runs.append("ties") or original_run(*all))
    pool = {"base": inner, "models": {"x": "x", "y": "y"}}
    recipe = {"algorithm": "task-arithmetic", "model_pool": pool}
    run_fusion({**recipe, "output": {"path": "out"}})
    assert runs == ["ties"]
    scanned = scan(plan(recipe, RunOptions()))
    assert scanned == []
    save_file({n: v * torch.nan for n, v in pair.items()}, tmp_path / "y" / ADAPTER)
    assert {bad.model for bad in scan(plan(recipe, RunOptions()))} == {"y"}


def test_an_adapter_differs_from_the_merge_that_is_its_base(
    inner: dict[str, Any], tmp_path: Path, models: Models
) -> None:
    (tmp_path / "x").mkdir()
    config = {"peft_type": "LORA", "r": 1, "lora_alpha": 1, "bias": "all"}
    (tmp_path / "x/adapter_config.json").write_text(json.dumps(config))
    whole = {"base_model.model.layer.bias": torch.ones_like(models["base"]["layer.bias"])}
    save_file(whole, tmp_path / "x" / ADAPTER)
    run_fusion({**inner, "output": {"path": "between", "dtype": "float32"}})
    for base, path in ((inner, "one-step"), ("between", "two-steps")):
        pool = {"base": base, "models": {"x": "x"}}
        run_fusion(algorithm="task-arithmetic", model_pool=pool, output=path)
    assert weights_of(tmp_path / "one-step") == weights_of(tmp_path / "two-steps")
    save_file({name: value / 0 for name, value in whole.items()}, tmp_path / "x" / ADAPTER)
    recipe = {"algorithm": "ties", "model_pool": {"base": inner, "models": {"x": "x"}}}
    (bad_tensor,) = scan(plan(recipe, RunOptions()))  # what the adapter itself holds
    assert (bad_tensor.model, bad_tensor.tensor) == ("x", "layer.bias")


def test_a_file_a_list_and_the_base_may_be_recipes(inner: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "math.yaml").write_text(dump_yaml(inner))
    run_fusion({**outer(inner), "output": {"path": "inline"}})
    run_fusion({**outer("math.yaml"), "output": {"path": "file"}})
    assert weights_of(tmp_path / "inline") == weights_of(tmp_path / "file")
    pool = {"base": "math.yaml", "models": ["math.yaml", "in/c"]}
    planned = plan({"algorithm": "ties", "model_pool": pool}, RunOptions())
    assert list(planned.pool.experts) == ["math", "c"]
    assert list(planned.nested) == ["base", "math"]
    run_fusion({"algorithm": "ties", "model_pool": pool, "output": {"path": "on-a-merge"}})
    stored = load_file(tmp_path / "on-a-merge" / "model.safetensors")
    assert stored["layer.weight"].dtype is torch.float32  # the base's: a merge, not rounded
    assert (tmp_path / "on-a-merge" / "config.json").is_file()


def test_recipes_nest_deeper(inner: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "one.yaml").write_text(dump_yaml(inner))
    (tmp_path / "two.yaml").write_text(dump_yaml(outer("one.yaml")))
    run_fusion({**inner, "output": {"path": "one", "dtype": "float32"}})
    run_fusion({**outer("one"), "output": {"path": "two", "dtype": "float32"}})
    run_fusion({**outer("two"), "output": {"path": "by-steps"}})
    run_fusion({**outer("two.yaml"), "output": {"path": "at-once"}})
    assert weights_of(tmp_path / "at-once") == weights_of(tmp_path / "by-steps")


@pytest.mark.parametrize("workers", [1, 3])
def test_workers_do_not_change_a_nested_merge(
    inner: dict[str, Any], tmp_path: Path, workers: int
) -> None:
    recipe = {**outer(inner), "algorithm": "ties"}
    run_fusion({**recipe, "output": {"path": "serial"}}, options=RunOptions(executor="serial"))
    run_fusion({**recipe, "output": {"path": "out"}}, options=RunOptions(workers=workers))
    assert weights_of(tmp_path / "out") == weights_of(tmp_path / "serial")


def test_a_recorded_recipe_contains_nested_ones_and_gives_the_same_files(
    inner: dict[str, Any], tmp_path: Path
) -> None:
    (tmp_path / "math.yaml").write_text(dump_yaml(inner))
    run_fusion({**outer("math.yaml"), "output": {"path": "one"}})
    recorded = load_recipe(tmp_path / "one" / "recipe.yaml")
    assert recorded["model_pool"]["models"]["math"]["algorithm"]["density"] == 0.4
    assert recorded["model_pool"]["models"]["math"]["algorithm"]["scale"] == 1.0  # the default
    (tmp_path / "math.yaml").unlink()
    run_fusion(recorded, output="two")
    for path in (tmp_path / "one").iterdir():
        if path.name != "provenance.json":
            assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes(), path.name
    first, second = (
        read_provenance(tmp_path / name).model_dump(exclude={"run"}) for name in ("one", "two")
    )
    assert first == second


def test_the_provenance_names_nested_inputs(inner: dict[str, Any], tmp_path: Path) -> None:
    run_fusion({**outer(inner), "output": {"path": "out"}})
    provenance = json.loads((tmp_path / "out" / "provenance.json").read_text())["predicate"]
    assert provenance["inputs"]["math"]["source"] == "merge by ties"
    assert list(provenance["inputs"]["math"]["inputs"]) == ["base", "a", "b"]
    assert provenance["inputs"]["math"]["inputs"]["a"]["source"] == "a"
    assert "files" in provenance["inputs"]["math"]["inputs"]["a"]
    assert {"fusion-linear", "fusion-ties"} <= provenance["plugins"].keys()


def test_a_nested_recipe_keeps_its_own_seed_and_patterns(
    inner: dict[str, Any], models: Models
) -> None:
    inner["algorithm"]["only"] = "layer.weight"
    result = run_fusion({**outer(inner), "output": {"path": "out"}, "seed": 5})
    base, c = (models[name]["layer.bias"].bfloat16().float() for name in ("base", "c"))
    bias = result.weights.tensor("layer.bias")
    assert torch.equal(bias, (base + 0.7 * (c - base)).bfloat16())


def test_a_nested_merge_may_have_a_larger_vocabulary_than_the_base(
    inner: dict[str, Any], models: Models, tmp_path: Path
) -> None:
    sizes = {"base": 11, "a": 14, "b": 11, "c": 11}
    for number, (name, rows) in enumerate(sizes.items()):
        state = {**models[name], "lm_head.weight": torch.full((rows, 3), float(number))}
        save_file(state, tmp_path / "in" / name / "model.safetensors")
    inner["alignment"] = {"vocab": "pad"}
    run_fusion({**inner, "output": {"path": "between", "dtype": "float32"}})
    padded = {"alignment": {"vocab": "pad"}}
    run_fusion({**outer("between"), **padded, "output": {"path": "two-steps"}})
    run_fusion({**outer(inner), **padded, "output": {"path": "one-step"}})
    assert weights_of(tmp_path / "one-step") == weights_of(tmp_path / "two-steps")
    with pytest.raises(AlignmentError, match=r"lm_head\.weight  math"):
        run_fusion({**outer(inner), "output": {"path": "refused"}})


@pytest.mark.parametrize("larger", ["a", "c"])  # padded inside, or where it is the base
def test_the_configuration_says_how_many_tokens_a_padded_nested_base_has(
    inner: dict[str, Any], models: Models, tmp_path: Path, larger: str
) -> None:
    for name, rows in {"base": 11, "a": 11, "b": 11, "c": 11, larger: 14}.items():
        state = {**models[name], "lm_head.weight": torch.full((rows, 3), float(rows))}
        save_file(state, tmp_path / "in" / name / "model.safetensors")
        (tmp_path / "in" / name / "config.json").write_text(f'{{"vocab_size": {rows}}}')
    (tmp_path / "in" / larger / "vocab.txt").write_text("fourteen words")
    padded = {"alignment": {"vocab": "pad"}}
    recipe = {**outer("in/c"), **padded, "output": {"path": "out"}}
    recipe["model_pool"]["base"] = {**inner, **padded}
    run_fusion(recipe)
    assert json.loads((tmp_path / "out/config.json").read_text())["vocab_size"] == 14
    assert (tmp_path / "out/vocab.txt").read_text() == "fourteen words"


# --- what cannot be -----------------------------------------------------------------------------


def test_recipes_that_need_each_other_are_refused(inner: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "one.yaml").write_text(dump_yaml(outer("two.yaml")))
    (tmp_path / "two.yaml").write_text(dump_yaml(outer("./one.yaml")))
    with pytest.raises(RecipeError, match=r"each other .*: two\.yaml -> one\.yaml -> two\.yaml"):
        run_fusion("one.yaml")
    (tmp_path / "self.yaml").write_text(dump_yaml(outer("self.yaml")))
    with pytest.raises(RecipeError, match=r": self\.yaml -> self\.yaml"):
        run_fusion("self.yaml")


def test_two_models_may_be_the_same_recipe(inner: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "math.yaml").write_text(dump_yaml(inner))
    run_fusion({**outer("math.yaml", again="math.yaml"), "output": {"path": "out"}})
    assert (tmp_path / "out" / "model.safetensors").is_file()


def test_errors_name_the_nested_recipe(inner: dict[str, Any], tmp_path: Path) -> None:
    inner["algorithm"] |= {"densty": 1, "scope": "all"}
    (tmp_path / "math.yaml").write_text(dump_yaml(inner))
    with pytest.raises(RecipeError) as error:
        run_fusion(outer("math.yaml"))
    assert [line.partition(" ")[0] for line in error.value.message.splitlines()] == [
        "math.yaml:",
        "math.yaml:",
    ]
    assert "did you mean density" in error.value.message
    with pytest.raises(
        RecipeError, match=r"nested recipe \(algorithm: \{'name': 'ties'.*: algorithm\."
    ):
        run_fusion(outer(inner))
    with pytest.raises(RecipeError, match=r"recipe not found: gone\.yaml"):
        run_fusion(outer("gone.yaml"))


def test_a_missing_nested_model_names_the_recipe(inner: dict[str, Any], tmp_path: Path) -> None:
    inner["model_pool"]["models"]["a"] = "./in/nowhere"
    (tmp_path / "math.yaml").write_text(dump_yaml(inner))
    with pytest.raises(CheckpointError, match=r"math\.yaml: .*in/nowhere"):
        run_fusion(outer("math.yaml"))


def test_nested_models_and_their_merge_must_fit(
    inner: dict[str, Any], models: Models, tmp_path: Path
) -> None:
    odd = {**models["a"], "layer.weight": torch.zeros(2, 2)}
    save_file(odd, tmp_path / "odd.safetensors")
    broken = {**inner, "model_pool": {"base": "in/base", "models": ["odd.safetensors"]}}
    with pytest.raises(AlignmentError, match=r"layer\.weight  odd: shape"):
        run_fusion({**outer(broken), "output": {"path": "out"}})
    with pytest.raises(AlignmentError, match=r"^nested recipe .*fit together") as error:
        plan(outer(broken), RunOptions())
    assert "\n  layer.weight  odd: shape" in error.value.message  # a table stays one
    alone = {"algorithm": "simple-average", "model_pool": {"models": ["odd.safetensors"]}}
    with pytest.raises(AlignmentError, match=r"layer\.weight  math: shape"):
        run_fusion({**outer(alone), "output": {"path": "out"}})
    assert not (tmp_path / "out").exists()


def test_a_nested_method_that_needs_tasks_asks_for_its_own(inner: dict[str, Any]) -> None:
    inner["algorithm"] = "adamerging"
    with pytest.raises(RecipeError, match=r"'adamerging'\): algorithm 'adamerging' needs"):
        run_fusion(outer(inner))


def test_other_pools_refuse_nested_recipes(inner: dict[str, Any]) -> None:
    config = {"base": "in/base", "models": {"math": inner}}
    with pytest.raises(RecipeError, match="needs a run to merge it"):
        validate(CheckpointsConfig, config)
    with pytest.raises(RecipeError, match=r"model_pool\.models\.math = .*expected a string"):
        run_fusion({"algorithm": "ties", "model_pool": {"name": "clip", **config}})


# --- live models, tasks, and what algorithms save -----------------------------------------------


class Scores(AdaptiveTask):
    name = "scores"

    def batch(self, step: int, *, size: int, split: Split, seed: int) -> Batch:
        generator = torch.Generator().manual_seed(step)
        return Batch(torch.randn(size, 3, generator=generator))

    def logits(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        return model(batch.inputs)

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        return {"accuracy": 0.5}


class ScorePool(TaskPool[ComponentConfig]):
    config_class = ComponentConfig
    names = ("scores",)

    def __getitem__(self, name: str) -> Task:
        return Scores()


def test_a_nested_search_uses_its_own_tasks_and_saves_its_files(tmp_path: Path) -> None:
    torch.manual_seed(0)
    base, a, b = (nn.Linear(3, 4) for _ in range(3))
    searched = {
        "algorithm": {"name": "adamerging", "steps": 2},
        "model_pool": {"base": base, "models": {"a": a, "b": b}},
        "task_pool": ScorePool(ComponentConfig()),
    }
    recipe = {
        "algorithm": "task-arithmetic",
        "model_pool": {"base": base, "models": {"x y": searched, "b": b}},
    }
    result = run_fusion(recipe)
    assert result.path is None  # live models: nothing is written unless asked
    assert {"x-y.coefficients.json", "x-y.metrics.jsonl"} <= result.side_files.keys()
    assert all(name.startswith("x-y.") for name in result.side_files)
    alone = run_fusion(searched, options=RunOptions(evaluate=False))
    assert alone.side_files["coefficients.json"] == result.side_files["x-y.coefficients.json"]
    by_hand = run_fusion(
        {**recipe, "model_pool": {"base": base, "models": {"x": alone.model, "b": b}}}
    )
    assert torch.equal(result.weights.tensor("weight"), by_hand.weights.tensor("weight"))
    written = run_fusion(recipe, output=tmp_path / "out")
    assert (written.path / "x-y.coefficients.json").is_file()  # type: ignore[operator]


class SeenPool(ScorePool):
    transductive = True

    def holdout(self) -> ScorePool:
        return ScorePool(self.config)


@pytest.mark.parametrize(("tasks", "marked"), [(SeenPool, True), (ScorePool, False)])
def test_a_transductive_nested_search_marks_the_report(
    tasks: type[ScorePool],
    marked: bool,  # noqa: FBT001
) -> None:
    base, a, b = (nn.Linear(3, 4) for _ in range(3))
    searched: dict[str, Any] = {
        "algorithm": {"name": "adamerging", "steps": 1},
        "model_pool": {"base": base, "models": {"a": a, "b": b}},
        "task_pool": tasks(ComponentConfig()),
    }
    recipe = {
        "algorithm": "task-arithmetic",
        "model_pool": {"base": base, "models": {"x": searched, "b": b}},
        "task_pool": ScorePool(ComponentConfig()),
    }
    report = run_fusion(recipe).report
    assert report is not None
    assert report.transductive is marked
    searched["algorithm"]["adapt_split"] = "holdout"
    if marked:
        with pytest.raises(RecipeError, match=r"adamerging.* adapts on a part"):
            run_fusion(recipe)


class Average(Algorithm[ComponentConfig]):
    """Reads whole tensors in `run`, unlike a lazy merge."""

    config_class = ComponentConfig

    def run(self, pool: ModelPool[Any], context: RunContext) -> WeightSource:
        assert all(
            expert.tensor("layer.weight").isfinite().all() for expert in pool.experts.values()
        )
        return next(iter(pool.experts.values()))


def test_a_method_may_read_a_nested_merge_when_it_runs(inner: dict[str, Any]) -> None:
    result = run_fusion({**outer(inner), "algorithm": Average()}, output="out")
    assert result.weights.tensor("layer.weight").isfinite().all()


def test_a_nested_merge_can_be_pickled(inner: dict[str, Any]) -> None:
    source = run_fusion({**outer(inner), "output": {"path": "out"}}).pool.experts["math"]
    unpickled = pickle.loads(pickle.dumps(source))
    assert torch.equal(unpickled.tensor("layer.weight"), source.tensor("layer.weight"))


def test_carrying_out_a_plan_does_not_change_it(
    inner: dict[str, Any],
) -> None:
    planned = plan({**outer(inner), "output": {"path": "out"}}, RunOptions())
    placeholder = planned.pool.experts["math"]
    execute(planned)
    assert planned.pool.experts["math"] is placeholder
    with pytest.raises(BrokenPluginError, match="merge by ties was read before it was made"):
        placeholder.tensor("layer.weight")


def test_a_merge_in_memory_can_be_a_model(models: Models) -> None:
    pool = {"base": models["base"], "models": {"a": models["a"], "b": models["b"]}}
    first = run_fusion(algorithm="ties", model_pool=pool).weights
    second = run_fusion(
        algorithm="ties", model_pool={"base": models["base"], "models": {"m": first}}
    )
    assert second.weights.infos.keys() == models["base"].keys()


def test_a_warning_of_several_recipes_appears_once(inner: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "in" / "a" / "config.json").write_text('{"model_type": "toy", "x": 2}')
    (tmp_path / "in" / "base" / "config.json").write_text('{"model_type": "toy", "x": 1}')
    planned = plan(outer(inner, again=dict(inner)), RunOptions())
    assert planned.warnings == [
        "math/a: config.json x: 2, the base's is 1 (also in again)",
    ]


def test_a_warning_of_a_nested_run_names_the_model(
    inner: dict[str, Any], tmp_path: Path, site: Site
) -> None:
    site.install(
        "warning-x",
        """
        from fusion_core import Algorithm, AlgorithmSpec, ComponentConfig, hookimpl

        class Warning(Algorithm):
            config_class = ComponentConfig
            def run(self, pool, context):
                context.warn("it saw no layer at work")
                return pool.experts["a"]

        @hookimpl
        def fusion_register_algorithms():
            yield AlgorithmSpec(
                name="warning", summary="", target="warning_x:Warning",
                config="warning_x:ComponentConfig",
            )
        """,
    )
    inner["algorithm"] = "warning"
    run_fusion({**outer(inner), "output": {"path": "out"}})
    statement = json.loads((tmp_path / "out" / "provenance.json").read_text())["predicate"]
    assert "math/it saw no layer at work" in statement["warnings"]
