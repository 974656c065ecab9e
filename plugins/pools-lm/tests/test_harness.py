"""The pool `lm-eval` and a stand-in for the harness, which answers as its runner does."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from fusion_core import Metric, Progress, Report, RunOptions, run_fusion
from fusion_core.commands import Subject
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
        given = {"tasks": list(tasks), "python": fake_harness, **options}
        return HarnessTasks(HarnessConfig(**given))

    return make


def requests(tmp_path: Path) -> list[dict[str, Any]]:
    """Return what the stand-in was asked, and what it saw."""
    lines = (tmp_path / "requests.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def total(*directories: Path) -> float:
    """Return the sum of all values of the mean of models."""
    files = [load_file(directory / "model.safetensors") for directory in directories]
    return sum(float(tensor.double().sum()) for file in files for tensor in file.values()) / len(
        files
    )


def run(options: Options, tasks: HarnessTasks, output: Path | None = None) -> dict[str, Any]:
    """Merge, into memory without an output, and return what is in the report."""
    result = run_fusion(
        algorithm=Mean(),
        model_pool=CausalPool(LanguageConfig(**options)),
        task_pool=tasks,
        output=output,
    )
    assert result.report is not None
    found: dict[str, Any] = json.loads(json.dumps(result.report.as_json()))
    assert Report.from_json(found).conditions == result.report.conditions
    return found


def test_the_committed_directory_is_measured_and_the_report_says_how(
    models_of: Callable[..., Options], harness: Callable[..., HarnessTasks], tmp_path: Path
) -> None:
    tasks = harness("foxes", "bits", limit=5, num_fewshot=2, main={"foxes": "acc_norm"})
    report = run(models_of("llama", names=["foxes", "b"]), tasks, tmp_path / "out")
    asked = [request for request in requests(tmp_path) if request["do"] == "measure"]
    where = [(Path(each["model"]).name, each["tasks"]) for each in asked]
    every = ["foxes", "bits"]
    assert where == [("out", every), ("base", every), ("foxes", ["foxes"])]
    assert {each["device"] for each in asked} == {"cpu"}
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


def test_base_and_experts_are_measured_once_while_nothing_changes(
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


def test_what_has_no_directory_is_written(
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
    assert [Path(each["model"]).name for each in asked] == ["model", "base", "model"], "in memory"
    needed = {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    assert all(needed <= set(each["files"]) for each in asked)
    assert not any(Path(each["model"]).exists() for each in asked if each["model"].endswith("l"))
    drawn = torch.Generator().manual_seed(3)
    factors = (torch.randn(2, 16, generator=drawn), torch.randn(16, 2, generator=drawn))
    change = 2 * (factors[1].double() @ factors[0].double()).sum()
    expected = total(tmp_path / "base") + float(change)
    assert report["reference"]["experts"]["a"]["total"] == pytest.approx(expected, rel=1e-5)


def test_an_expert_without_a_tokenizer_is_measured_with_the_bases(
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


def test_a_live_model_is_saved(
    tiny: Tiny, models_of: Callable[..., Options], harness: Callable[..., HarnessTasks]
) -> None:
    models = CausalPool(LanguageConfig(**models_of("llama")))
    tasks = harness("foxes").bind(models)
    model = tiny.live("llama", 7)
    found = tasks["foxes"].evaluate(model)
    own = sum(float(each.double().sum()) for each in model.state_dict().values())
    assert found["total"] == pytest.approx(own)
    model.lm_head.register_forward_hook(lambda *_: None)
    with pytest.raises(RecipeError, match="it has hooks"):
        tasks.measure(Subject.of(model))
    with pytest.raises(RecipeError, match="a Linear is not transformers'"):
        tasks.measure(Subject.of(nn.Linear(2, 2)))
    with pytest.raises(RecipeError, match=r"needs a tokenizer[\s\S]*bind"):
        harness("foxes").measure(Subject.of(tiny.live("llama", 7)))


WRONG = [
    (["foxs"], {}, RecipeError, r"no task 'foxs'\nThere is: foxes\."),
    (["nothing"], {}, RecipeError, r"no task 'nothing'\nList them"),
    (["glue"], {}, RecipeError, r"'glue' stands for several[\s\S]*cola, rte"),
    (["code"], {}, RecipeError, "'code' runs code"),
    (["lost"], {}, RecipeError, r"'lost': its data is not there: /no/where\.json"),
    (["foxes"], {"main": {"foxes": "f1"}}, RecipeError, "no metric 'f1'\nIt has: acc, acc_norm"),
    (["foxes"], {"main": {"foxs": "acc"}}, RecipeError, "no task 'foxs'"),
    (["foxes"], {"python": "/no/python"}, RecipeError, "/no/python cannot be run: No such file"),
    (["foxes"], {"python": "/"}, RecipeError, "/ cannot be run: Permission denied"),
    (["foxes"], {"device": "qpu"}, RecipeError, "cannot measure there: torch says: no qpu"),
    (
        ["dies"],
        {},
        FusionError,
        "ended with exit code 3 and gave no answer:\n  first\n  last words",
    ),
    (["killed"], {}, FusionError, r"was killed by signal 9[\s\S]*batch_size"),
    (["endless"], {}, FusionError, "a chat template or tokenizer took too long in lm-eval"),
]


@pytest.mark.parametrize(("names", "options", "kind", "message"), WRONG)
def test_what_cannot_be_measured_is_said_before_anything_runs(
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


def test_models_that_do_not_fit(
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
    with pytest.raises(RecipeError, match="there is no folder /no/where"):
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
    written = json.loads((tmp_path / "out" / "provenance.json").read_text())
    assert written["trusted"] == ["lm-eval-python"]


#: A model of the harness whose tokenizer has no end, and whose template fills the memory.
HOSTILE = """
from types import SimpleNamespace
from pools_lm.harness import runner
runner.SECONDS_OF_MODELS_OWN = 0.2
model = SimpleNamespace(
    tok_encode=lambda text: [0 for _ in iter(lambda: 0, 1) if 0],
    apply_chat_template=lambda history: len("x" * history),
)
runner._limit_what_came_with(model)
assert model.apply_chat_template(10**6) == 10**6
try:
    model.apply_chat_template(3 * 10**9)
