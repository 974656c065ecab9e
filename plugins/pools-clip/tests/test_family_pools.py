"""The hub pools, with a local hub that serves tiny repositories under the real ids."""

from __future__ import annotations

import json
import logging
import shutil
import socket
import subprocess
import sys
from io import BytesIO
from pathlib import Path
from pkgutil import resolve_name
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from fusion_core import RunOptions, Split, run_fusion, show_notes_on
from fusion_core import hub as hub_client
from fusion_core.commands import Subject
from fusion_core.errors import CheckpointError, DiskError, HubError, RecipeError
from fusion_testing import Mean
from pools_clip import model_origin, stored_images
from pools_clip.config import ClipConfig, FamilyConfig, FamilyTasksConfig
from pools_clip.families import all_tasks, families, load_data_set, load_published, task_sets
from pools_clip.family_pools import ClipVitB32, ClipVitB32Tasks
from pools_clip.pool import ClipPool

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from hub_server import HubServer

BASE = "openai/clip-vit-base-patch32"
EXPERT = "tanganke/clip-vit-base-patch32_"
TA8 = ["sun397", "stanford-cars", "resisc45", "eurosat", "svhn", "gtsrb", "mnist", "dtd"]
BOT = "SFconvertbot"
GONE = {"X-Error-Code": "RepoNotFound"}


def parquet(
    rows: Sequence[tuple[bytes, int]], columns: tuple[str, str], kind: pa.DataType | None = None
) -> bytes:
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    images = pa.array([{"bytes": data, "path": None} for data, _ in rows], image)
    labels = pa.array([label for _, label in rows], kind or pa.int64())
    stream = BytesIO()
    pq.write_table(pa.table(dict(zip(columns, [images, labels], strict=True))), stream)
    return stream.getvalue()


def serve_fer2013(server: HubServer, rows: Sequence[tuple[bytes, int]]) -> None:
    """Serve a data set of archives, which the hub has converted to parquet."""
    repository, data = load_data_set("fer2013").dataset, parquet(rows, ("jpg", "cls"))
    server.add(repository, {"test/0.tar": b"tar"}, kind="dataset")
    server.add(
        repository,
        {"default/test/0000.parquet": data, "default/train/0000.parquet": b"no"},
        kind="dataset",
        branch="refs/convert/parquet",
    )


def files_of(directory: Path | str) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in Path(directory).iterdir() if path.is_file()}


def as_pickle(directory: Path) -> dict[str, bytes]:
    """Return a model's files, with the weights as a pickle."""
    files, stream = files_of(directory), BytesIO()
    files.pop("model.safetensors")
    torch.save(load_file(directory / "model.safetensors"), stream)
    return {**files, "pytorch_model.bin": stream.getvalue()}


@pytest.fixture(autouse=True)
def _forget_warnings() -> None:
    model_origin.warn_once.cache_clear()


@pytest.fixture
def pickled(hub: HubServer, base: Path, experts: dict[str, str]) -> HubServer:
    """A hub with a pickled base and one expert."""
    hub.add(BASE, as_pickle(base))
    hub.add(f"{EXPERT}mnist", files_of(experts["hub"]))
    return hub


@pytest.fixture
def serve(hub: HubServer, base: Path, experts: dict[str, str], rows: Any) -> HubServer:
    """A hub with the base, eight experts in both forms of names, and their data sets."""
    hub.add(BASE, files_of(base) | {"flax_model.msgpack": b"x" * 99, "model.py": b"raise"})
    for number, task in enumerate(TA8):
        hub.add(EXPERT + task, files_of(experts["hub" if number % 2 else "memory"]))
        data, description = parquet(rows[:10], ("image", "label")), load_data_set(task)
        folder = description.config or "data"
        hub.add(
            description.dataset,
            {
                f"{folder}/test-00000-of-00002.parquet": data,
                f"{folder}/test-00001-of-00002.parquet": parquet(rows[10:], ("image", "label")),
                f"{folder}/train-00000-of-00001.parquet": b"never read",
                f"{folder}/contrast-00000-of-00001.parquet": data,
                "README.md": b"---\nlicense: mit\n---\n",
            },
            kind="dataset",
        )
    return hub


APP = resolve_name("fusion_core.cli.app:app")  # the command itself, in this process


