"""The main job on `mini8`, through the real command line, and how methods compare on it."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

from fusion_adamerging.adamerging import AdaMerging
from fusion_adamerging.config import AdaMergingConfig
from fusion_core import load_models, run_fusion
from fusion_core.commands import Subject, dump_yaml
from fusion_core.contracts.measurements import mean_main_value
from fusion_core.contracts.specs import TaskPoolSpec
from fusion_core.planning.run_options import RunOptions
from fusion_core.plugins.manager import load_plugins
from fusion_core.weights import CheckpointSource
from pools_mini.files import DATA
from pools_mini.plugin import TASKS

if TYPE_CHECKING:
    from collections.abc import Callable

    from conftest import Outcome

pytestmark = pytest.mark.plugins

ROOT = Path(__file__).parents[1]
FUSE = Path(sys.executable).with_name("fuse")
#: Test images of each task that methods are compared on: half of them.
_IMAGES = 400
#: Tasks of the job that runs on each push.
_FEW = TASKS[:3]


@pytest.fixture(scope="module")
def main_job(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, str]:
    """The README's main job; its outputs, stdout and stderr."""
    return run_main_job(tmp_path_factory.mktemp("main-job"))


@pytest.fixture(scope="module")
def short_job(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, str]:
    """The main job with a tenth of its steps, on three tasks and an eighth of their test images."""
    few = ("algorithm.adamerging.steps=10", "task_pool.limit=100")
    few += (f"model_pool.tasks={json.dumps(_FEW)}",)
    return run_main_job(tmp_path_factory.mktemp("short-job"), *few)


