"""Named pipelines are found, configured, run and recorded like their stages."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import torch

from fusion_core import PipelineSpec, RunOptions, merge, plan, run_fusion
from fusion_core.errors import AmbiguousComponentError, RecipeError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from conftest import Outcome, Site

pytestmark = pytest.mark.plugins

STAGES = [
    {"name": "trim", "density": 0.5},
    {"name": "task-arithmetic", "scale": 0.7},
    {"name": "rescale-norm"},
]
REGISTERED = """
    from fusion_core import PipelineSpec, hookimpl

    @hookimpl
    def fusion_register_pipelines():
        yield PipelineSpec(
            name="trimmed-sum",
            summary="Trim, sum, and rescale.",
            stages=(
                ("trim", {"density": 0.5}),
                ("task-arithmetic", {"scale": 0.7}),
                ("rescale-norm", {}),
            ),
            reference="arXiv:0000.00000",
        )
"""

Models = dict[str, dict[str, torch.Tensor]]


@pytest.fixture
def registered(site: Site) -> None:
    site.install("pipelines-x", REGISTERED)


def pool_of(models: Models) -> dict[str, Any]:
    return {"base": models["base"], "models": {n: models[n] for n in models if n != "base"}}


def merge_models(algorithm: Any, models: Models) -> Mapping[str, torch.Tensor]:
    return merge(algorithm, pool_of(models)).state_dict()


def equal(one: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]) -> bool:
    return all(torch.equal(one[name], value) for name, value in other.items())


@pytest.mark.usefixtures("registered")
@pytest.mark.parametrize("name", ["trimmed-sum", "pipelines-x/trimmed-sum"])
def test_a_name_stands_for_its_stages(models: Models, name: str) -> None:
    assert equal(merge_models(name, models), merge_models(STAGES, models))


@pytest.mark.usefixtures("registered")
def test_options_of_stages_override_the_pipelines(models: Models) -> None:
    section = {"name": "trimmed-sum", "trim": {"density": 0.9}, "rescale-norm": {"skip": "*bias*"}}
    stages = [{**STAGES[0], "density": 0.9}, STAGES[1], {**STAGES[2], "skip": "*bias*"}]
    assert equal(merge_models(section, models), merge_models(stages, models))
    assert not equal(merge_models(section, models), merge_models(STAGES, models))


@pytest.mark.usefixtures("registered")
def test_a_pipeline_may_be_part_of_a_longer_one(models: Models) -> None:
    assert equal(
        merge_models(["elect", "trimmed-sum"], models), merge_models(["elect", *STAGES], models)
    )


@pytest.mark.usefixtures("registered")
def test_a_run_is_named_after_the_pipeline_and_records_its_stages(tmp_path: Path) -> None:
    pool = {"name": "mini8", "tasks": ["latin", "greek"]}
    sections = {"algorithm": "trimmed-sum", "model_pool": pool}
    options = RunOptions(evaluate=False)
    planned = plan(sections, RunOptions())
    assert planned.algorithm_name == "trimmed-sum"
    assert [stage["name"] for stage in planned.recipe["algorithm"]] == [s["name"] for s in STAGES]
    result = run_fusion(sections, output=tmp_path / "out", options=options)
    assert result.path is not None
    statement = json.loads((result.path / "provenance.json").read_text())["predicate"]
    assert {stage["pipeline"] for stage in statement["stages"]} == {"trimmed-sum"}
    again = run_fusion(result.path / "recipe.yaml", output=tmp_path / "again", options=options)
    assert equal(again.weights.state_dict(), result.weights.state_dict())


@pytest.mark.usefixtures("registered")
@pytest.mark.parametrize(
    ("options", "problem", "hint"),
    [
        (
            {"density": 0.1},
            "unknown option 'density' of pipeline",
            "Name the stage first: algorithm.trim.density",
        ),
        ({"prompts": 1}, "unknown option 'prompts' of pipeline", "No stage has it."),
        ({"trmi": {}}, "unknown option 'trmi' of pipeline", "did you mean trim"),
        (
            {"trim": 0.1},
            "expected the options of stage 'trim', got 0.1",
            "algorithm.trim.OPTION=0.1",
        ),
        ({"trim": {"densty": 1}}, "algorithm.trim.densty: unknown option", "fuse info trim"),
    ],
)
def test_wrong_options_name_the_stage(
    models: Models, options: dict[str, Any], problem: str, hint: str
) -> None:
    with pytest.raises(RecipeError, match=problem) as error:
        merge_models({"name": "trimmed-sum", **options}, models)
    assert hint in str(error.value)


@pytest.mark.usefixtures("registered")
def test_a_name_that_an_algorithm_has_too_is_ambiguous(models: Models, site: Site) -> None:
    site.install(
        "pipelines-y",
        """
        from fusion_core import AlgorithmSpec, hookimpl

        @hookimpl
        def fusion_register_algorithms():
            yield AlgorithmSpec(
                name="trimmed-sum", summary="", target="fusion_linear.averages:SimpleAverage",
                config="fusion_linear.config:SimpleAverageConfig",
            )
        """,
    )
    with pytest.raises(AmbiguousComponentError, match="pipelines-x/trimmed-sum"):
        merge_models("trimmed-sum", models)
    assert equal(merge_models("pipelines-x/trimmed-sum", models), merge_models(STAGES, models))


@pytest.mark.usefixtures("registered")
def test_the_command_line_shows_a_pipeline_like_a_method(fuse: Callable[..., Outcome]) -> None:
    listing = json.loads(fuse("list", "algorithms", "--json").out)
    entry = next(component for component in listing if component["name"] == "trimmed-sum")
    assert (entry["needs_base"], entry["cost"]) == (True, "passes")
    assert "named pipelines" in fuse("list", "algorithms").out
    output = fuse("info", "trimmed-sum").out
    assert "trim (density: 0.5), task-arithmetic (scale: 0.7), rescale-norm" in output
    assert "arXiv:0000.00000" in output
    options = {row.split()[0]: row for row in output.splitlines() if row.startswith("t")}
    assert "0.7" in options["task-arithmetic.scale"]
    assert "trim.density" in fuse("run", "--algo", "trimmed-sum", "--help").out


def test_strong_is_the_pipeline_of_the_documentation() -> None:
    pool = {"name": "mini8", "tasks": ["latin", "greek"]}
    stages = [{"name": "disentangle"}, {"name": "adamerging", "preset": "strong", "init": 1}]
    recipes = [
        plan({"algorithm": algorithm, "model_pool": pool}, RunOptions()).recipe
        for algorithm in ("strong", stages)
    ]
    assert recipes[0] == recipes[1]


@pytest.mark.parametrize("stages", [(), (("trim", {}), ("trim", {}))])
def test_a_pipeline_has_stages_of_different_names(stages: Any) -> None:
    with pytest.raises(ValueError, match="needs stages of different names"):
        PipelineSpec(name="x", summary="", stages=stages)