def fuse(*arguments: str, code: int = 0) -> Any:
    result = CliRunner().invoke(APP, list(arguments))
    if code:
        assert result.exception is not None
        assert getattr(result.exception, "exit_code", None) == code, result.exception
    else:
        assert result.exit_code == 0, result.output + repr(result.exception)
    return result


def base_tensors(pool: ClipPool) -> dict[str, torch.Tensor]:
    assert pool.base is not None
    return pool.base.state_dict()


# The tables


def test_every_task_has_a_data_set_with_prompts_and_a_source() -> None:
    assert list(map(len, task_sets().values())) == [8, 14, 20]
    assert set(all_tasks()) == {task for tasks in task_sets().values() for task in tasks}
    counts = {task: len(load_data_set(task).classnames) for task in TA8}
    assert list(counts.values()) == [397, 196, 45, 10, 10, 43, 10, 47]
    for task in all_tasks():
        assert load_data_set(task).source
        assert all(template.format("cat") != template for template in load_data_set(task).templates)


@pytest.mark.parametrize("name", ["clip-vit-b32", "clip-vit-b16", "clip-vit-l14"])
def test_repositories_of_experts(name: str) -> None:
    family = families()[name]
    for task, repository in family.experts(all_tasks()).items():
        assert repository.endswith(f"_{task}")
        assert repository.split("/")[1].startswith(family.base.split("/")[1])


@pytest.mark.parametrize(
    ("name", "count", "row", "average"),
    [
        ("clip-vit-b32", 20, "Layer-wise AdaMerging", 82.6),
        ("clip-vit-b16", 11, "TIES", 77.5),
        ("clip-vit-l14", 13, "Task Arithmetic", 80.7),
    ],
)
def test_published_rows_match_the_published_averages(
    name: str, count: int, row: str, average: float
) -> None:
    table = load_published(name)
    assert len(table["rows"]) == count
    assert all(len(scores) == len(table["tasks"]) for scores in table["rows"].values())
    assert abs(sum(table["rows"][row]) / 8 - average) < 0.1


# The model pools


def test_only_the_files_that_a_merge_needs_are_downloaded(serve: HubServer) -> None:
    pool = ClipVitB32(FamilyConfig(tasks=["mnist", "dtd"]))
    assert list(pool.experts) == ["mnist", "dtd"]
    assert not serve.asked("model.safetensors", "HEAD")  # headers come by a range of bytes
    run_fusion(algorithm=Mean(), model_pool=pool)
    assert not serve.asked("msgpack")
    assert not serve.asked(".py")
    assert not serve.asked("sun397")


def test_sets_of_tasks_are_expanded(serve: HubServer) -> None:
    assert list(ClipVitB32(FamilyConfig()).experts) == TA8
    with pytest.raises(RecipeError, match="'mnist' is named twice"):
        ClipVitB32(FamilyConfig(tasks=["ta8", "mnist"]))
    with pytest.raises(RecipeError, match="did you mean mnist"):
        ClipVitB32(FamilyConfig(tasks=["mnst"]))


def test_inputs_name_commits(serve: HubServer) -> None:
    pool = ClipVitB32(FamilyConfig(tasks=["mnist"]))
    commit = serve.repositories["models", f"{EXPERT}mnist"].refs["main"]
    assert pool.inputs()["mnist"]["source"] == f"{EXPERT}mnist@{commit}"


def test_the_hubs_own_conversion_is_preferred_to_a_pickle(
    pickled: HubServer, base: Path, caplog: pytest.LogCaptureFixture
) -> None:
    before, evil = as_pickle(base), {"model.safetensors": b"evil"}
    pickled.request(BASE, "somebody", before | evil)
    pickled.request(BASE, BOT, evil | {"pytorch_model.bin": b"of other weights"})
    conversion = pickled.request(BASE, BOT, before | files_of(base))
    with caplog.at_level(logging.WARNING):
        pool = ClipVitB32(FamilyConfig(tasks=["mnist"]))
        ClipVitB32(FamilyConfig(tasks=["mnist"]))
    assert pool.inputs()["base"]["source"] == f"{BASE}@{conversion}"
    assert len(caplog.messages) == 1
    assert conversion in caplog.text
    assert not pickled.asked("pytorch_model.bin")
    expected = load_file(base / "model.safetensors")
    for name, tensor in base_tensors(pool).items():
        assert torch.equal(tensor, expected[name])


