"""mini8: its files, its pools, and a run."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any

import pytest
from transformers import CLIPVisionModel

from fusion_core import RunOptions, Split, run_fusion
from fusion_core.commands import Subject
from fusion_core.errors import IntegrityError, RecipeError
from fusion_testing import Mean
from pools_mini import files, plugin
from pools_mini.config import Mini8Config, Mini8TasksConfig
from pools_mini.files import DATA, load_description
from pools_mini.pools import Mini8Pool, Mini8Tasks

if TYPE_CHECKING:
    from fusion_core import RunResult

PACKAGE = Path(__file__).parents[1]
PAIR = ["optdigits", "shapes"]


@pytest.fixture(scope="module")
def pool() -> Mini8Pool:
    return Mini8Pool(Mini8Config())


@pytest.fixture(scope="module")
def tasks() -> Mini8Tasks:
    return Mini8Tasks(Mini8TasksConfig())


def run(output: Path, **options: Any) -> RunResult:
    """Average two experts, and evaluate the first images of their tasks."""
    return run_fusion(
        algorithm=Mean(),
        model_pool={"tasks": PAIR, "name": "mini8", **options},
        task_pool={"tasks": PAIR, "limit": 100},
        output={"path": str(output)},
        options=RunOptions(fresh=True),
    )


def list_distributed(kind: str) -> set[str]:
    """Return the files of a wheel or sdist."""
    module = pytest.importorskip(f"hatchling.builders.{kind}")
    builder = getattr(module, f"{kind.title()}Builder")(str(PACKAGE))
    return {file.distribution_path for file in builder.recurse_included_files()}


@pytest.mark.parametrize(
    "spec",
    [*plugin.fusion_register_model_pools(), *plugin.fusion_register_task_pools()],
    ids=lambda spec: spec.kind,
)
def test_a_spec_names_a_class_and_its_configuration(spec: Any) -> None:
    assert resolve_name(spec.target).config_class is resolve_name(spec.config)
    assert spec.offline


def test_the_plugin_imports_nothing_heavy() -> None:
    code = "import sys, pools_mini.plugin; print(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"torch", "transformers", "pyarrow", "PIL", "pydantic"} & set(run.stdout.split())


def test_the_registered_tasks_are_those_described(pool: Mini8Pool, tasks: Mini8Tasks) -> None:
    assert list(plugin.TASKS) == list(load_description()["tasks"])
    assert list(plugin.TASKS) == list(pool.experts) == list(tasks.names)


def test_every_file_matches_its_checksum() -> None:
    lines = (DATA / "SHA256SUMS").read_text().splitlines()
    recorded = {name: digest for digest, name in (line.split("  ", 1) for line in lines)}
    files = {path for path in DATA.rglob("*") if path.is_file() and path.name != "SHA256SUMS"}
    assert recorded.keys() == {str(path.relative_to(DATA)) for path in files}
    for name, digest in recorded.items():
        assert hashlib.sha256((DATA / name).read_bytes()).hexdigest() == digest, name


@pytest.mark.sampled(4)
@pytest.mark.parametrize(
    "name",
    ["base/model.safetensors", "base/config.json", "tasks/greek/test.parquet", "tasks.json"],
)
@pytest.mark.parametrize("damage", ["changed", "gone", "not listed"])
def test_a_changed_file_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, damage: str
) -> None:
    data = Path(shutil.copytree(DATA, tmp_path / "data"))
    monkeypatch.setattr(files, "DATA", data)
    content = (data / name).read_bytes()
    if damage == "changed":
        (data / name).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    elif damage == "gone":
        (data / name).unlink()
    else:
        sums = (data / "SHA256SUMS").read_text().splitlines()
        (data / "SHA256SUMS").write_text("\n".join(line for line in sums if name not in line))
    with pytest.raises(IntegrityError, match=f"{name}: ") as caught:
        Mini8Pool(Mini8Config())
        Mini8Tasks(Mini8TasksConfig())
    assert "--force-reinstall pools-mini" in str(caught.value)


@pytest.mark.parametrize(("kind", "folder"), [("wheel", "pools_mini"), ("sdist", "src/pools_mini")])
def test_wheel_and_sdist_contain_every_file(kind: str, folder: str) -> None:
    files = [path for path in DATA.rglob("*") if path.is_file()]
    assert {f"{folder}/{path.relative_to(DATA.parent)}" for path in files} <= list_distributed(kind)


def test_the_wheel_contains_only_the_package() -> None:
    assert {name.split("/")[0] for name in list_distributed("wheel")} == {"pools_mini"}


def test_the_files_fit_into_a_wheel() -> None:
    assert sum(path.stat().st_size for path in DATA.rglob("*") if path.is_file()) < 25e6


def test_every_task_has_three_splits_and_none_is_transductive(tasks: Mini8Tasks) -> None:
    assert not tasks.transductive
    for task in tasks:
        classes = len(load_description()["tasks"][task.name]["classnames"])
        unlabeled = task.batch(0, size=300, split=Split.UNLABELED, seed=0)
        assert unlabeled.inputs.shape == (300, 1, 28, 28)
        assert unlabeled.labels is None
        for split in (Split.TRAIN, Split.TEST):
            labels = task.batch(0, size=256, split=split, seed=0).labels
            assert labels is not None
            assert set(labels.tolist()) <= set(range(classes))


def test_unlabeled_images_are_not_test_images(tasks: Mini8Tasks) -> None:
    for task in tasks:
        seen, measured = (
            {image.numpy().tobytes() for image in task._images(split).pixels}  # noqa: SLF001
            for split in (Split.UNLABELED, Split.TEST)
        )
        assert not seen & measured, task.name


def test_every_expert_is_better_than_the_base_on_its_task(
    pool: Mini8Pool, tasks: Mini8Tasks
) -> None:
    quick = Mini8Tasks(Mini8TasksConfig(limit=200))
    base = quick.measure(Subject.of(pool.build(pool.base)))
    for name in tasks.names:
        expert = quick[name].evaluate(pool.build(pool.experts[name]))
        assert expert["accuracy"] > base[name]["accuracy"] + 0.1


def test_the_provenance_contains_no_local_paths(pool: Mini8Pool) -> None:
    inputs = pool.inputs()
    assert inputs["base"]["source"] == "mini8/base"
    assert inputs["latin"]["source"] == "mini8/latin"
    assert str(DATA) not in json.dumps(inputs)


@pytest.mark.parametrize(
    "kind", [(Mini8Pool, Mini8Config), (Mini8Tasks, Mini8TasksConfig)], ids=["models", "tasks"]
)
def test_an_unknown_task_is_a_recipe_error(kind: Any) -> None:
    pool, config = kind
    with pytest.raises(RecipeError, match="did you mean hiragana") as caught:
        pool(config(tasks=["hirogana"]))
    assert caught.value.exit_code == 2


def test_a_run_loads_in_transformers_and_is_reproducible(tmp_path: Path) -> None:
    first = run(tmp_path / "a")
    run(tmp_path / "b")
    assert first.path is not None
    _, info = CLIPVisionModel.from_pretrained(first.path, output_loading_info=True)
    assert not any(info.values())
    assert first.report is not None
    assert list(first.report.tasks) == PAIR
    for path in first.path.iterdir():
        if path.name != "provenance.json":
            assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes(), path.name
