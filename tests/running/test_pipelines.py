"""Pipelines: what stages see, in which order, how often, and what a run records."""

from __future__ import annotations

import json
from collections import Counter
from typing import TYPE_CHECKING, Any, ClassVar

import pytest
import torch

from fusion_core import (
    Algorithm,
    Calibration,
    ComponentConfig,
    Coordinates,
    Cut,
    RunContext,
    TensorwiseCalibration,
    Transform,
    merge,
    run_fusion,
)
from fusion_core.errors import BrokenPluginError, RecipeError
from fusion_core.recipe.text import load_yaml
from fusion_core.weights import Kernel, Piece, Scope, sum_in_order
from fusion_testing import TinyTasks, tiny_pool
from fusion_ties.transforms import Elect, Trim

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from conftest import Outcome
    from fusion_core import ModelPool, WeightSource

pytestmark = pytest.mark.plugins

Models = dict[str, dict[str, torch.Tensor]]
TA = {"name": "task-arithmetic", "scale": 1.0}


def pool_of(models: Models) -> dict[str, Any]:
    return {"base": models["base"], "models": {n: models[n] for n in models if n != "base"}}


def state(stages: Any, models: Models) -> dict[str, torch.Tensor]:
    return merge(stages, pool_of(models)).state_dict()


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(one[name], value) for name, value in other.items())


class Doubled(Transform[ComponentConfig]):
    """Doubles every task vector and counts its calls per piece."""

    config_class = ComponentConfig
    asked: ClassVar[Counter[tuple[str, int]]] = Counter()

    def rows(self, piece: Piece) -> torch.Tensor:
        self.asked[piece.info.name, piece.start] += 1
        return piece.task_vectors * 2


class Whole(Doubled):
    """Doubles whole tensors."""

    cut = Cut.TENSOR


class Halfway(TensorwiseCalibration[ComponentConfig]):
    config_class = ComponentConfig

    def merge(self, piece: Piece) -> torch.Tensor:
        return piece.base + (piece.merged - piece.base) / 2


class Turned(Coordinates[ComponentConfig]):
    """Task vectors with the opposite sign."""

    config_class = ComponentConfig

    def rows(self, piece: Piece) -> torch.Tensor:
        return -piece.task_vectors

    def restore(self, piece: Piece) -> torch.Tensor:
        return -piece.merged


class Largest(Algorithm[ComponentConfig]):
    """The largest entry of all models, the base included."""

    config_class = ComponentConfig

    def run(self, pool: ModelPool[Any], context: RunContext) -> WeightSource:
        return context.merge(pool, _Largest())


class _Largest(Kernel):
    def merge(self, piece: Piece) -> torch.Tensor:
        return torch.maximum(piece.experts.amax(0), piece.base)


# --- what stages see ----------------------------------------------------------------------------


def test_a_pipeline_computed_by_hand() -> None:
    base = {"w": torch.zeros(2, 2)}
    one = {"w": torch.tensor([[1.0, -2.0], [0.5, 0.0]])}
    two = {"w": torch.tensor([[-3.0, -1.0], [0.5, 4.0]])}
    pool = {"base": base, "models": {"one": one, "two": two}}
    trim = {"name": "trim", "density": 0.5}  # keeps 1, -2 and -3, 4
    merged = merge([trim, TA], pool)
    assert merged.tensor("w").tolist() == [[-2, -2], [0, 4]]
    elected = merge([trim, "elect", TA], pool)  # 1 is not of the elected sign
    assert elected.tensor("w").tolist() == [[-3, -2], [0, 4]]
    one_votes = {"name": "elect", "weights": {"two": 0}, "zero_sign": "positive"}
    assert merge([one_votes, TA], pool).tensor("w").tolist() == [[1, -3], [1, 4]]
    two_votes_against = {"name": "elect", "weights": {"two": -1}, "zero_sign": "positive"}
    # sums [[4, -1], [0, -4]]: -3 and 4 voted for the sign that is elected, and so did -2
    assert merge([two_votes_against, TA], pool).tensor("w").tolist() == [[-2, -2], [0.5, 4]]
    halved = merge([trim, Elect(), TA, Halfway()], pool)
    assert halved.tensor("w").tolist() == [[-1.5, -1], [0, 2]]