#: The pool refuses pickles with older versions.
_READS_PICKLES = [int(part) for part in torch.__version__.split(".")[:2]] >= [2, 10]
_with_pickles = pytest.mark.skipif(not _READS_PICKLES, reason="this torch reads no pickle safely")


def test_a_pickle_is_refused_with_an_old_torch(
    pickled: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "__version__", "2.9.1+cpu")
    with pytest.raises(CheckpointError, match=r"torch 2\.9\.1\+cpu cannot read safely"):
        base_tensors(ClipVitB32(FamilyConfig(tasks=["mnist"])))


@_with_pickles
@pytest.mark.parametrize("discussions", [200, 403])
def test_without_a_conversion_the_pickle_is_read_as_plain_tensors(
    pickled: HubServer,
    base: Path,
    caplog: pytest.LogCaptureFixture,
    tmp_path: Path,
    discussions: int,
) -> None:
    if discussions != 200:
        pickled.fail("/discussions", status=discussions)
    out = tmp_path / "out"
    with caplog.at_level(logging.WARNING):
        run_fusion(
            algorithm="task-arithmetic",
            model_pool={"name": "clip-vit-b32", "tasks": ["mnist"]},
            output={"path": str(out)},
            options=RunOptions(evaluate=False),
        )
    assert [message for message in caplog.messages if "pickle" in message] == caplog.messages
    assert len(caplog.messages) == 1
    recorded = json.loads((out / "provenance.json").read_text())["predicate"]
    assert "torch.load(weights_only=True, mmap=True)" in json.dumps(recorded)
    expected = load_file(base / "model.safetensors")
    pool = ClipVitB32(FamilyConfig(tasks=["mnist"]))
    for name, tensor in base_tensors(pool).items():
        assert torch.equal(tensor, expected[name])


@pytest.mark.parametrize("converted", [True, pytest.param(False, marks=_with_pickles)])
def test_a_base_without_safetensors_works_offline(
    pickled: HubServer, base: Path, monkeypatch: pytest.MonkeyPatch, *, converted: bool
) -> None:
    if converted:
        pickled.request(BASE, BOT, as_pickle(base) | files_of(base))
    run_fusion(algorithm=Mean(), model_pool=ClipVitB32(FamilyConfig(tasks=["mnist"])))
    pickled.stop()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    pool = ClipVitB32(FamilyConfig(tasks=["mnist"]))
    expected = load_file(base / "model.safetensors")
    for name, tensor in base_tensors(pool).items():
        assert torch.equal(tensor, expected[name])
    assert ("pickle" in json.dumps(pool.inputs()["base"])) is not converted


class _Canary:
    def __reduce__(self) -> Any:
        return print, ("the canary sang",)


@pytest.mark.parametrize("content", ["code", "stride", "text", "nothing", "cut"])
def test_a_pickle_with_anything_but_tensors_of_its_size_is_refused(
    hub: HubServer, base: Path, capsys: pytest.CaptureFixture[str], content: str
) -> None:
    stream = BytesIO()
    value = {
        "code": {"x": _Canary()},
        "stride": {"vision_model.x": torch.zeros(1).expand(10**9)},
        "text": {"x": "text"},
        "nothing": {},
        "cut": {"x": torch.zeros(10**4)},
    }[content]
    torch.save(value, stream)
    data = stream.getvalue()[: 10**4 if content == "cut" else None]
    hub.add(BASE, as_pickle(base) | {"pytorch_model.bin": data})
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin"):
        ClipVitB32(FamilyConfig(tasks=["mnist"]))
    assert "canary" not in capsys.readouterr().out


def test_a_pickle_in_another_repository_is_refused(hub: HubServer, base: Path) -> None:
    hub.add("someone/clip", as_pickle(base))
    with pytest.raises(CheckpointError, match="a pickle, which can run code"):
        ClipPool(ClipConfig(base="someone/clip", models={"x": "someone/clip"}))


def test_own_experts_can_be_mixed_with_published_ones(
    serve: HubServer, experts: dict[str, str], dataset: dict[str, Any], tmp_path: Path
) -> None:
    serve.add("me/pets", files_of(experts["memory"]))
    recipe = {
        "algorithm": {"name": "task-arithmetic"},
        "model_pool": {
            "name": "clip",
            "base": BASE,
            "models": {"pets": "me/pets", "mnist": f"{EXPERT}mnist"},
        },
        "task_pool": {
            "name": "clip-classification",
            "clip": BASE,
            "datasets": {"pets": dataset},
            "tasks": ["pets", "mnist"],
        },
        "output": {"path": str(tmp_path / "out")},
    }
    report = run_fusion(recipe).report
    assert report is not None
    assert list(report.tasks) == ["pets", "mnist"]
    assert report.reference.experts.keys() == {"pets", "mnist"}


