"""Call `fuse diagnose` as users do."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
import torch
import typer
from safetensors.torch import save_file
from typer.testing import CliRunner

from fusion_core.errors import FusionError, RecipeError
from fusion_report import Diagnosis, diagnose
from fusion_report.diagnosis.command import diagnose as command
from fusion_report.diagnosis.figures import Answers, Expert, Figures, Path
from fusion_report.diagnosis.printing import print_diagnosis
from fusion_testing import tiny_pool

if TYPE_CHECKING:
    from pathlib import Path as Folder

    from click.testing import Result

APP = typer.Typer()
APP.command()(command)


@pytest.fixture
def folder(tmp_path: Folder, monkeypatch: pytest.MonkeyPatch) -> Folder:
    """Write a base, three experts and a recipe that merges them."""
    for name, source in tiny_pool("mlp").by_name.items():
        (tmp_path / name).mkdir()
        save_file(source.state_dict(), tmp_path / name / "model.safetensors")
    (tmp_path / "recipe.yaml").write_text(
        "algorithm: {name: of-nobody, density: 3}\n"
        "model_pool: {base: base, models: [a, b, c]}\n"
        "output: {path: base}\n"
    )
    monkeypatch.chdir(tmp_path)
    return tmp_path


def call(*arguments: str) -> Result:
    done = CliRunner().invoke(APP, [*arguments, "-q"])
    if isinstance(done.exception, Exception):
        raise done.exception
    return done


def call_for_lines(*arguments: str) -> list[str]:
    return call(*arguments).stdout.splitlines()


@pytest.mark.usefixtures("folder")
def test_algorithm_and_output_of_a_recipe_are_ignored() -> None:
    lines = call_for_lines("recipe.yaml")
    assert [line.split()[0] for line in lines[1:4]] == ["a", "b", "c"]
    assert any(line.startswith("cosines") for line in lines)
    assert (
        lines[-1] == "no predictions measured: name tasks with unlabeled examples with --task-pool"
    )
    assert call_for_lines("recipe.yaml") == lines


@pytest.mark.usefixtures("folder")
def test_json_has_all_measurements_and_predictions() -> None:
    data = json.loads(call("recipe.yaml", "--json").stdout)
    assert data["schema"] == 2
    assert data["kind"]["counted_as"] == ["toys"]
    assert data["experts_below_base"] is None  # no tasks were measured
    assert data["figures"]["experts"].keys() == {"a", "b", "c"}
    assert len(data["figures"]["cosines"]) == 3
    for prediction in data["advice"]:
        assert prediction["held"] <= prediction["of"]
        low, high = prediction["interval"]
        assert low <= prediction["probability"] <= high
    (only,) = data["advice"]  # the experts were not trained from the base
    assert only["rule"] == "strangers"
    assert only["figures"]["relative norm"] > 0.9


@pytest.mark.usefixtures("folder")
def test_a_single_expert_is_not_compared() -> None:
    lines = call_for_lines("recipe.yaml", "--set", "model_pool.models=[a]")
    assert "only one expert: nothing to compare it with" in lines
    assert not any(line.startswith(("cosines", "confidence")) for line in lines)


def test_an_expert_that_equals_the_base_is_named(folder: Folder) -> None:
    (folder / "same").mkdir()
    (folder / "same" / "model.safetensors").write_bytes(
        (folder / "base" / "model.safetensors").read_bytes()
    )
    lines = call_for_lines("recipe.yaml", "--set", "model_pool.models=[a, same]")
    assert "same equals the base" in lines
    assert not any("nan" in line for line in lines)
    flags = ("--json", "--set", "model_pool.models=[a, same]")
    data = json.loads(call("recipe.yaml", *flags).stdout)
    assert data["figures"]["cosines"][0] == [pytest.approx(1), None]
    assert not any(line.startswith("confidence") for line in lines)


@pytest.mark.usefixtures("folder")
def test_without_a_base_the_remaining_methods_are_named() -> None:
    lines = call_for_lines("--pool", "checkpoints", "--set", "model_pool.models=[a, b]")
    assert lines[0].split()[:5] == ["expert", "norm", "relative", "to", "mean"]
    assert any(line.startswith("no base, so no task vectors") for line in lines)
    assert not any(line.startswith(("cosines", "sign conflict", "confidence")) for line in lines)


def test_models_that_do_not_fit_are_refused(folder: Folder) -> None:
    (folder / "other").mkdir()
    save_file({"x": torch.zeros(2)}, folder / "other" / "model.safetensors")
    with pytest.raises(FusionError, match="do not fit together"):
        call_for_lines("recipe.yaml", "--set", "model_pool.models=[a, other]")


@pytest.mark.usefixtures("folder")
def test_a_missing_model_is_named() -> None:
    with pytest.raises(FusionError, match="nowhere does not exist"):
        call_for_lines("recipe.yaml", "--set", "model_pool.models=[a, nowhere]")


def test_a_pool_without_experts_is_refused() -> None:
    with pytest.raises(RecipeError, match="no experts"):
        diagnose({"model_pool": {"base": {"x": torch.zeros(2)}, "models": {}}})


def test_samples_and_barriers_are_printed(
    capsys: pytest.CaptureFixture[str],
) -> None:
    names = ("a", "\x1b[31mb")
    experts = {name: Expert(name, 1.0, 0.1, 1.0, 8.0, 0.5) for name in names}
    flat, deep = (
        Path(ends, names, values)
        for ends, values in ((("base", "a"), [0.5, 0.8, 1.0]), (names, [0.6, 0.1, 0.6]))
    )
    answers = {"base": {"a": Answers(1.5, 0.25)}, "experts": {"a": Answers(0.125, 1.0)}}
    cosines = [[1.0, -0.001], [-0.001, 1.0]]
    figures = Figures(
        *(experts, True, 9, cosines, 1.4, 0.5, 0.2, {}, (3, 10), True, answers, (flat, deep))
    )
    print_diagnosis(Diagnosis(figures, []))
    printed = capsys.readouterr().out
    assert "\x1b" not in printed
    lines = printed.splitlines()
    assert lines[1].split()[-1] == "0.12"
    assert "cosines            mean 0.00, 0.00 to 0.00 " in printed
    assert next(line for line in lines if line.startswith("base ")).split() == [
        *("base", "1.50", "25", "%")
    ]
    (worst,) = (n for n, line in enumerate(lines) if line.startswith("line between"))
    assert lines[worst + 1].split()[-8:] == ["60", "%,", "10", "%,", "60", "%", "50", "%"]
    assert "effective ranks are means over 3 of 10 matrices, evenly spread" in lines
    assert "effective ranks use 1024 columns of wide matrices, evenly spread" in lines
    assert any(line.startswith("--try also measures some merges") for line in lines)