@pytest.mark.parametrize("scope", ["model", "tensor"])
def test_ties_after_trim_is_ties(models: Models, scope: str) -> None:
    ties = {"name": "ties", "scope": scope}
    staged = [{"name": "trim", "density": 0.3, "scope": scope}, {**ties, "density": 1.0}]
    assert same(state(staged, models), state({**ties, "density": 0.3}, models))


def test_method_that_reads_experts_sees_transform(models: Models) -> None:
    merged = state([Doubled(), "simple-average"], models)
    base, plain = models["base"], state("simple-average", models)
    expected = base["layer.weight"] + 2 * (plain["layer.weight"] - base["layer.weight"])
    torch.testing.assert_close(merged["layer.weight"], expected)
    assert torch.equal(merged["steps"], models["base"]["steps"])


@pytest.mark.parametrize("transform", [Doubled, Whole])
@pytest.mark.parametrize("workers", [1, 3])
def test_transform_is_computed_once_per_pass(transform: type[Doubled], workers: int) -> None:
    pool = tiny_pool("mlp", experts=4)
    options = {"executor": {"name": "threads", "workers": workers}}
    transform.asked.clear()
    result = run_fusion({"algorithm": [transform(), TA], "model_pool": pool, **options})
    assert result.path is None
    assert set(transform.asked.values()) == {1}, "once, not once per expert"
    transform.asked.clear()
    run_fusion({"algorithm": [transform(), "ties"], "model_pool": pool, **options})
    assert max(transform.asked.values()) <= 5, "a sample, a count, votes, the merge"


def test_transforms_compose(models: Models) -> None:
    scaled = {"name": "task-arithmetic", "scale": 4.0}
    assert same(state([Doubled(), Doubled(), TA], models), state(scaled, models))


class Drop(Transform[ComponentConfig]):
    config_class = ComponentConfig

    def rows(self, piece: Piece) -> torch.Tensor:
        rows = [row * (piece.uniform(n) < 0.5) for n, row in enumerate(piece.task_vectors)]
        return torch.stack(rows)


def test_repeated_transform_draws_other_random_numbers(models: Models) -> None:
    base = models["base"]["layer.weight"]
    once, twice = (
        int((state([*[Drop()] * count, TA], models)["layer.weight"] != base).sum())
        for count in (1, 2)
    )
    assert twice < once


class Looks(Calibration[ComponentConfig]):
    """Records its arguments."""

    config_class = ComponentConfig
    saw: ClassVar[dict[str, torch.Tensor]] = {}

    def calibrate(
        self, merged: WeightSource, pool: ModelPool[Any], context: RunContext
    ) -> WeightSource:
        self.saw["merged"] = merged.tensor("layer.weight")
        self.saw["expert"] = pool.experts["a"].tensor("layer.weight")
        context.save("looked.json", {"seen": True})
        context.log(0, {"loss": 1.0})
        return merged


def test_calibration_sees_merge_and_original_models(models: Models) -> None:
    result = run_fusion(algorithm=[Doubled(), TA, Looks()], model_pool=pool_of(models))
    assert torch.equal(Looks.saw["expert"], models["a"]["layer.weight"])
    assert torch.equal(Looks.saw["merged"], result.weights.tensor("layer.weight"))
    assert set(result.side_files) == {"fused.looked.json", "fused.metrics.jsonl"}


class Teaches(Algorithm[ComponentConfig]):
    """Returns an expert as a teacher."""

    config_class = ComponentConfig

    def run(self, pool: ModelPool[Any], context: RunContext) -> WeightSource:
        del context
        return pool.expert_of("b")


def test_teacher_is_the_original_expert(models: Models) -> None:
    assert same(state([Doubled(), Teaches()], models), models["b"])


# --- which tensors, with which options ----------------------------------------------------------


def test_no_stage_sees_tensors_that_the_merge_skips(models: Models) -> None:
    """A threshold over the whole model covers the merged tensors only."""
    skip = {**TA, "skip": "embedding.*"}
    merged = state([Trim(density=0.3), skip, Halfway()], models)
    without = {
        name: {key: value for key, value in state_dict.items() if key != "embedding.weight"}
        for name, state_dict in models.items()
    }
    assert same(merged, state([Trim(density=0.3), TA, Halfway()], without))
    assert torch.equal(merged["embedding.weight"], models["base"]["embedding.weight"])
    assert not same(state([Trim(density=0.3), TA, Halfway()], models), {**merged})


