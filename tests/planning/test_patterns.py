"""`only`, `skip` and `overrides` select tensors and their options."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import nn

from fusion_core import run_fusion
from fusion_core.contracts.algorithm import Algorithm
from fusion_core.contracts.context import RunContext
from fusion_core.contracts.selected_pool import SelectedPool
from fusion_core.contracts.specs import AlgorithmSpec
from fusion_core.errors import BrokenPluginError, FusionError, RecipeError, WeightsError
from fusion_core.planning.parts import Part
from fusion_core.planning.pipeline import PlannedStage, apply_stages
from fusion_core.plugins.manager import load_plugins
from fusion_core.recipe.config import ComponentConfig
from fusion_core.recipe.patterns import Selection, select_names
from fusion_core.recipe.text import dump_yaml, load_yaml
from fusion_core.weights import StateDictSource
from pools_checkpoints import CheckpointsConfig, CheckpointsPool

if TYPE_CHECKING:
    from pathlib import Path

    from conftest import Site
    from fusion_core.contracts.model_pool import ModelPool
    from fusion_core.weights import WeightSource

pytestmark = pytest.mark.plugins

Models = dict[str, dict[str, torch.Tensor]]
NAMES = ["model.embed", "model.0.mlp.up", "model.0.mlp.down", "model.0.attn.q", "head"]


def pool_of(models: Models, *, base: bool = True) -> dict[str, Any]:
    experts = {name: state for name, state in models.items() if name != "base"}
    return {"models": experts, **({"base": models["base"]} if base else {})}


def merged(models: Models, algorithm: object, *, base: bool = True) -> dict[str, torch.Tensor]:
    result = run_fusion(algorithm=algorithm, model_pool=pool_of(models, base=base))
    return result.weights.state_dict()


# --- which names --------------------------------------------------------------------------------


def test_a_star_matches_dots_and_a_name_matches_itself() -> None:
    assert select_names(["*.mlp.*"], NAMES, "") == {"model.0.mlp.up", "model.0.mlp.down"}
    assert select_names(["head", "*.[q]"], NAMES, "") == {"head", "model.0.attn.q"}
    assert select_names([], NAMES, "") == set()


def test_case_counts() -> None:
    with pytest.raises(RecipeError, match="'HEAD'"):
        select_names(["HEAD"], NAMES, "algorithm.skip")


def test_skip_takes_away_from_only_and_the_order_stays() -> None:
    selection = Selection(only="model.*", skip=["*.mlp.up", "head"])
    assert selection.chosen(NAMES) == ["model.embed", "model.0.mlp.down", "model.0.attn.q"]


def test_a_pattern_that_matches_nothing_names_the_closest() -> None:
    with pytest.raises(RecipeError, match=r"algorithm\.skip: .* '\*\.mpl\.up'") as error:
        Selection(skip="*.mpl.up").chosen(NAMES)
    assert "model.0.mlp.up" in str(error.value.hint)


@pytest.mark.parametrize("pattern", ["attn", "attn.q", "0.mlp*", "*attn"])
def test_stars_around_a_pattern_are_suggested(pattern: str) -> None:
    with pytest.raises(RecipeError) as error:
        Selection(only=pattern).chosen([name for name in NAMES if name != pattern])
    (suggested,) = re.findall(r"^Did you mean '(.*)'\?", str(error.value.hint))
    assert Selection(only=suggested).chosen(NAMES)


def test_layers_that_differ_by_a_number_are_named_once() -> None:
    names = [f"layers.{number}.{part}" for number in range(40) for part in ("up", "down")]
    with pytest.raises(RecipeError) as error:
        Selection(only="layers.*.upp").chosen(names)
    assert str(error.value.hint).startswith("The closest names: layers.0.up, layers.0.down. ")
    with pytest.raises(RecipeError) as error:
        Selection(only="zzz").chosen(names)
    assert str(error.value.hint).startswith("The closest names: layers.0.down, layers.0.up. ")


def test_nothing_left_to_merge_is_an_error() -> None:
    with pytest.raises(RecipeError, match="leave no tensor"):
        Selection(only="head", skip="he*").chosen(NAMES)


def test_a_tensor_belongs_to_the_first_override_that_matches() -> None:
    overrides = [{"match": "*.mlp.*", "x": 1}, {"match": ["model.*"], "x": 2}]
    groups = Selection(skip="head", overrides=overrides).groups(NAMES, NAMES)
    assert groups == [
        ({"x": 2}, ["model.embed", "model.0.attn.q"]),
        ({"x": 1}, ["model.0.mlp.up", "model.0.mlp.down"]),
    ]


def test_tensors_with_equal_options_are_one_group() -> None:
    # The curves give the layers different values of y, which the override replaces.
    curves = [
        {"match": "*.up", "y": [1]},
        {"match": "*.down", "y": [2]},
        {"match": "*.q", "x": [1]},
    ]
    override = {"match": "*.mlp.*", "x": 1, "y": 3}
    last = {"match": "head", "outside": "all", "x": [1.0]}
    selection = Selection(by_depth=[*curves, last], overrides=override)
    assert selection.groups(NAMES, NAMES) == [
        ({}, ["model.embed"]),
        ({"x": 1, "y": 3}, ["model.0.mlp.up", "model.0.mlp.down"]),
        ({"x": 1}, ["model.0.attn.q", "head"]),
    ]


def test_an_override_of_what_is_skipped_is_an_error() -> None:
    selection = Selection(skip="head", overrides=[{"match": "head", "x": 1}])
    message = r"algorithm\.overrides\.0\.match: 'head' matches only tensors that are not merged"
    with pytest.raises(RecipeError, match=message):
        selection.groups(NAMES, NAMES)


@pytest.mark.parametrize(
    ("pattern", "closest"),
    [("mpl", "model.0.mlp.up"), ("model.3.atn", "model.0.attn.q"), ("haed", "head")],
)
def test_parts_of_names_are_compared(pattern: str, closest: str) -> None:
    with pytest.raises(RecipeError) as error:
        Selection(only=pattern).chosen(NAMES)
    assert str(error.value.hint).startswith(f"The closest names: {closest}")


def test_one_override_needs_no_list() -> None:
    alone = Selection(overrides={"match": "head", "x": 1})
    assert alone == Selection(overrides=[{"match": "head", "x": 1}])


def test_patterns_may_match_nothing_if_a_recipe_says_so() -> None:
    none = {"match": ["*.missing", "*.q"], "unmatched": "warn"}
    curve = {"match": "head", "layers": [0, 1], "unmatched": "warn", "x": [3, 4]}
    selection = Selection(
        overrides=[{**none, "x": 1}, {"match": "other", "unmatched": "warn", "x": 2}],
        by_depth=[curve, {**none, "x": [5]}],
    )
    assert selection.groups(NAMES, NAMES) == [
        ({}, ["model.embed", "model.0.mlp.up", "model.0.mlp.down", "head"]),
        ({"x": 1}, ["model.0.attn.q"]),
    ]
    assert [*selection.find_unmatched(NAMES)] == [
        "algorithm.overrides: no tensor matches '*.missing'",
        "algorithm.overrides: no tensor matches 'other'",
        "algorithm.by_depth: no tensor matches '*.missing'",
    ]


# --- what is skipped ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["simple-average", "weighted-average", "task-arithmetic", "ties"])
def test_skipped_tensors_are_the_bases_with_every_method(models: Models, name: str) -> None:
    everything = merged(models, {"name": name, "scale": 0.5} if name == "ties" else name)
    result = merged(models, {"name": name, "skip": "layer.*", "only": ["*"]})
    for key in ("layer.weight", "layer.bias", "steps"):
        assert torch.equal(result[key], models["base"][key])
        assert key == "steps" or not torch.equal(everything[key], models["base"][key])
    assert not torch.equal(result["embedding.weight"], models["base"]["embedding.weight"])


def test_without_a_base_they_are_the_first_experts(models: Models) -> None:
    result = merged(models, {"name": "simple-average", "only": "layer.weight"}, base=False)
    assert torch.equal(result["layer.bias"], models["a"]["layer.bias"])
    assert not torch.equal(result["layer.weight"], models["a"]["layer.weight"])


@pytest.mark.parametrize("scope", ["model", "tensor"])
def test_a_survey_does_not_see_skipped_tensors(models: Models, scope: str) -> None:
    ties = {"name": "ties", "scope": scope}
    result = merged(models, {**ties, "skip": "embedding.weight"})
    without = {
        name: {key: value for key, value in state.items() if key != "embedding.weight"}
        for name, state in models.items()
    }
    expected = merged(without, ties)
    assert all(torch.equal(result[key], value) for key, value in expected.items())
    if scope == "model":  # otherwise this test could not fail
        whole = merged(models, ties)
        assert not torch.equal(whole["layer.weight"], result["layer.weight"])


def test_skipped_tensors_are_not_read_from_experts(models: Models) -> None:
    models["b"]["embedding.weight"] = models["b"]["embedding.weight"] / 0
    with pytest.raises(WeightsError, match="infinite"):
        merged(models, "ties")
    merged(models, {"name": "ties", "skip": "embedding.*"})


class PickFirst(Algorithm[ComponentConfig]):
    config_class = ComponentConfig

    def run(self, pool: ModelPool[Any], context: RunContext) -> WeightSource:
        context.save("seen.json", {"names": list(pool.reference.infos)})
        return next(iter(pool.experts.values()))


def test_a_method_that_merges_by_itself_sees_only_the_chosen(models: Models) -> None:
    pool = CheckpointsPool(CheckpointsConfig(**pool_of(models)))
    context = RunContext()
    part = Part(PickFirst(), frozenset({"layer.weight", "layer.bias"}))
    picked = apply_stages([PlannedStage(PickFirst(), None, (part,))], pool, context)
    assert json.loads(context.side_files["seen.json"])["names"] == ["layer.weight", "layer.bias"]
    assert list(picked.infos) == list(models["base"])
    assert torch.equal(picked.tensor("layer.bias"), models["a"]["layer.bias"])
    assert torch.equal(picked.tensor("scale"), models["base"]["scale"])


class ReturnsModule(Algorithm[ComponentConfig]):
    config_class = ComponentConfig

    def run(self, pool: ModelPool[Any], context: RunContext) -> nn.Module:
        model = pool.build(next(iter(pool.experts.values())))
        with torch.no_grad():
            for parameter in model.parameters():  # changes to unselected tensors are ignored
                parameter.add_(1)
        assert list(pool.parameters(model)) == ["0.weight"]
        return model


def test_a_live_model_that_a_method_returns_is_read_for_the_chosen_alone() -> None:
    base, expert = nn.Sequential(nn.Linear(3, 2)), nn.Sequential(nn.Linear(3, 2))
    pool = CheckpointsPool(CheckpointsConfig(base=base, models={"a": expert}))
    part = Part(ReturnsModule(), frozenset({"0.weight"}))
    result = apply_stages([PlannedStage(ReturnsModule(), None, (part,))], pool, RunContext())
    assert torch.equal(result.tensor("0.bias"), base.state_dict()["0.bias"])
    assert torch.equal(result.tensor("0.weight"), expert.state_dict()["0.weight"] + 1)


def test_a_pool_of_some_tensors_builds_whole_models() -> None:
    base, expert = nn.Linear(3, 2), nn.Linear(3, 2)
    pool = CheckpointsPool(CheckpointsConfig(base=base, models={"a": expert}))
    some = SelectedPool(pool, ["weight"])
    merged = some.build(StateDictSource({"weight": torch.ones(2, 3)}))
    assert torch.equal(merged.weight, torch.ones(2, 3))
    assert torch.equal(merged.bias, base.bias)
    expert_model = some.build(some.experts["a"])
    assert torch.equal(expert_model.weight, expert.weight)
    assert torch.equal(expert_model.bias, expert.bias), (
        "an expert is built with all its own tensors"
    )
    assert some.inputs() == pool.inputs()
    assert (some.task_of("a"), some.assets()) == ("a", {})


def test_a_pattern_that_matches_nothing_is_refused_before_anything_is_written(
    models: Models, tmp_path: Path
) -> None:
    with pytest.raises(RecipeError, match=r"algorithm\.only: .*'layr\.\*'") as error:
        run_fusion(
            algorithm={"name": "ties", "only": "layr.*"},
            model_pool=pool_of(models),
            output=tmp_path / "out",
        )
    assert "layer.weight" in str(error.value.hint)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"only": 3}, r"algorithm\.only = 3"),
        ({"skip": []}, r"algorithm\.skip = \[\]: .*at least 1"),
        ({"skip": [""]}, r"algorithm\.skip\.0 = ''"),
        ({"skpi": "*"}, r"algorithm\.skpi: unknown option; did you mean skip\?"),
        ({"only": 3, "densty": 1}, r"algorithm\.densty: .*density\?\nalgorithm\.only = 3"),
        ({"overrides": [{"density": 0.5}]}, r"algorithm\.overrides\.0\.match: required"),
        (
            {"overrides": [{"match": "*", "densty": 1}]},
            r"algorithm\.overrides\.0\.densty: unknown option; did you mean density\?",
        ),
        (
            {"overrides": [{"match": "*", "density": 2}]},
            r"algorithm\.overrides\.0\.density = 2: .*less than or equal to 1",
        ),
        ({"overrides": [{"match": "nothing", "density": 1}]}, r"overrides\.0\.match: no tensor"),
        ({"overrides": 0.5}, r"algorithm\.overrides = 0\.5: expected a list"),
        ({"by_depth": [0.1, 0.2]}, r"expected the option that has these values: \{density: \["),
    ],
)
def test_invalid_options_are_named(models: Models, options: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        merged(models, {"name": "ties", **options})


@pytest.mark.parametrize(
    ("density", "hint"),
    [
        ([{"filter": "mlp", "value": 0.2}, {"value": 0.5}], 'overrides: [{match: "*mlp*", density'),
        ({"match": "*mlp*", "value": 0.3}, 'overrides: [{match: "*mlp*", density: 0.5}]'),
        ([[0.1, 0.2], 0.3], "by_depth: {density: {math: [0.2, 0.5], code: 0.3}}"),
        ({"a": [0.1, 0.2], "b": 0.3}, "by_depth: {density: {a: [0.1, 0.2], b: 0.3}}"),
    ],
)
def test_other_forms_of_a_number_are_shown_as_they_are_written(
    models: Models, density: object, hint: str
) -> None:
    with pytest.raises(RecipeError) as caught:
        merged(models, {"name": "ties", "density": density})
    assert hint in str(caught.value.hint)


def test_a_method_cannot_have_options_of_these_names(site: Site) -> None:
    site.install(
        "greedy-x",
        """
        from fusion_core import AlgorithmSpec, ComponentConfig, hookimpl

        class Config(ComponentConfig):
            skip: int = 3

        @hookimpl
        def fusion_register_algorithms():
            yield AlgorithmSpec(
                name="greedy", summary="", target="greedy_x:Config", config="greedy_x:Config"
            )
        """,
    )
    with pytest.raises(BrokenPluginError, match="greedy-x/greedy' has an option 'skip'"):
        run_fusion(algorithm="greedy", model_pool={"models": {"a": {}}})


# --- overrides ----------------------------------------------------------------------------------


def test_the_tensors_of_an_override_are_merged_by_themselves(models: Models) -> None:
    ties = {"name": "ties", "density": 0.2}
    other = {"density": 0.6, "scale": 0.5}
    result = merged(models, {**ties, "overrides": [{"match": "layer.*", **other}]})
    with_override = merged(models, {**ties, **other, "only": "layer.*"})
    without_override = merged(models, {**ties, "skip": "layer.*"})
    for key, value in result.items():
        assert torch.equal(
            value, (with_override if key.startswith("layer.") else without_override)[key]
        )
    assert not torch.equal(result["layer.weight"], merged(models, ties)["layer.weight"])


@pytest.mark.parametrize("form", ["by name", "in order"])
def test_experts_that_a_curve_does_not_name_keep_their_value(models: Models, form: str) -> None:
    first, *others = [name for name in models if name != "base"]
    plain = {first: 2.0, **dict.fromkeys(others, 0.0)}
    given = {**plain, first: 3.0} if form == "by name" else [3.0, *(0.0 for _ in others)]
    method = {"name": "task-arithmetic", "weights": given}
    curve = {"outside": "all", "weights": {first: [2.0]}}
    by_depth = merged(models, {**method, "by_depth": curve})
    expected = merged(models, {**method, "weights": plain})
    assert all(torch.equal(by_depth[name], expected[name]) for name in expected)


@pytest.mark.parametrize(
    ("name", "option", "reason"),
    [
        ("adamerging", {"init": 0.1}, "searches once"),
        ("emr", {"rescale": "authors"}, "makes one file per task"),
    ],
)
def test_overrides_of_a_method_for_the_whole_model_are_refused(
    models: Models, name: str, option: dict[str, Any], reason: str
) -> None:
    overrides = [{"match": "layer.*", **option}]
    with pytest.raises(RecipeError, match=rf"algorithm\.overrides: {name} {reason}"):
        merged(models, {"name": name, "overrides": overrides})


def test_parts_that_write_the_same_file_are_an_error(models: Models) -> None:
    pool = CheckpointsPool(CheckpointsConfig(**pool_of(models)))
    parts = tuple(Part(PickFirst(), frozenset({name})) for name in ("layer.weight", "scale"))
    with pytest.raises(FusionError, match=r"each part of the merge would write 'seen\.json'"):
        apply_stages([PlannedStage(PickFirst(), None, parts)], pool, RunContext())


# --- what is recorded ---------------------------------------------------------------------------


def test_a_recorded_recipe_selects_the_same(models: Models, tmp_path: Path) -> None:
    algorithm = {
        "name": "ties",
        "only": ["layer.*", "scale"],
        "skip": "layer.bias",
        "overrides": [{"match": ["scale"], "density": 1}],
    }
    pool = pool_of(models)
    run_fusion(algorithm=algorithm, model_pool=pool, output=tmp_path / "one")
    recipe = load_yaml((tmp_path / "one" / "recipe.yaml").read_text(), origin="")
    assert recipe["algorithm"]["only"] == ["layer.*", "scale"]
    assert recipe["algorithm"]["skip"] == ["layer.bias"]
    assert recipe["algorithm"]["overrides"] == [{"match": ["scale"], "density": 1}]
    run_fusion(algorithm=recipe["algorithm"], model_pool=pool, output=tmp_path / "two")
    for name in ("recipe.yaml", "model.safetensors"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    counts = json.loads((tmp_path / "one" / "provenance.json").read_text())["predicate"]["tensors"]
    assert counts == {"merged": 2, "copied": 4, "dropped": 0}


def test_a_recipe_without_patterns_omits_them(models: Models, tmp_path: Path) -> None:
    run_fusion(algorithm="ties", model_pool=pool_of(models), output=tmp_path / "out")
    recipe = load_yaml((tmp_path / "out" / "recipe.yaml").read_text(), origin="")
    assert not recipe["algorithm"].keys() & {"only", "skip", "overrides"}
    assert dump_yaml(recipe)


def test_every_algorithm_lists_the_shared_options_that_it_takes() -> None:
    from fusion_core.planning.option_descriptions import describe_component_options

    refusing = set()
    for component in load_plugins().components(AlgorithmSpec):
        names = [option.name for option in describe_component_options(component)]
        shared = names[names.index("only") :]
        if shared == ["only", "skip"]:
            refusing.add(component.spec.name)
        else:
            assert shared == ["only", "skip", "overrides", "by_depth"], component.qualified_name
    assert {"adamerging", "emr", "smile"} <= refusing
    assert not {"ties", "task-arithmetic", "tsv-m"} & refusing


def test_skipping_an_integer_tensor_changes_nothing(models: Models) -> None:
    result = merged(models, {"name": "ties", "skip": "steps"})
    expected = merged(models, "ties")
    assert all(torch.equal(result[key], value) for key, value in expected.items())