def run_main_job(directory: Path, *options: str) -> tuple[Path, str, str]:
    flags = [part for option in options for part in ("--set", option)]
    command = [FUSE, "run", "--algo", "strong", "--pool", "mini8", *flags]
    done = subprocess.run(command, cwd=directory, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return directory / "outputs", done.stdout, done.stderr


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty directory, which commands are run in."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.thorough
def test_a_few_steps_of_it_can_be_repeated_and_give_the_same_bytes(
    fuse: Callable[..., Outcome], here: Path
) -> None:
    few = ("--set", "algorithm.steps=3", "--tasks", "latin,shapes", "--fresh")
    few += ("--set", "task_pool.limit=100")
    for _ in range(2):
        done = fuse("run", "--algo", "adamerging", *few)
        assert done.code == 0, done.err
    first, second = (here / "outputs" / f"mini8-adamerging-{number}" for number in (1, 2))
    names = sorted(path.name for path in first.iterdir())
    assert names == sorted(path.name for path in second.iterdir())
    assert {"coefficients.json", "config.json", "recipe.yaml", "report.json"} <= set(names)
    for name in names:
        ours, theirs = (directory / name for directory in (first, second))
        if name == "provenance.json":
            assert _without_run(ours) == _without_run(theirs)
        else:
            assert ours.read_bytes() == theirs.read_bytes(), name


def _without_run(path: Path) -> dict[str, Any]:
    statement: dict[str, Any] = json.loads(path.read_text())
    del statement["predicate"]["run"]
    return statement


def test_main_job_shows_every_task_and_reports_progress_apart(
    short_job: tuple[Path, str, str],
) -> None:
    outputs, out, err = short_job
    report = json.loads((outputs / "mini8-strong-1" / "report.json").read_text())
    lines = out.splitlines()
    assert lines[0].split() == ["task", "base", "strong", "experts"]
    for line, task in zip(lines[1:4], _FEW, strict=True):
        shown = [float(cell) for cell in line.split()[1:]]
        rows = (
            report["reference"]["base"],
            report["tasks"],
            report["reference"]["experts"],
        )
        assert line.split()[0] == task
        assert shown == [pytest.approx(100 * row[task]["accuracy"], abs=0.051) for row in rows]
    assert lines[-1] == "written: outputs/mini8-strong-1"
    assert "adapt" in err
    assert "evaluate" in err


@pytest.mark.thorough
def test_main_job_looks_as_the_readme_shows(main_job: tuple[Path, str, str]) -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    shown = re.search(r"<!-- output: main-job -->\n```\n(.*?)```", readme, re.DOTALL)
    assert shown is not None
    ours, theirs = (_numbers(text) for text in (main_job[1], shown[1]))
    assert ours.keys() == theirs.keys()
    for row, values in ours.items():
        # Another processor rounds differently; on one of the same kind the numbers are equal.
        assert values == [pytest.approx(value, abs=1.5) for value in theirs[row]], row


def _numbers(table: str) -> dict[str, list[float]]:
    rows = (line.split() for line in table.splitlines())
    return {
        row[0]: [float(x) for x in row[1:]] for row in rows if row and row[0] in (*TASKS, "average")
    }


def test_main_job_loads_with_transformers(short_job: tuple[Path, str, str]) -> None:
    from transformers import CLIPVisionModel

    directory = short_job[0] / "mini8-strong-1"
    model, info = CLIPVisionModel.from_pretrained(directory, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert all(torch.isfinite(parameter).all() for parameter in model.parameters())


def test_report_is_consistent(short_job: tuple[Path, str, str]) -> None:
    report = json.loads((short_job[0] / "mini8-strong-1" / "report.json").read_text())
    accuracies = {task: metrics["accuracy"] for task, metrics in report["tasks"].items()}
    experts = report["reference"]["experts"]
    assert tuple(accuracies) == _FEW
    assert report["average"] == pytest.approx(sum(accuracies.values()) / 3)
    ratios = [accuracies[task] / experts[task]["accuracy"] for task in _FEW]
    assert report["normalised_average"] == pytest.approx(sum(ratios) / 3)
    assert report["normalised_average"] > 0.9, "ten steps suffice for that"
    assert report["transductive"] is False
    assert report["schema"] == 2


@pytest.mark.thorough
def test_evaluate_gives_the_run_s_report_again(
    main_job: tuple[Path, str, str], fuse: Callable[..., Outcome], here: Path
) -> None:
    directory = here / "model"
    shutil.copytree(main_job[0] / "mini8-strong-1", directory)
    expected = (directory / "report.json").read_bytes()
    (directory / "report.json").unlink()
    done = fuse("evaluate", "model", "--json")
    assert done.code == 0, done.err
    assert (directory / "report.json").read_bytes() == expected
    assert json.loads(done.out) == json.loads(expected)


@pytest.mark.thorough
def test_saved_coefficients_give_the_same_model(
    short_job: tuple[Path, str, str], fuse: Callable[..., Outcome], here: Path
) -> None:
    first = short_job[0] / "mini8-strong-1"
    coefficients = f"algorithm.adamerging.coefficients={first / 'coefficients.json'}"
    tasks = f"model_pool.tasks={json.dumps(_FEW)}"
    arguments = ("--algo", "strong", "--set", coefficients, "--set", tasks, "--no-eval")
    assert fuse("run", *arguments, "-o", "again").code == 0  # the pool is the default one
    ours = (here / "again" / "model.safetensors").read_bytes()
    assert ours == (first / "model.safetensors").read_bytes()


def test_adapting_on_a_half_is_measured_on_the_other(
    fuse: Callable[..., Outcome], here: Path
) -> None:
    options = ("adapt_split=holdout", "steps=1", "batch_size=4")
    flags = [part for option in options for part in ("--set", f"algorithm.{option}")]
    done = fuse("run", "--algo", "adamerging", "--tasks", "latin", *flags, "-o", "m")
    assert done.code == 0, done.err
    assert "measured on a half of the test images, which adaptation did not see" in done.out
    expected = (here / "m" / "report.json").read_bytes()
    report = json.loads(expected)
    assert (report["transductive"], report["tasks"]["latin"]["accuracy"] * 400 % 1) == (False, 0)
    assert fuse("evaluate", "m", "--fresh").code == 0
    assert (here / "m" / "report.json").read_bytes() == expected


def test_what_an_object_has_adapted_on_is_known_when_it_is_measured_again(
    fuse: Callable[..., Outcome], here: Path
) -> None:
    run_fusion(
        algorithm=AdaMerging(AdaMergingConfig(steps=1, batch_size=4, adapt_split="holdout")),
        model_pool="mini8",
        task_pool={"name": "mini8", "tasks": ["latin"]},
        output=here / "m",
    )
    report = here / "m" / "report.json"
    expected = report.read_bytes()
    refused = fuse("--no-plugin", "fusion-adamerging", "evaluate", "m")
    assert refused.code == 3
    assert "may have adapted to the tasks" in refused.err
    assert report.read_bytes() == expected
    report.write_text("{")
    assert fuse("--no-plugin", "fusion-adamerging", "evaluate", "m").code == 3
    assert fuse("evaluate", "m", "--fresh").code == 0
    assert report.read_bytes() == expected


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("--tasks", "latin,grek"), 2, ("grek", "greek")),
        (("--set", "task_pool.limit=-1"), 2, ("task_pool.limit",)),
        (("--set", "model_pool.tasks=[nope]"), 2, ("nope",)),
        (("--set", "algorithm.batch_size=0"), 2, ("algorithm.batch_size",)),
    ],
)
def test_bad_input_is_named_and_nothing_is_written(
    fuse: Callable[..., Outcome],
    here: Path,
    arguments: tuple[str, ...],
    code: int,
    says: tuple[str, ...],
) -> None:
    done = fuse("run", "--algo", "adamerging", "--pool", "mini8", *arguments)
    assert done.code == code, done.err
    assert "Traceback" not in done.err
    assert all(part in done.err for part in says)
    assert list(here.iterdir()) == []


