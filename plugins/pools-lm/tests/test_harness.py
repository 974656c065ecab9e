"""The pool `lm-eval` with a stand-in for the harness, which answers like the runner."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from typer.testing import CliRunner

from fusion_core import Metric, Progress, Report, RunOptions, run_fusion
from fusion_core.commands import Subject, read_provenance
from fusion_core.errors import FusionError, HubError, PluginError, RecipeError
from fusion_testing import Mean, tiny_pool
from pools_lm.config import HarnessConfig, LanguageConfig
from pools_lm.harness.tasks import HarnessTasks
from pools_lm.pools import CausalPool, EncoderPool

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

Options = dict[str, Any]
Tiny = Any  # conftest.py has it

pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def harness(tmp_path: Path, fake_harness: str) -> Callable[..., HarnessTasks]:
    def make(*tasks: str, **options: Any) -> HarnessTasks:
        fields = {"tasks": list(tasks), "python": fake_harness, **options}
        return HarnessTasks(HarnessConfig(**fields))

    return make


def requests(tmp_path: Path) -> list[dict[str, Any]]:
    """Return the requests to the stand-in, with what it saw."""
    lines = (tmp_path / "requests.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def total(*directories: Path) -> float:
    """Return the sum of all values in the mean of models."""
    files = [load_file(directory / "model.safetensors") for directory in directories]
    return sum(float(tensor.double().sum()) for file in files for tensor in file.values()) / len(
        files
    )


def run(options: Options, tasks: HarnessTasks, output: Path | None = None) -> dict[str, Any]:
    """Merge, in memory without an output, and return the report."""
    result = run_fusion(
        algorithm=Mean(),
        model_pool=CausalPool(LanguageConfig(**options)),
        task_pool=tasks,
        output=output,
    )
    assert result.report is not None
    actual: dict[str, Any] = json.loads(json.dumps(result.report.as_json()))
    assert Report.from_json(actual).conditions == result.report.conditions
    return actual


def test_the_output_directory_is_evaluated_and_the_report_has_the_conditions(
    models_of: Callable[..., Options], harness: Callable[..., HarnessTasks], tmp_path: Path
) -> None:
    tasks = harness("foxes", "bits", limit=5, num_fewshot=2, main={"foxes": "acc_norm"})
    report = run(models_of("llama", names=["foxes", "b"]), tasks, tmp_path / "out")
    recorded = read_provenance(tmp_path / "out")
    assert recorded.run.evaluation is not None
    assert recorded.run.evaluation.data == recorded.tasks == tasks.inputs()
    assert recorded.tasks["bits"]["files"]["data.json"]["sha256"] == sha256(b"[]").hexdigest()
    asked = [request for request in requests(tmp_path) if request["do"] == "measure"]
    where = [(Path(request["model"]).name, request["tasks"]) for request in asked]
    every = ["foxes", "bits"]
    assert where == [("out", every), ("base", every), ("foxes", ["foxes"])]
    assert {request["device"] for request in asked} == {"cpu"}
    assert (asked[0]["limit"], asked[0]["num_fewshot"], asked[0]["seed"]) == (5, 2, None)
    assert list(report["tasks"]["foxes"]) == ["acc_norm", "acc", "acc_stderr", "total"]
    merged, base = (report["tasks"]["bits"], report["reference"]["base"]["bits"])
    assert merged["total"] == pytest.approx(total(tmp_path / "foxes", tmp_path / "b"))
    assert base["total"] == pytest.approx(total(tmp_path / "base"))
    assert report["measured_on"] == "the first 5 examples of each task"
    assert report["metrics"]["foxes"]["acc"] == {"unit": "fraction", "higher_is_better": True}
    assert report["metrics"]["bits"]["bits_per_byte"]["unit"] == "bits per byte"
    assert not report["metrics"]["bits"]["bits_per_byte"]["higher_is_better"]
    conditions = report["conditions"]["foxes"]
    assert conditions["versions"]["lm-eval"] == "0.4.13"
    assert (conditions["version"], conditions["num_fewshot"]) == (3.0, 2)
    assert conditions["seeds"]["fewshot"] == 1234


def test_data_on_the_hub_is_recorded_by_its_commit(harness: Callable[..., HarnessTasks]) -> None:
    expected = {"task": "1", "data": [f"org/questions@{'c' * 40}"], "files": {}}
    assert harness("questions", "somewhere").inputs() == {"questions": expected}


def test_results_of_base_and_experts_are_cached(
    models_of: Callable[..., Options], harness: Callable[..., HarnessTasks], tmp_path: Path
) -> None:
    options = models_of("llama")
    measured = []
    for limit in (1, 1, 2):
        run(options, harness("foxes", limit=limit))
        measured.append(sum(request["do"] == "measure" for request in requests(tmp_path)))
    assert measured == [2, 3, 5], "merged and base, merged, merged and base"
    template = tmp_path / "a" / "chat_template.jinja"
    template.write_text("an expert is measured with its own")
    run(options, harness("foxes", limit=2))
    assert sum(request["do"] == "measure" for request in requests(tmp_path)) == 7
    for _ in range(2):  # data that nothing tells apart
        run(options, harness("somewhere"))
    assert sum(request["do"] == "measure" for request in requests(tmp_path)) == 11


def test_an_output_is_measured_once_with_its_conditions_and_metrics(
    models_of: Callable[..., Options], fake_harness: str, tmp_path: Path
) -> None:
    output, trust = tmp_path / "out", frozenset({"lm-eval-python"})
    tasks = {"tasks": ["foxes", "bits"], "limit": 5, "python": fake_harness}
    result = run_fusion(
        algorithm="simple-average",
        model_pool={"name": "causal-lm", **models_of("llama", names=["foxes", "b"])},
        task_pool={"name": "lm-eval", **tasks},
        output=output,
        options=RunOptions(trust=trust),
    )
    first = result.report
    assert first is not None
    assert first.conditions.keys() == first.metrics.keys() == {"foxes", "bits"}
    flags = ["evaluate", str(output), "--json", "-q", "--trust", "lm-eval-python"]

    def evaluate() -> tuple[Report, int]:
        before = len(requests(tmp_path))
        done = CliRunner().invoke(resolve_name("fusion_core.cli.app:app"), flags)
        assert done.exit_code == 0, done.output
        count = sum(request["do"] == "measure" for request in requests(tmp_path)[before:])
        return Report.from_json(json.loads(done.stdout)), count

    report, count = evaluate()
    assert count == 0
    assert report.as_json() == {**first.as_json(), "remembered": report.as_json()["remembered"]}
    (output / "generation_config.json").write_text('{"max_length": 7}')
    report, count = evaluate()
    assert count == 1, "the harness reads the files in the directory"
    assert report.remembered.keys() == {"base", "experts"}


def test_models_without_a_directory_are_exported(
    tiny: Tiny,
    models_of: Callable[..., Options],
    adapter: Callable[..., str],
    harness: Callable[..., HarnessTasks],
    tmp_path: Path,
) -> None:
    options = models_of("llama")
    options["models"] = {"a": adapter(tmp_path / "lora", "model.layers.0.self_attn.q_proj")}
    report = run(options, harness("a"))
    asked = [request for request in requests(tmp_path) if request["do"] == "measure"]
    assert [Path(request["model"]).name for request in asked] == ["model", "base", "model"], (
        "in memory"
    )
    needed = {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    assert all(needed <= set(request["files"]) for request in asked)
    assert not any(
        Path(request["model"]).exists() for request in asked if request["model"].endswith("l")
    )
    drawn = torch.Generator().manual_seed(3)
    factors = (torch.randn(2, 16, generator=drawn), torch.randn(16, 2, generator=drawn))
    change = 2 * (factors[1].double() @ factors[0].double()).sum()
    expected = total(tmp_path / "base") + float(change)
    assert report["reference"]["experts"]["a"]["total"] == pytest.approx(expected, rel=1e-5)


def test_an_expert_without_a_tokenizer_uses_the_bases(
    models_of: Callable[..., Options], harness: Callable[..., HarnessTasks], tmp_path: Path
) -> None:
    options = models_of("llama")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "a" / name).unlink()
    report = run(options, harness("a"))
    expert = requests(tmp_path)[-1]
    assert {"tokenizer.json", "model.safetensors", "config.json"} <= set(expert["files"])
    assert report["reference"]["experts"]["a"]["total"] == pytest.approx(total(tmp_path / "a"))
    assert not (tmp_path / "a" / "tokenizer.json").exists()


def test_a_live_model_is_exported(
    tiny: Tiny, models_of: Callable[..., Options], harness: Callable[..., HarnessTasks]
) -> None:
    models = CausalPool(LanguageConfig(**models_of("llama")))
    tasks = harness("foxes").bind(models)
    model = tiny.live("llama", 7)
    actual = tasks["foxes"].evaluate(model)
    expected = sum(float(tensor.double().sum()) for tensor in model.state_dict().values())
    assert actual["total"] == pytest.approx(expected)
    model.lm_head.register_forward_hook(lambda *_: None)
    with pytest.raises(RecipeError, match="this one has hooks"):
        tasks.measure(Subject.of(model))
    with pytest.raises(RecipeError, match="a Linear is not a transformers model"):
        tasks.measure(Subject.of(nn.Linear(2, 2)))
    with pytest.raises(RecipeError, match=r"needs a tokenizer[\s\S]*bind"):
        harness("foxes").measure(Subject.of(tiny.live("llama", 7)))


WRONG = [
    (["foxs"], {}, RecipeError, r"unknown lm-eval task 'foxs'\nSimilar names: foxes\."),
    (["nothing"], {}, RecipeError, r"unknown lm-eval task 'nothing'\nList them"),
    (["glue"], {}, RecipeError, r"'glue' is a list of tasks[\s\S]*cola, rte"),
    (["code"], {}, RecipeError, "'code' runs code"),
    (["lost"], {}, RecipeError, r"'lost': missing data file: /no/where\.json"),
    (
        ["foxes"],
        {"main": {"foxes": "f1"}},
        RecipeError,
        "unknown metric 'f1' of task 'foxes'\nMetrics: acc, acc_norm",
    ),
    (["foxes"], {"main": {"foxs": "acc"}}, RecipeError, "unknown lm-eval task 'foxs'"),
    (["foxes"], {"python": "/no/python"}, RecipeError, "cannot run /no/python: No such file"),
    (["foxes"], {"python": "/"}, RecipeError, "cannot run /: Permission denied"),
    (["foxes"], {"device": "qpu"}, RecipeError, "cannot use this device: torch says: no qpu"),
    (
        ["dies"],
        {},
        FusionError,
        "ended with exit code 3 and gave no answer:\n  first\n  last words",
    ),
    (["killed"], {}, FusionError, r"was killed by signal 9[\s\S]*batch_size"),
    (["endless"], {}, FusionError, "a chat template or tokenizer exceeded its time limit"),
]


@pytest.mark.parametrize(("names", "options", "kind", "message"), WRONG)
def test_check_reports_problems_before_the_evaluation(
    harness: Callable[..., HarnessTasks],
    names: list[str],
    options: Options,
    kind: type[FusionError],
    message: str,
) -> None:
    with pytest.raises(kind, match=message):
        harness(*names, **options).check()


def test_an_environment_without_the_harness(
    harness: Callable[..., HarnessTasks], tmp_path: Path
) -> None:
    bare = tmp_path / "bare"
    bare.write_text(f'#!/bin/sh\nexec {sys.executable} -S "$@"\n')
    bare.chmod(0o755)
    with pytest.raises(PluginError, match=r"lm_eval, torch[\s\S]*bare -m pip install"):
        harness("foxes", python=str(bare)).check()


def test_unsuitable_models_are_refused(
    models_of: Callable[..., Options], harness: Callable[..., HarnessTasks], tmp_path: Path
) -> None:
    options = models_of("llama")
    models = CausalPool(LanguageConfig(**options))
    with pytest.raises(RecipeError, match="no chat template"):
        harness("foxes", apply_chat_template=True).bind(models).check()
    with pytest.raises(RecipeError, match="EncoderPool"):
        harness("foxes").bind(EncoderPool(LanguageConfig(**options)))
    with pytest.raises(RecipeError, match="models that write text"):
        harness("foxes").bind(tiny_pool("mlp"))
    (tmp_path / "base" / "tokenizer.json").unlink()
    with pytest.raises(RecipeError, match="needs a tokenizer"):
        harness("foxes").bind(CausalPool(LanguageConfig(**options))).check()
    with pytest.raises(RecipeError, match="expected a directory: /no/where"):
        harness("foxes", include_path="/no/where")


def test_provenance_names_the_trusted_program(
    models_of: Callable[..., Options], fake_harness: str, tmp_path: Path
) -> None:
    options = models_of("llama")
    recipe = {
        "algorithm": "simple-average",
        "model_pool": {"name": "causal-lm", **options},
        "task_pool": {"name": "lm-eval", "tasks": ["foxes"], "python": fake_harness},
        "output": {"path": str(tmp_path / "out")},
    }
    with pytest.raises(RecipeError, match="lm-eval-python: start the program"):
        run_fusion(recipe)
    assert not (tmp_path / "requests.jsonl").exists()
    run_fusion(recipe, options=RunOptions(trust=frozenset({"lm-eval-python"})))
    written = json.loads((tmp_path / "out" / "provenance.json").read_text())["predicate"]
    assert written["trusted"] == ["lm-eval-python"]


#: A model of the harness with an endless tokenizer, and a template that fills the memory.
HOSTILE = """
from types import SimpleNamespace
from pools_lm.harness import runner
runner.MODEL_CODE_SECONDS = 0.2
model = SimpleNamespace(
    tok_encode=lambda text: [0 for _ in iter(lambda: 0, 1) if 0],
    apply_chat_template=lambda history: len("x" * history),
)
runner.limit_model_code(model)
assert model.apply_chat_template(10**6) == 10**6
try:
    model.apply_chat_template(3 * 10**9)