# The task pools


def test_only_the_shards_of_the_test_split_are_read(serve: HubServer) -> None:
    tasks = ClipVitB32Tasks(FamilyTasksConfig(tasks=["svhn"]))
    model = ClipVitB32(FamilyConfig(tasks=["svhn"]))
    metrics = tasks.measure(Subject.of(model.build(model.base)))
    assert 20 * metrics["svhn"]["accuracy"] == round(20 * metrics["svhn"]["accuracy"])
    assert not serve.asked("train-")
    assert len(serve.asked("cropped_digits/test-", "GET")) == 2


@pytest.mark.parametrize(("limit", "read"), [(5, 1), (15, 2)])
def test_limit_reads_only_the_files_with_the_first_images(
    serve: HubServer, limit: int, read: int
) -> None:
    """The table expects 13016 of 26032 rows in the first file. The download shows ten."""
    tasks = ClipVitB32Tasks(FamilyTasksConfig(tasks=["svhn"], limit=limit))
    model = ClipVitB32(FamilyConfig(tasks=["svhn"]))
    (wanted,) = [download for download in tasks.downloads() if download.reference.kind == "dataset"]
    assert wanted.paths == ("cropped_digits/test-00000-of-00002.parquet",)
    metrics = tasks.measure(Subject.of(model.build(model.base)))
    assert limit * metrics["svhn"]["accuracy"] == round(limit * metrics["svhn"]["accuracy"])
    assert len(serve.asked("cropped_digits/test-", "GET")) == read
    assert len(tasks["svhn"].batch(0, size=limit, split=Split.TEST, seed=0).inputs) == limit


def test_decoding_and_evaluation_report_progress(serve: HubServer) -> None:
    notes = []
    pool = ClipVitB32(FamilyConfig(tasks=["mnist"]))
    tasks = ClipVitB32Tasks(FamilyTasksConfig(tasks=["mnist"], batch_size=8))
    with show_notes_on(lambda count, *, note: notes.append((count, note))):
        tasks.measure(Subject.of(pool.build(pool.base)))
    assert notes == [
        (0, "test-00000-of-00002.parquet: 10 of 10 images decoded"),
        (0, "test-00001-of-00002.parquet: 10 of 10 images decoded"),
        (0, "mnist: 7 of 20 images"),
        (0, "mnist: 14 of 20 images"),
        (0, "mnist: 20 of 20 images"),
    ]


