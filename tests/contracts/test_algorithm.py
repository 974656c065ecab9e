from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import torch

from fusion_core import run_fusion
from fusion_core.contracts.algorithm import Algorithm, TensorwiseAlgorithm
from fusion_core.contracts.context import RunContext
from fusion_core.errors import RecipeError
from fusion_core.recipe.config import ComponentConfig
from fusion_core.recipe.per_expert import ExpertWeights, expert_weights
from fusion_core.recipe.validation import validate
from fusion_core.weights import Cut, MergedSource, Piece, Scan, Scope, WeightSource, sum_in_order
from fusion_core.weights.merging.piece import Bound
from pools_checkpoints import CheckpointsConfig, CheckpointsPool

if TYPE_CHECKING:
    from pathlib import Path

    from fusion_core.contracts.model_pool import ModelPool

Models = dict[str, dict[str, torch.Tensor]]


class DropConfig(ComponentConfig):
    floor: float = 0.05
    """Drop entries of task vectors whose magnitude is at most this."""
    weights: ExpertWeights | None = None


class DropAndAverage(TensorwiseAlgorithm[DropConfig]):
    """The example of the class's docstring, with weights."""

    config_class = DropConfig

    def merge(self, piece: Piece) -> torch.Tensor:
        deltas = piece.task_vectors * piece.weights
        large = deltas.where(deltas.abs() > self.config.floor, 0)
        return piece.base + sum_in_order(large) / len(large)


def pool_of(models: Models) -> CheckpointsPool:
    experts = {name: state for name, state in models.items() if name != "base"}
    return CheckpointsPool(CheckpointsConfig(base=models.get("base"), models=experts))


def test_a_method_is_a_configuration_and_a_merge(models: Models) -> None:
    merged = DropAndAverage(DropConfig(floor=0.1)).run(pool_of(models), RunContext())
    base = models["base"]["layer.weight"]
    total = torch.zeros_like(base)
    for expert in "abc":
        delta = models[expert]["layer.weight"] - base
        total += delta.where(delta.abs() > 0.1, 0)
    torch.testing.assert_close(merged.tensor("layer.weight"), base + total / 3)


def test_options_are_defaults_unless_they_are_given() -> None:
    assert DropAndAverage().config.floor == 0.05
    assert DropAndAverage(DropConfig(floor=1)).config.floor == 1.0


def test_options_given_as_keywords_are_those_of_a_recipe() -> None:
    assert DropAndAverage(floor=1).config == DropConfig(floor=1)
    wrong = {"flor": 1, "weights": "all"}
    with pytest.raises(RecipeError) as error:
        DropAndAverage(**wrong)
    with pytest.raises(RecipeError) as expected:
        validate(DropConfig, wrong, prefix="algorithm")
    assert str(error.value) == str(expected.value)
    with pytest.raises(TypeError, match="not both"):
        DropAndAverage(DropConfig(), floor=1)


@pytest.mark.parametrize("form", ["pool", "models"])
def test_a_merge_by_hand_equals_a_run(form: str, models: Models) -> None:
    half = {name: {n: t.half() for n, t in state.items()} for name, state in models.items()}
    pool = pool_of(half)
    by_run = run_fusion(algorithm=DropAndAverage(floor=0.01), model_pool=pool).weights
    base = half.pop("base")
    models_alone = {"base": base, "models": half}
    by_hand = DropAndAverage(floor=0.01).run(pool if form == "pool" else models_alone)
    for name, tensor in by_run.state_dict().items():
        assert torch.equal(by_hand.tensor(name), tensor)
        assert by_hand.tensor(name).dtype is torch.float16


def test_a_method_that_implements_run_can_be_called_by_hand(models: Models) -> None:
    class PickFirst(Algorithm[ComponentConfig]):
        config_class = ComponentConfig

        def run(self, pool: ModelPool[Any], context: RunContext) -> WeightSource:
            return next(iter(pool.experts.values()))

    call: Any = PickFirst().run
    assert torch.equal(call({"models": models}).tensor("scale"), models["base"]["scale"])
    with pytest.raises(RecipeError, match="no experts"):
        call({"models": {}})


def test_a_field_of_weights_reaches_the_pieces(models: Models) -> None:
    merged = DropAndAverage(DropConfig(floor=0, weights={"b": 0})).run(
        pool_of(models), RunContext()
    )
    assert isinstance(merged, MergedSource)
    assert merged.operands.weights == (1.0, 0.0, 1.0)