def test_stage_has_its_own_patterns_and_overrides(models: Models) -> None:
    trim = {"name": "trim", "only": "layer.*", "density": 0.2}
    trim |= {"overrides": [{"match": "layer.bias", "density": 1.0}]}
    merged = state([trim, TA], models)
    plain = state(TA, models)
    weight = {
        name: {"layer.weight": state_dict["layer.weight"]} for name, state_dict in models.items()
    }
    alone = state([{"name": "trim", "density": 0.2}, TA], weight)
    assert torch.equal(merged["layer.weight"], alone["layer.weight"])
    for name in ("layer.bias", "embedding.weight", "scale", "steps"):
        assert torch.equal(merged[name], plain[name]), name


def test_options_follow_the_depth(models: Models) -> None:
    layers = {
        name: {f"layers.{n}.w": state_dict["layer.weight"] for n in range(3)}
        for name, state_dict in models.items()
    }
    merged = state({**TA, "by_depth": {"scale": [0.0, 0.5, 1.0]}}, layers)
    for n, scale in enumerate((0.0, 0.5, 1.0)):
        expected = state({**TA, "scale": scale}, layers)
        assert torch.equal(merged[f"layers.{n}.w"], expected[f"layers.{n}.w"])
    with pytest.raises(RecipeError, match=r"algorithm\.by_depth\.0\.scal: unknown option"):
        state({**TA, "by_depth": {"scal": [0.0, 1.0]}}, layers)
    with pytest.raises(RecipeError, match=r"by_depth\.0\.density = 1\.5: .*less than or equal"):
        state({"name": "ties", "by_depth": {"density": [0.1, 1.5, 0.2]}}, layers)


