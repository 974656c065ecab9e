"""Options along a model's depth."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusion_core.errors import RecipeError
from fusion_core.recipe.depth import depths, interpolate, is_before_layers
from fusion_core.recipe.patterns import Selection

NAMES = ["embed", *(f"layers.{n}.{part}" for n in range(5) for part in ("up", "norm")), "head"]


def test_layers_of_a_stack_lie_between_0_and_1() -> None:
    depth_of = depths([*NAMES, "vision.blocks.0.w", "vision.blocks.10.w", "vision.blocks.2.w"])
    assert "embed" not in depth_of
    assert [depth_of[f"layers.{n}.up"] for n in range(5)] == [0, 0.25, 0.5, 0.75, 1]
    assert [depth_of[f"vision.blocks.{n}.w"] for n in (0, 2, 10)] == [0, 0.5, 1]
    assert depths(["0.weight", "only.3.w"]) == {"0.weight": 0, "only.3.w": 0}


def test_values_are_on_straight_lines_between_points() -> None:
    assert [interpolate([0.2, 0.5, 0.8], depth) for depth in (0, 0.5, 1)] == [0.2, 0.5, 0.8]
    assert interpolate([0, 1], 0.25) == 0.25
    assert interpolate([0.7], 0.3) == 0.7


@given(st.lists(st.floats(0, 1), min_size=1, max_size=5), st.floats(0, 1))
def test_no_value_leaves_the_range_of_the_points(points: list[float], depth: float) -> None:
    assert min(points) <= interpolate(points, depth) <= max(points)


def test_layers_with_the_same_values_are_one_group() -> None:
    selection = Selection(by_depth={"match": "*.up", "density": [0.2, 0.6]})
    groups = {
        round(options.get("density", -1), 6): names
        for options, names in selection.groups(NAMES, NAMES)
    }
    assert groups[-1] == ["embed", *(f"layers.{n}.norm" for n in range(5)), "head"]
    assert groups[0.3] == ["layers.1.up"]
    assert sorted(groups) == [-1, 0.2, 0.3, 0.4, 0.5, 0.6]


def test_layers_that_are_left_out_count_for_a_curve() -> None:
    chosen = Selection(skip="layers.[04].*", by_depth={"density": [0, 0.4]})
    groups = chosen.groups(NAMES, NAMES)
    densities = {n: options.get("density") for options, names in groups for n in names}
    assert [densities[f"layers.{n}.up"] for n in (1, 2, 3)] == pytest.approx([0.1, 0.2, 0.3])
    span = Selection(skip="layers.4.*", by_depth={"layers": (0, 5), "density": [0, 0.4]})
    options = {n: options for options, names in span.groups(NAMES, NAMES) for n in names}
    assert options["layers.3.up"]["density"] == pytest.approx(0.3)


def test_an_override_comes_before_a_curve_and_the_first_curve_before_others() -> None:
    curves = [{"match": "*.up", "x": [1, 1]}, {"x": [2, 2], "y": [3, 3]}]
    overrides = [{"match": "layers.0.up", "y": 9}]
    options_of = {
        name: options
        for options, names in Selection(by_depth=curves, overrides=overrides).groups(NAMES, NAMES)
        for name in names
    }
    assert options_of["layers.0.up"] == {"x": 1, "y": 9}
    assert options_of["layers.1.up"] == {"x": 1, "y": 3}
    assert options_of["layers.0.norm"] == {"x": 2, "y": 3}
    assert options_of["head"] == {}


def test_tensors_without_a_depth_cannot_follow_a_curve() -> None:
    with pytest.raises(
        RecipeError, match=r"by_depth\.0\.match: no matching tensor .* numbered layer"
    ):
        Selection(by_depth={"match": "head", "x": [1, 2]}).groups(NAMES, NAMES)


def test_a_curve_that_covers_nothing_is_refused() -> None:
    model = [*NAMES, "shared.weight", *(f"decoder.{n}.up" for n in range(8))]
    layers = {"match": "layers*", "layers": [6, 8], "x": [1.0]}
    for curve, problem in (
        (layers, "no matching tensor belongs to the layers from 6 to 7"),
        ({"match": "head", "x": [1.0], "outside": "before"}, "comes before the layers"),
        ({"match": "shared*", "x": [1.0], "outside": "after"}, "comes after the layers"),
    ):
        with pytest.raises(RecipeError, match=rf"by_depth\.0\.match: .*{problem}"):
            Selection(by_depth=curve).groups(model, model)
        assert Selection(by_depth={**curve, "unmatched": "warn"}).groups(model, model)


@pytest.mark.parametrize(
    ("name", "is_before"),
    [
        ("shared.weight", True),
        ("model.shared.weight", True),
        ("wav2vec2.feature_projection.projection.weight", True),
        ("conv_in.weight", True),
        ("conv_out.weight", False),
        ("conv_norm_out.weight", False),
        ("unembedding.weight", False),
        ("shared_transformer.norm.weight", False),
    ],
)
def test_tensors_before_and_after_the_layers(
    name: str,
    is_before: bool,  # noqa: FBT001
) -> None:
    assert is_before_layers(name) is is_before


def _options_of(*curves: dict[str, object]) -> dict[str, dict[str, object]]:
    groups = Selection(by_depth=curves).groups(NAMES, NAMES)
    return {name: options for options, names in groups for name in names}


def test_a_curve_may_cover_tensors_outside_of_layers_and_a_span_of_layers() -> None:
    options = _options_of(
        {"match": "*.up", "layers": [1, 4], "x": [1.0, 3.0], "outside": "after"},
        {"match": "embed", "x": [9.0], "outside": "before"},
        {"match": "head", "x": [8.0, 7.0], "outside": "all"},
    )
    assert [options[f"layers.{n}.up"].get("x") for n in range(5)] == [None, 1, 2, 3, None]
    assert options["layers.1.norm"] == {}
    assert options["embed"] == {"x": 9}
    assert options["head"] == {"x": 8}
    everything = {"layers": [0, 2], "x": [1.0, 2.0]}
    for side, covered in {"none": [], "before": ["embed"], "after": ["head"]}.items():
        options = _options_of({**everything, "outside": side})
        assert [name for name in ("embed", "head") if options[name]] == covered
    for layers, problem in ([4, 6], "there is no layer 5"), ([2, 2], r"\[2, 2\] selects none"):
        with pytest.raises(RecipeError, match=problem):
            _options_of({"layers": layers, "x": [1.0]})


def test_the_first_curve_of_one_experts_value_wins() -> None:
    options = _options_of(
        {"match": "*.up", "weights": {"a": [0.0, 1.0]}},
        {"weights": {"a": [5.0], "b": [0.0, 4.0]}},
    )
    assert options["layers.1.up"] == {"weights": {"a": 0.25, "b": 1.0}}
    assert options["layers.1.norm"] == {"weights": {"a": 5.0, "b": 1.0}}
    plain = _options_of({"match": "*.up", "weights": [2.0]}, {"weights": {"a": [0.0]}})
    assert plain["layers.0.up"] == {"weights": 2.0}


def test_a_number_is_a_flat_curve() -> None:
    for flat in (0.5, [0.5], [0.5, 0.5, 0.5]):
        options = _options_of(
            {"weights": {"a": flat, "b": [0.0, 4.0]}, "layers": [0, 3], "x": flat}
        )
        assert options["layers.1.up"] == {"weights": {"a": 0.5, "b": 2.0}, "x": 0.5}


@pytest.mark.parametrize(
    "points", ["3", True, None, [], ["a"], [True], [float("nan")], {}, {"a": []}, {"a": None}]
)
def test_a_curve_is_a_list_of_numbers(points: object) -> None:
    with pytest.raises(RecipeError, match=r"by_depth.* expected density to be a list of numbers"):
        Selection(by_depth={"density": points})
    with pytest.raises(RecipeError, match="expected an option with its values"):
        Selection(by_depth={"match": "*"})