def test_an_algorithm_round_trips_through_yaml(tmp_path: Path) -> None:
    algorithm = DropAndAverage(DropConfig(floor=1e-3, weights={"a": 2}))
    algorithm.to_yaml(tmp_path / "drop.yaml")
    again = DropAndAverage.from_yaml(tmp_path / "drop.yaml")
    assert type(again) is DropAndAverage
    assert again.config == algorithm.config
    (tmp_path / "drop.yaml").write_text("flor: 3\n")
    with pytest.raises(RecipeError, match=r"drop\.yaml\.flor: unknown option; did you mean floor"):
        DropAndAverage.from_yaml(tmp_path / "drop.yaml")


def test_cut_and_scope_may_be_attributes_or_depend_on_options(models: Models) -> None:
    class Rows(DropAndAverage):
        cut = Cut.ROW

    class Choosing(DropAndAverage):
        @property
        def scope(self) -> Scope:
            return Scope.MODEL if self.config.floor else Scope.NONE

        def survey(self, scan: Scan) -> int:
            return scan.numel

        def merge(self, piece: Piece) -> torch.Tensor:
            return piece.base * 0 + (piece.state or 0)

    assert Rows().run(pool_of(models), RunContext()).cut is Cut.ROW
    assert DropAndAverage().run(pool_of(models), RunContext()).cut is Cut.ELEMENT
    unjudged = RunContext(bound=Bound.NONE)
    assert Choosing().run(pool_of(models), unjudged).tensor("scale") == 35 + 7 + 33 + 1
    assert Choosing(DropConfig(floor=0)).run(pool_of(models), RunContext()).tensor("scale") == 0


def test_a_scope_requires_a_survey(models: Models) -> None:
    class Lazy(DropAndAverage):
        scope = Scope.TENSOR

    with pytest.raises(NotImplementedError):
        Lazy().run(pool_of(models), RunContext()).tensor("scale")


def test_random_numbers_follow_the_seed_and_the_method(models: Models) -> None:
    class Noise(DropAndAverage):
        def merge(self, piece: Piece) -> torch.Tensor:
            return piece.uniform(0)

    class OtherNoise(Noise): ...

    def draw(kind: type[Noise], seed: int) -> torch.Tensor:
        return kind().run(pool_of(models), RunContext(seed=seed)).tensor("layer.weight")

    assert torch.equal(draw(Noise, 1), draw(Noise, 1))
    assert not torch.equal(draw(Noise, 1), draw(Noise, 2))
    assert not torch.equal(draw(Noise, 1), draw(OtherNoise, 1))


def test_an_algorithm_may_return_any_source(models: Models) -> None:
    class PickFirst(Algorithm[ComponentConfig]):
        config_class = ComponentConfig

        def run(self, pool: ModelPool[Any], context: RunContext) -> WeightSource:
            context.log(3, {"picked": 0.0})
            context.save("choice.json", {"picked": "a"})
            context.save("mask.bin", b"\x01")
            return next(iter(pool.experts.values()))

    logged: list[tuple[int, dict[str, float]]] = []
    context = RunContext(on_metrics=lambda step, metrics: logged.append((step, dict(metrics))))
    result = PickFirst().run(pool_of(models), context)
    assert torch.equal(result.tensor("scale"), models["a"]["scale"])
    assert logged == [(3, {"picked": 0.0})]
    assert json.loads(context.side_files["choice.json"]) == {"picked": "a"}
    assert context.side_files["choice.json"].endswith(b"}\n")
    assert context.side_files["mask.bin"] == b"\x01"
    PickFirst().run(pool_of(models), RunContext())  # nobody listens


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        (None, [1, 1, 1]),
        ({}, [1, 1, 1]),
        ({"b": 0.5}, [1, 0.5, 1]),
        ({"c": 3, "a": 2}, [2, 1, 3]),
        ([1, 2, 3], [1, 2, 3]),
        ((0.5, 0, -1), [0.5, 0, -1]),
        (0.5, [0.5, 0.5, 0.5]),
    ],
)
def test_weights_are_resolved_in_pool_order(weights: Any, expected: list[float]) -> None:
    assert expert_weights(weights, ["a", "b", "c"]) == expected


@pytest.mark.parametrize(
    ("weights", "problem"),
    [
        ({"z": 1}, "names unknown experts: z"),
        ([1, 2], "2 entries for 3 experts"),
        ([], "0 entries"),
    ],
)
def test_weights_that_do_not_fit_name_the_experts(weights: Any, problem: str) -> None:
    with pytest.raises(RecipeError, match=problem) as error:
        expert_weights(weights, ["a", "b", "c"])
    assert "a, b, c" in str(error.value)


def test_an_attribute_that_changes_the_kind_of_stage_is_refused() -> None:
    with pytest.raises(TypeError, match=r"Odd\.kind is 'half', but it is a stage of kind 'merge'"):
        type("Odd", (Algorithm,), {"kind": "half"})