except MemoryError:
    model.tok_encode("loop")
"""


def test_the_runner_stops_an_endless_tokenizer() -> None:
    ended = subprocess.run([sys.executable, "-c", HOSTILE], check=False)
    assert ended.returncode == -signal.SIGALRM


def test_missing_network_data_is_reported(
    tiny: Tiny, models_of: Callable[..., Options], harness: Callable[..., HarnessTasks]
) -> None:
    models = CausalPool(LanguageConfig(**models_of("llama")))
    with pytest.raises(HubError, match=r"task 'offline': no hub\nRun it once"):
        harness("offline").bind(models).measure(Subject.of(tiny.live("llama", 1)))


def test_a_filtered_metric_can_be_the_main_one(
    tiny: Tiny, models_of: Callable[..., Options], harness: Callable[..., HarnessTasks]
) -> None:
    models = CausalPool(LanguageConfig(**models_of("llama")))
    tasks = harness("filtered", main={"filtered": "exact_match,loose"}).bind(models)
    actual = tasks.measure(Subject.of(tiny.live("llama", 1)))["filtered"]
    assert list(actual) == ["exact_match,loose", "exact_match,strict", "f1", "total"]
    assert Metric("f1", "") in tasks["filtered"].metrics
    wrong = harness("filtered", main={"filtered": "exact_match"}).bind(models)
    with pytest.raises(RecipeError, match="Metrics: exact_match,strict, exact_match,loose, f1"):
        wrong.measure(Subject.of(tiny.live("llama", 1)))


class RecordedProgress(Progress):
    """A display that records notes, and raises KeyboardInterrupt at the note `sleeping`."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.count = 0

    @contextmanager
    def track(self, label: str, *, total: int, unit: str = "") -> Iterator[Any]:
        del label, total, unit
        yield self.advance

    def advance(self, count: int = 1, *, note: str = "") -> None:
        self.count += count
        self.notes.append(note)
        if note == "sleeping":
            raise KeyboardInterrupt


def test_output_becomes_notes_and_an_interrupt_ends_the_process(
    tiny: Tiny,
    models_of: Callable[..., Options],
    harness: Callable[..., HarnessTasks],
    tmp_path: Path,
) -> None:
    models = CausalPool(LanguageConfig(**models_of("llama")))
    progress = RecordedProgress()
    model = Subject.of(tiny.live("llama", 1))
    harness("foxes", "bits").bind(models).measure(model, progress=progress)
    assert progress.count == 2
    assert "lm-eval has measured bits" in progress.notes

    with pytest.raises(KeyboardInterrupt):
        harness("sleeps").bind(models).measure(model, progress=progress)
    with pytest.raises(ProcessLookupError):
        os.kill(requests(tmp_path)[-1]["process"], 0)