except MemoryError:
    model.tok_encode("loop")
"""


def test_the_harness_ends_where_a_models_own_files_have_no_end() -> None:
    ended = subprocess.run([sys.executable, "-c", HOSTILE], check=False)
    assert ended.returncode == -signal.SIGALRM


def test_data_that_cannot_be_fetched(
    tiny: Tiny, models_of: Callable[..., Options], harness: Callable[..., HarnessTasks]
) -> None:
    models = CausalPool(LanguageConfig(**models_of("llama")))
    with pytest.raises(HubError, match=r"task 'offline': no hub\nRun it once"):
        harness("offline").bind(models).measure(Subject.of(tiny.live("llama", 1)))


def test_a_metric_that_only_a_run_tells(
    tiny: Tiny, models_of: Callable[..., Options], harness: Callable[..., HarnessTasks]
) -> None:
    models = CausalPool(LanguageConfig(**models_of("llama")))
    tasks = harness("filtered", main={"filtered": "exact_match,loose"}).bind(models)
    found = tasks.measure(Subject.of(tiny.live("llama", 1)))["filtered"]
    assert list(found) == ["exact_match,loose", "exact_match,strict", "f1", "total"]
    assert Metric("f1", "") in tasks["filtered"].metrics
    wrong = harness("filtered", main={"filtered": "exact_match"}).bind(models)
    with pytest.raises(RecipeError, match="It has: exact_match,strict, exact_match,loose, f1"):
        wrong.measure(Subject.of(tiny.live("llama", 1)))


class Heard(Progress):
    """A display that keeps what it is told, and stops where it is told to sleep."""

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


def test_what_the_harness_says_is_seen_and_its_process_ends_with_ours(
    tiny: Tiny,
    models_of: Callable[..., Options],
    harness: Callable[..., HarnessTasks],
    tmp_path: Path,
) -> None:
    models = CausalPool(LanguageConfig(**models_of("llama")))
    heard = Heard()
    model = Subject.of(tiny.live("llama", 1))
    harness("foxes", "bits").bind(models).measure(model, progress=heard)
    assert heard.count == 2
    assert "lm-eval has measured bits" in heard.notes

    with pytest.raises(KeyboardInterrupt):
        harness("sleeps").bind(models).measure(model, progress=heard)
    with pytest.raises(ProcessLookupError):
        os.kill(requests(tmp_path)[-1]["process"], 0)