# --- what is refused ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        (["trim"], r"no stage merges: trim \(transform\)"),
        (["ties", "task-arithmetic"], r"more than one stage merges: ties \(merge\), "),
        (["ties", "trim"], r"in the wrong order: ties \(merge\), trim \(transform\)"),
        (["svc", "ties"], r"in the wrong order: svc \(calibrate\), ties \(merge\)"),
        (
            [{"name": "trim", "densty": 1}, {"name": "ties", "scal": 1}],
            r"trim\.densty.*\n.*ties\.s",
        ),
        ([{"name": "trim"}, {"density": 1}], r"algorithm\.1\.name: required"),
        ([], r"algorithm = \[\]"),
    ],
)
def test_invalid_pipeline_is_refused(models: Models, stages: list[Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        state(stages, models)


def test_pipeline_inherits_requirements_of_stages(models: Models) -> None:
    experts = {"models": {"a": models["a"], "b": models["b"]}}
    with pytest.raises(RecipeError, match="algorithm 'trim' needs a base"):
        merge(["trim", "simple-average"], experts)
    with pytest.raises(RecipeError, match="algorithm 'adamerging' needs tasks"):
        merge(["trim", "adamerging"], pool_of(models))


def test_lazy_merge_is_independent_of_thread_count() -> None:
    """LAPACK rounds differently on two cores than on one, which the engine's workers use."""
    draw, before = torch.Generator().manual_seed(0), torch.get_num_threads()
    models = {name: {"w": torch.randn(300, 400, generator=draw)} for name in ("base", "a", "b")}
    states = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        try:
            states.append(state(["orthogonalise", TA, "svc"], models))
        finally:
            torch.set_num_threads(before)
    assert same(*states)


class OneRow(Transform[ComponentConfig]):
    config_class = ComponentConfig

    def rows(self, piece: Piece) -> torch.Tensor:
        return sum_in_order(piece.task_vectors)


def test_transform_with_wrong_result_is_named(models: Models) -> None:
    with pytest.raises(BrokenPluginError, match=r"OneRow: .* `rows` returned .* of shape"):
        state([OneRow(), TA], models)


# --- what is recorded ---------------------------------------------------------------------------


def test_recorded_pipeline_gives_the_same_bytes(models: Models, tmp_path: Path) -> None:
    stages = [{"name": "trim", "density": 0.5}, "elect", {**TA, "skip": "scale"}, "svc"]
    run_fusion(algorithm=stages, model_pool=pool_of(models), output=tmp_path / "one")
    recorded = load_yaml((tmp_path / "one/recipe.yaml").read_text(), origin="")["algorithm"]
    assert [stage["name"] for stage in recorded] == ["trim", "elect", "task-arithmetic", "svc"]
    assert recorded[2]["skip"] == ["scale"]
    run_fusion(algorithm=recorded, model_pool=pool_of(models), output=tmp_path / "two")
    for name in ("recipe.yaml", "model.safetensors"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    provenance = json.loads((tmp_path / "one/provenance.json").read_text())["predicate"]
    assert provenance["stages"][0] == {
        "name": "trim",
        "stage": "transform",
        "plugin": "fusion-ties",
    }
    assert {"fusion-ties", "fusion-spectral", "fusion-linear"} <= provenance["plugins"].keys()


@pytest.mark.parametrize("granularity", ["layer", "row", "column"])
def test_adamerging_learns_over_transformed_task_vectors(granularity: str) -> None:
    """AdaMerging++ is AdaMerging over trimmed and elected task vectors, under another name."""
    pool, tasks = tiny_pool("mlp", experts=3), TinyTasks()
    short = {"name": "adamerging", "steps": 3, "batch_size": 4, "granularity": granularity}

    def learned(algorithm: Any) -> dict[str, torch.Tensor]:
        run = run_fusion(algorithm=algorithm, model_pool=pool, task_pool=tasks)
        return run.weights.state_dict()

    staged = learned([Trim(density=0.3), Elect(), {**short}])
    assert same(staged, learned({**short, "trim": True, "density": 0.3}))
    assert not same(staged, learned(short))


@pytest.mark.parametrize("granularity", ["row", "column"])
def test_coefficients_after_decomposition_can_be_merged_again(
    tmp_path: Path, granularity: str
) -> None:
    pool, tasks = tiny_pool("mlp", experts=3), TinyTasks()
    learning = {"name": "adamerging", "steps": 3, "lr": 0.05, "init": 1.0}
    stages = ["orthogonalise", {**learning, "granularity": granularity}]
    learned = run_fusion(
        algorithm=stages, model_pool=pool, task_pool=tasks, output=tmp_path / "out"
    )
    again = {"name": "adamerging", "coefficients": str(tmp_path / "out" / "coefficients.json")}
    merged = run_fusion(algorithm=["orthogonalise", again], model_pool=pool)
    assert same(merged.weights.state_dict(), learned.weights.state_dict())
    apart = merge(["orthogonalise", {"name": "task-arithmetic", "scale": 1.0}], pool)
    assert not same(apart.state_dict(), learned.weights.state_dict())


def test_coefficients_record_what_a_transform_chose(tmp_path: Path) -> None:
    """They fit this choice, which then needs no tasks, and no other one."""
    pool = tiny_pool("mlp", experts=3)
    learning = {"name": "adamerging", "preset": "strong", "init": 1, "steps": 2}
    learned = run_fusion(
        algorithm=["disentangle", learning],
        model_pool=pool,
        task_pool=TinyTasks(),
        output=tmp_path / "out",
    )
    choice = json.loads((tmp_path / "out" / "disentangle.choice.json").read_text())["chosen"]
    again = {"name": "adamerging", "coefficients": str(tmp_path / "out" / "coefficients.json")}
    same_choice = merge([{"name": "disentangle", **choice}, again], pool)
    assert same(same_choice.state_dict(), learned.weights.state_dict())
    with pytest.raises(RecipeError, match="was learned with the transforms"):
        merge([{"name": "disentangle", **choice, "scale": 2 * choice["scale"]}, again], pool)


def test_a_search_is_the_same_whether_vectors_or_coefficients_have_the_scale() -> None:
    pool, tasks = tiny_pool("mlp", experts=3), TinyTasks()
    learning = {"name": "adamerging", "preset": "strong", "steps": 4, "lr": 0.1}

    def learned(transform: Any, **options: Any) -> dict[str, torch.Tensor]:
        stages = [transform, {**learning, **options}]
        run = run_fusion(algorithm=stages, model_pool=pool, task_pool=tasks)
        return run.weights.state_dict()

    scaled = {"name": "disentangle", "directions": "isotropic", "scale": 3.0}
    by_vectors, by_coefficients = learned(scaled, init=1.0), learned("isotropise", init=3.0)
    torch.testing.assert_close(by_vectors, by_coefficients, rtol=1e-3, atol=1e-4)
    start = learned(scaled, init=1.0, steps=0)
    assert any((by_vectors[name] - start[name]).abs().max() > 1e-2 for name in start)


def test_coefficients_require_the_transforms_they_were_learned_after(
    tmp_path: Path,
) -> None:
    pool, tasks = tiny_pool("mlp", experts=3), TinyTasks()
    short = {"name": "adamerging", "steps": 1, "batch_size": 4}
    learned = run_fusion(algorithm=["trim", short], model_pool=pool, task_pool=tasks)
    file = tmp_path / "coefficients.json"
    file.write_bytes(learned.side_files["coefficients.json"])
    again = {**short, "coefficients": str(file)}
    merged = merge(["trim", again], pool)
    assert same(merged.state_dict(), learned.weights.state_dict())
    with pytest.raises(RecipeError, match=r"was learned with the transforms \[.*trim.*"):
        merge(again, pool)


# --- flags --------------------------------------------------------------------------------------


def test_flags_name_stages(fuse: Callable[..., Outcome], tmp_path: Path) -> None:
    printed = ["--print-config", "--pool", "mini8", "-q"]
    done = fuse(
        "run", "--algo", "trim, task-arithmetic", "--set", "algorithm.trim.density=0.7", *printed
    )
    config = load_yaml(done.out, origin="")
    assert [stage["name"] for stage in config["algorithm"]] == ["trim", "task-arithmetic"]
    assert config["algorithm"][0]["density"] == 0.7
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(done.out)
    again = fuse("run", recipe, "--algo", "trim,ties,svc", *printed)
    stages = load_yaml(again.out, origin="")["algorithm"]
    assert [stage["name"] for stage in stages] == ["trim", "ties", "svc"]
    assert stages[0]["density"] == 0.7, "the stage is the same, so its options are"
    wrong = fuse("run", recipe, "--set", "algorithm.density=1", *printed)
    assert wrong.code == 2
    assert "the pipeline trim, task-arithmetic has no stage 'density'" in wrong.err
    twice = fuse("run", "--algo", "trim,trim,ties", "--set", "algorithm.trim.density=1", *printed)
    assert "more than one stage 'trim': write the stages as a list in a recipe" in twice.err
    assert "density" in fuse("run", "--algo", "trim,ties", "--help").out


def test_scope_is_an_option_of_a_transform() -> None:
    assert Trim(scope="tensor").scope is Scope.TENSOR
    assert Elect(zero_sign="positive").scope is Scope.NONE


# --- coordinates ----------------------------------------------------------------------------------


def test_coordinates_are_merged_and_restored(models: Models) -> None:
    merged = state([Turned(), Largest()], models)
    for name, base in models["base"].items():
        if base.is_floating_point():
            vectors = [
                state_dict[name] - base for expert, state_dict in models.items() if expert != "base"
            ]
            lowest = torch.stack([torch.zeros_like(base), *vectors]).amin(0)
            torch.testing.assert_close(merged[name], base + lowest)
        else:
            assert torch.equal(merged[name], base)


def test_nested_coordinates_are_restored_in_reverse_order(models: Models) -> None:
    expected = state([TA], models)
    assert same(state([Turned(), Turned(), TA], models), expected)
    halved = state([Turned(), Doubled(), TA, Halfway()], models)  # calibrated as a model
    for name, values in expected.items():
        torch.testing.assert_close(halved[name], values)


def test_search_on_live_models_refuses_coordinates() -> None:
    stages = [Turned(), "adamerging"]
    with pytest.raises(RecipeError, match="adamerging looks at live models, and after fused"):
        run_fusion(algorithm=stages, model_pool=tiny_pool("mlp"), task_pool=TinyTasks(["a", "b"]))