# --- how methods compare ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def average(
    main_job: tuple[Path, str, str], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., float]:
    """Average accuracy over the tasks, in points, of an algorithm with some options, on a half."""
    directory = tmp_path_factory.mktemp("methods")
    component = load_plugins().find(TaskPoolSpec, "mini8")
    tasks = component.create(component.load_config()(limit=_IMAGES))
    learned = CheckpointSource(main_job[0] / "mini8-strong-1")
    pool = load_models({"model_pool": "mini8"}, load_plugins())
    live = pool.build(learned, dtype=None)
    known = {"strong-": 100 * mean_main_value(tasks.measure(Subject.of(live)))}

    def measure(name: str, **options: Any) -> float:
        key = re.sub(r"\W+", "-", f"{name}-{options or ''}")
        if key not in known:
            result = run_fusion(
                algorithm={"name": name, **options},
                model_pool="mini8",
                output=directory / key,
                options=RunOptions(evaluate=False),
            )
            known[key] = 100 * mean_main_value(tasks.measure(Subject.of(result.model)))
        return known[key]

    return measure


def _best_task_arithmetic(average: Callable[..., float]) -> float:
    others = [average("task-arithmetic", scale=scale) for scale in (0.1, 0.2, 0.4, 0.6, 1.0)]
    return max(average("task-arithmetic"), *others)


@pytest.mark.thorough
def test_layer_wise_beats_task_wise_adamerging(average: Callable[..., float]) -> None:
    assert average("adamerging") >= average("adamerging", granularity="task") + 2


@pytest.mark.thorough
def test_layer_wise_adamerging_beats_task_arithmetic(average: Callable[..., float]) -> None:
    assert average("adamerging") >= average("task-arithmetic") + 2
    assert average("adamerging") >= _best_task_arithmetic(average) + 1


@pytest.mark.thorough
def test_the_pipeline_strong_beats_every_method_alone(average: Callable[..., float]) -> None:
    others = ("tsv-m", "adamerging", "ties", "task-arithmetic")
    assert average("strong") >= max(average(method) for method in others) + 5


@pytest.mark.thorough
def test_task_arithmetic_has_an_interior_optimum(average: Callable[..., float]) -> None:
    best = _best_task_arithmetic(average)
    assert best > average("task-arithmetic", scale=0.1) + 1
    assert best > average("task-arithmetic", scale=1.0) + 1


@pytest.mark.thorough
def test_every_merge_lies_between_base_and_experts(
    main_job: tuple[Path, str, str], average: Callable[..., float]
) -> None:
    reference = json.loads((main_job[0] / "mini8-strong-1" / "report.json").read_text())
    base, experts = (
        100 * mean_main_value(reference["reference"][row]) for row in ("base", "experts")
    )
    assert 40 <= base <= 60
    assert experts >= 92
    assert 15 <= experts - average("simple-average") <= 30
    for method in ("simple-average", "task-arithmetic", "ties", "adamerging", "strong"):
        assert base < average(method) < experts, method


@pytest.mark.thorough
def test_a_stack_is_measured_alike_after_the_run_and_from_its_directory(
    fuse: Callable[..., Outcome], here: Path
) -> None:
    slices = "[{model: latin, layers: [0, 3]}, {model: greek, layers: [1, 4]}]"
    pool = ("--pool", "mini8", "--tasks", "latin,greek")
    run = fuse("run", "--algo", "stack", "--set", f"algorithm.slices={slices}", *pool, "-o", "out")
    assert run.code == 0, run.err
    report = here / "out" / "report.json"
    first = json.loads(report.read_bytes())
    report.unlink()
    again = fuse("evaluate", "out")
    assert again.code == 0, again.err
    assert json.loads(report.read_bytes())["tasks"] == first["tasks"]
    assert json.loads((here / "out" / "config.json").read_text())["num_hidden_layers"] == 6


def test_experts_on_the_wrong_tasks_are_said_to_be_by_every_command(
    fuse: Callable[..., Outcome], here: Path
) -> None:
    clip = {"name": "clip", "base": str(DATA / "base")}
    wrong = {"latin": str(DATA / "experts" / "shapes"), "shapes": str(DATA / "experts" / "latin")}
    tasks = {"name": "mini8", "tasks": ["latin", "shapes"], "limit": 80}
    recipe = {"algorithm": "simple-average", "model_pool": {**clip, "models": wrong}}
    Path("recipe.yaml").write_text(dump_yaml({**recipe, "task_pool": tasks}))
    commands = (
        ("run", "recipe.yaml", "-o", "out", "--json"),
        ("evaluate", "out", "--json"),
        ("compare", "out", "--json"),
        ("diagnose", "recipe.yaml", "--samples", "4", "--json"),
    )
    for command in commands:
        done = fuse(*command)
        assert done.code == 0
        assert "do not belong together: the expert scores below the base on latin (" in done.err
        content = json.loads(done.out)
        content = content.get("report") or content.get("out") or content
        assert content["experts_below_base"]["latin"]["evidence"] == "exact McNemar"
        assert content.get("normalised_average") is None
    printed = fuse("compare", "out").out
    assert "normalised" not in printed
    assert "the expert scores below the base on latin" in printed