def test_images_and_heads_are_cached(serve: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    pool = ClipVitB32(FamilyConfig(tasks=["mnist"]))
    model = pool.build(pool.base)
    first = ClipVitB32Tasks(FamilyTasksConfig(tasks=["mnist"])).measure(Subject.of(model))
    for name in ("stored_images.read_images", "heads._TextEncoder"):
        monkeypatch.setattr(f"pools_clip.{name}", None)  # any call fails
    assert ClipVitB32Tasks(FamilyTasksConfig(tasks=["mnist"])).measure(Subject.of(model)) == first


def test_cached_images_match_local_files(
    serve: HubServer, dataset: dict[str, Any], base: Path
) -> None:
    from pools_clip.config import ClipClassificationConfig
    from pools_clip.tasks import ClipClassification

    local = ClipClassification(
        ClipClassificationConfig(clip=str(base), datasets={"mnist": dataset})
    )["mnist"].batch(0, size=20, split=Split.TEST, seed=0)
    cached = ClipVitB32Tasks(FamilyTasksConfig(tasks=["mnist"]))["mnist"]
    batch = cached.batch(0, size=20, split=Split.TEST, seed=0)
    assert torch.equal(batch.inputs, local.inputs)
    assert local.labels is not None
    assert batch.labels is not None
    assert torch.equal(batch.labels, local.labels)
    unlabeled = cached.batch(0, size=3, split=Split.UNLABELED, seed=0)
    assert unlabeled.labels is None


def test_a_data_set_without_parquet_files_is_read_from_the_hubs_conversion(
    serve: HubServer, rows: Any
) -> None:
    serve_fer2013(serve, rows)
    pool = ClipVitB32(FamilyConfig(tasks=["mnist"]))
    tasks = ClipVitB32Tasks(FamilyTasksConfig(tasks=["fer2013"], limit=4))
    assert tasks.measure(Subject.of(pool.build(pool.base)))["fer2013"]["accuracy"] in {
        0,
        0.25,
        0.5,
        0.75,
        1,
    }
    assert tasks.measured_on == "the first 4 test images of each task"


def test_boolean_labels_become_numbers(serve: HubServer, rows: Any) -> None:
    binary_rows = [(data, bool(label % 2)) for data, label in rows]
    data = parquet(binary_rows, ("image", "label"), pa.bool_())
    serve.add(
        load_data_set("pcam").dataset, {"data/test-00000-of-00001.parquet": data}, kind="dataset"
    )
    for _ in range(2):  # decoded, then from the cache
        batch = ClipVitB32Tasks(FamilyTasksConfig(tasks=["pcam"]))["pcam"].batch(
            0, size=20, split=Split.TEST, seed=0
        )
        assert batch.labels is not None
        assert batch.labels.dtype == torch.int64
        assert int(batch.labels.sum()) == sum(label for _, label in binary_rows)


def test_caches_of_an_earlier_format_are_ignored(serve: HubServer) -> None:
    def labels() -> torch.Tensor | None:
        tasks = ClipVitB32Tasks(FamilyTasksConfig(tasks=["mnist"]))
        return tasks["mnist"].batch(0, size=20, split=Split.TEST, seed=0).labels

    with pytest.MonkeyPatch.context() as earlier:
        earlier.setattr(stored_images, "_FORMAT", 1)
        expected = labels()
    [path] = hub_client.assets_directory().glob("images/*/labels.int64")
    path.write_bytes(b"\1" * 20)  # one byte per label
    decoded = labels()
    assert expected is not None
    assert decoded is not None
    assert torch.equal(decoded, expected)


def test_corrupted_images_are_separate_splits(serve: HubServer) -> None:
    options = {"tasks": ["eurosat"], "corruption": "contrast"}
    tasks = ClipVitB32Tasks(FamilyTasksConfig(**options))
    pool = ClipVitB32(FamilyConfig(tasks=["eurosat"]))
    tasks.measure(Subject.of(pool.build(pool.base)))
    assert not serve.asked("data/test-")
    assert tasks.measured_on == "contrast test images"
    with pytest.raises(RecipeError, match="task 'mnist' has no corrupted images"):
        ClipVitB32Tasks(FamilyTasksConfig(tasks=["mnist"], corruption="contrast"))


# The command line


RUN = ("run", "--algo", "task-arithmetic", "--pool", "clip-vit-b32")


def test_a_run_is_shown_with_published_results(serve: HubServer, tmp_path: Path) -> None:
    result = fuse(*RUN, "-o", str(tmp_path / "out"), "-q")
    for text in (*TA8, "average", "Layer-wise AdaMerging", "task-arithmetic (this run)"):
        assert text in " ".join(result.stdout.split()), text
    report = json.loads((tmp_path / "out/report.json").read_text())
    assert list(report["tasks"]) == TA8
    assert list(report["reference"]["experts"]) == TA8
    assert report["published"]["rows"]["TIES λ=0.3"]["mnist"] == 0.941
    recorded = json.loads((tmp_path / "out/provenance.json").read_text())["predicate"]
    commit = serve.repositories["datasets", "ylecun/mnist"].refs["main"]
    assert recorded["tasks"]["mnist"]["test"]["data"] == f"ylecun/mnist@{commit}"


def test_adamerging_runs_from_an_empty_cache(serve: HubServer, tmp_path: Path) -> None:
    steps = ("--set", "algorithm.steps=2", "--set", "algorithm.batch_size=4")
    options = (*steps, "-o", str(tmp_path / "out"), "--tasks", "mnist,svhn,dtd")
    result = fuse("run", "--algo", "adamerging", "--pool", "clip-vit-b32", *options)
    assert "to download: " in result.stderr
    assert "transductive" in result.stdout
    learned = json.loads((tmp_path / "out/coefficients.json").read_text())
    assert "vision_model.post_layernorm.bias" in json.dumps(learned)


def test_a_task_without_a_merged_expert_can_be_evaluated(serve: HubServer, tmp_path: Path) -> None:
    fuse(
        *RUN, "-o", str(tmp_path / "out"), "-q", "--tasks", "mnist,dtd",
        "--set", "model_pool.tasks=[mnist]",
    )  # fmt: skip
    report = json.loads((tmp_path / "out/report.json").read_text())
    assert list(report["tasks"]) == ["mnist", "dtd"]
    assert list(report["reference"]["experts"]) == ["mnist"]


def test_the_models_tasks_are_evaluated_by_default(serve: HubServer, tmp_path: Path) -> None:
    """Other options of the task pool stay."""
    chosen = ("--set", "model_pool.tasks=[mnist, dtd]")
    fuse(*RUN, "-o", str(tmp_path / "out"), "-q", *chosen, "--set", "task_pool.limit=5")
    report = json.loads((tmp_path / "out/report.json").read_text())
    assert list(report["tasks"]) == ["mnist", "dtd"]
    assert "first 5" in report["measured_on"]
    assert not serve.asked("sun397")
    again = json.loads(fuse("evaluate", str(tmp_path / "out"), "--json", "-q").stdout)
    assert again.pop("remembered") == {"merged": ["mnist", "dtd"]}
    assert report.pop("remembered") == {}
    assert again == report
    printed = fuse(*RUN, *chosen, "--task-pool", "pools-clip/clip-vit-b32", "--print-config")
    assert printed.stdout.count("- mnist") == 2
    fuse("download", "--pool", "clip-vit-b32", "-q", *chosen)
    assert not serve.asked("sun397")


def test_info_shows_sizes_without_torch_and_network() -> None:
    code = (
        "import sys; sys.argv = ['fuse', 'info', 'clip-vit-b32']\n"
        "from fusion_core.cli.app import app\n"
        "app(standalone_mode=False); print(*sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    models, images = "download of the models alone: 3.4 GB", "additional space for decoded examples"
    for text in (
        "sun397",
        "rendered-sst2",
        models,
        images,
        "13.2 GB",
        "licence: as each repository's card names it",
        "licence: each data set's own",
        "arXiv:2406.03280",
        "arXiv:1311.3618 (dtd)",
    ):
        assert text in run.stdout
    assert not {"torch", "transformers", "huggingface_hub"} & set(run.stdout.split())


def test_an_offline_run_after_a_download_opens_no_socket(
    serve: HubServer, rows: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve_fer2013(serve, rows)
    tasks = ("--tasks", "mnist,dtd,fer2013")
    first = fuse("download", "--pool", "clip-vit-b32", *tasks)
    assert "to download" in first.stderr
    assert "are free" in first.stderr
    serve.stop()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")

    def refuse(*_: object) -> None:
        raise AssertionError("a socket")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    fuse(*RUN, *tasks, "-o", str(tmp_path / "out"), "-q")
    for source in (("--pool", "clip-vit-b32", *tasks), (str(tmp_path / "out" / "recipe.yaml"),)):
        assert "nothing to download" in fuse("download", *source).stderr


def test_a_second_run_sends_no_requests(serve: HubServer, tmp_path: Path) -> None:
    first = fuse(*RUN, "--tasks", "mnist", "-o", str(tmp_path / "one"))
    assert "revisions as of" not in first.stderr
    serve.requests.clear()
    serve.stop()
    second = fuse(*RUN, "--tasks", "mnist", "-o", str(tmp_path / "two"))
    assert "nothing to download" in second.stderr
    assert "revisions as of" in second.stderr
    assert serve.requests == []


def test_without_network_the_hint_names_mini8(serve: HubServer) -> None:
    serve.stop()
    error = fuse(*RUN, "--dry-run", code=5).exception
    assert "cannot be reached" in error.message
    assert "mini8" in error.hint


def test_offline_with_an_empty_cache_names_the_model(
    serve: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    error = fuse(*RUN, code=5).exception
    assert BASE in error.message
    assert "mini8" in error.hint
    assert not serve.requests


@pytest.mark.sampled(3)
@pytest.mark.parametrize(
    "case",
    [
        (f"{EXPERT}dtd", {"status": 404, "headers": GONE}, "the hub has no model"),
        ("tanganke/dtd", {"status": 404, "headers": GONE}, "the hub has no dataset"),
        ("", {"status": 429}, "limits your requests"),
        ("dtd/resolve/*/model.safetensors", {"status": 503}, "is failing"),
        ("dtd/resolve/*/data/test-", {"flip": True, "methods": ("GET",)}, "checksum mismatch"),
        ("dtd/resolve/*/model.safetensors", {"cut": 99, "methods": ("GET",)}, ""),
    ],
)
def test_failures_of_the_hub_are_reported_and_leave_no_output(
    serve: HubServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    case: tuple[str, Mapping[str, Any], str],
) -> None:
    pattern, fault, message = case
    monkeypatch.setattr("time.sleep", lambda _: None)  # no waiting between attempts
    serve.fail(pattern, **fault)
    error = fuse(*RUN, "--tasks", "dtd", "-o", str(tmp_path / "out"), "-q", code=5).exception
    assert isinstance(error, HubError)
    assert message in error.message
    assert "mini8" in error.hint
    assert not (tmp_path / "out").exists()


def test_a_gated_data_set_is_named_with_its_page(serve: HubServer, tmp_path: Path) -> None:
    serve.repositories["datasets", "tanganke/dtd"].gated = True
    error = fuse("download", "--pool", "clip-vit-b32", "--tasks", "dtd", code=5).exception
    assert "gated" in error.message
    assert "datasets/tanganke/dtd" in error.hint


def test_a_small_disk_is_found_before_the_first_download(
    serve: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=50_000))
    for command in (("download", "--pool", "clip-vit-b32"), (*RUN, "-o", str(tmp_path / "out"))):
        error = fuse(*command, "-q", code=6).exception
        assert isinstance(error, DiskError)
        assert "HF_HOME" in error.hint
    assert not serve.asked("model.safetensors", "HEAD")
    assert not serve.asked(".parquet")


IMAGE = 3 * 8 * 8  # bytes of one decoded image


def required_size(**options: Any) -> hub_client.DownloadSize:
    tasks = ClipVitB32Tasks(FamilyTasksConfig(**options))
    return hub_client.measure_download(tasks.downloads())


def test_decoded_images_count_as_disk_space(serve: HubServer) -> None:
    counts = load_data_set("mnist").rows, load_data_set("eurosat").rows
    assert counts == (10_000, 2_700)
    assert required_size(tasks=["mnist", "eurosat"]).made == 12_700 * IMAGE
    assert required_size(tasks=["mnist", "eurosat"], limit=5).made == 10 * IMAGE
    assert required_size(tasks=["eurosat"], corruption="contrast").made == 2_700 * IMAGE
    tasks = ClipVitB32Tasks(FamilyTasksConfig(tasks=["mnist"]))
    hub_client.download_requests(tasks.downloads())
    assert required_size(tasks=["mnist"]).made == 20 * IMAGE  # rows of downloaded files
    assert required_size(tasks=["mnist"]).missing == 0
    tasks["mnist"].batch(0, size=1, split=Split.TEST, seed=0)
    assert required_size(tasks=["mnist"]).made == 0


def test_the_disk_space_for_decoded_images_is_shown_and_checked(serve: HubServer) -> None:
    command = ("download", "--pool", "clip-vit-b32", "--tasks", "mnist")
    with pytest.MonkeyPatch.context() as small:
        free = SimpleNamespace(free=10_000 * IMAGE)
        small.setattr(shutil, "disk_usage", lambda _: free)
        error = fuse(*command, "-q", code=6).exception
    assert "the data decoded from it needs 2." in error.message
    assert not serve.asked(".parquet")
    assert ", to store decoded: 1.9 MB; " in fuse(*command).stderr


def test_decoded_images_may_have_their_own_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = tmp_path / "small"
    small.mkdir()
    monkeypatch.setenv("HF_ASSETS_CACHE", str(small))
    monkeypatch.setattr("fusion_core.hub._downloads.on_one_disk", lambda: False)
    free = {small: 10}
    monkeypatch.setattr(
        shutil, "disk_usage", lambda path: SimpleNamespace(free=free.get(Path(path), 10**9))
    )
    hub_client.check_space(hub_client.DownloadSize(100, 100, made=10))
    with pytest.raises(DiskError, match=f"the decoded data needs 11 B, .* in {small}"):
        hub_client.check_space(hub_client.DownloadSize(100, 100, made=11))


def test_the_cache_is_next_to_the_hubs(
    serve: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert hub_client.assets_directory() == tmp_path / "hf-home/assets/fusion-core"
    monkeypatch.setenv("HF_ASSETS_CACHE", str(tmp_path / "elsewhere"))
    assert hub_client.assets_directory() == tmp_path / "elsewhere/fusion-core"
