"""Compare the numbers in charts with dense tensors and plain sums."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import TYPE_CHECKING

import pytest
import torch

from fusion_core import Progress
from fusion_core.commands import load_recipe
from fusion_report.charts import chart_coefficients
from fusion_report.drawings.heat import Heat, drop_leading_zero
from fusion_report.drawings.lines import smooth, spread_out
from fusion_report.drawings.svg import format_number, shorten
from fusion_report.runs import read_run
from fusion_report.vectors import group_by_part, read_task_vectors

if TYPE_CHECKING:
    from conftest import World


def test_norms_and_cosines_equal_dense_task_vectors(world: World) -> None:
    recipe = load_recipe(world.run("found") / "recipe.yaml")
    vectors_read = read_task_vectors(recipe, Progress(), frozenset())
    assert vectors_read is not None
    base, *experts = (world.weights(seed) for seed in range(4))
    vectors = [{name: expert[name] - base[name] for name in base} for expert in experts]
    flat = torch.stack(
        [torch.cat([row.flatten() for row in vector.values()]) for vector in vectors]
    )
    assert vectors_read.experts == list(world.names)
    assert vectors_read.norms == pytest.approx(flat.norm(dim=1).tolist(), rel=1e-6)
    cosines = torch.cosine_similarity(flat[:, None], flat[None], dim=-1)
    assert torch.allclose(torch.tensor(vectors_read.cosines), cosines, atol=1e-6)
    layer = [
        torch.cat([vector["body.layers.0.up.weight"].flatten(), vector["body.layers.0.up.bias"]])
        for vector in vectors
    ]
    norms = [float(vector.norm()) for vector in layer]
    assert vectors_read.norms_by_part["layers.0"] == pytest.approx(norms)
    assert [*vectors_read.norms_by_part] == ["embed", "layers.0", "layers.2", "layers.10", "norm"]


@pytest.mark.parametrize(
    ("names", "parts"),
    [
        (["a.weight"], ["weight"]),
        (["weight", "bias"], ["weight", "bias"]),
        (
            ["model.layers.0.x", "model.embed.weight", "model.norm.weight", "head.weight"],
            ["model.layers.0", "model.embed", "model.norm", "head"],
        ),
        (["h.0.x", "h.1.x", "wte.weight"], ["h.0", "h.1", "wte"]),
        (["0.weight", "0.bias", "2.weight"], ["0", "2"]),
        (["m.enc.1.x", "m.dec.0.x", "m.enc.0.x"], ["enc.0", "enc.1", "dec.0"]),
    ],
)
def test_tensors_are_grouped_by_layer(names: list[str], parts: list[str]) -> None:
    groups = group_by_part(names)
    assert [*groups] == parts
    assert sorted(name for members in groups.values() for name in members) == sorted(names)


def test_coefficients_are_means_over_a_layer(world: World) -> None:
    first, by_tensor, _ = chart_coefficients(read_run(world.write_search("found"), "found"), "c")
    # layers.0 has the tensors 1 and 2 of the first expert's 0.2, 0.3, 0.4, ...
    assert f"layers.0: {world.names[0]} 0.35" in first.drawing.words
    assert f"{world.names[2]} from 2.2 to 2.7" in by_tensor.drawing.words


def test_smoothing_weights_values_by_age() -> None:
    values = [3.0, -1.0, 4.0, 1.0, -5.0, 9.0, 2.0]
    ages = [0.5 ** (len(values) - index) for index in range(1, len(values) + 1)]
    expected = sum(a * value for a, value in zip(ages, values, strict=True)) / sum(ages)
    assert smooth(values)[-1] == pytest.approx(expected)
    assert smooth([math.nan, 3.0, math.inf, 3.0])[1:] == [3.0, 3.0, 3.0]
    assert smooth([7.0] * 50) == pytest.approx([7.0] * 50)


def test_labels_are_moved_apart_as_little_as_possible() -> None:
    assert spread_out([0.0, 0.1, 0.2, 5.0], 1.0) == pytest.approx([-0.9, 0.1, 1.1, 5.0])
    assert all(b - a >= 1 - 1e-9 for a, b in pairwise(spread_out([1.0, 1.0, 1.5, 2.6, 2.6], 1.0)))


def test_the_scale_of_a_heat_map_reaches_its_furthest_value() -> None:
    heat = Heat(["a"], ["x", "y", "z"], [[0.1, 0.9, float("nan")]], neutral=0.2)
    assert heat.reach == pytest.approx(0.7)
    assert [text for _, text in heat.scale if text] == ["-0.5", "0.2", "0.9"]
    assert Heat(["a"], ["x"], [[0.01]], least=0.2).reach == 0.2


def test_numbers_and_names_are_short() -> None:
    assert [format_number(value) for value in (0.456, -0.001, 12.34, 1234.5, -1.0)] == [
        "0.46",
        "0.00",
        "12.3",
        "1234",
        "-1.00",
    ]
    assert [drop_leading_zero(text) for text in ("0.46", "-0.20", "10.3")] == [
        ".46",
        "-.20",
        "10.3",
    ]
    assert shorten("abcdefghijkl", 8) == "abc…ijkl"
