"""The pool `lm-eval` with the real harness. It does not run by default: nox -s lm_eval."""

from __future__ import annotations

import json
import subprocess
import sys
import sysconfig
from hashlib import sha256
from typing import TYPE_CHECKING, Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from fusion_core import RunOptions, run_fusion
from fusion_core.commands import read_provenance
from fusion_core.errors import FusionError, HubError, RecipeError
from fusion_testing import Mean
from pools_lm.config import HarnessConfig
from pools_lm.harness.tasks import HarnessTasks

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

Options = dict[str, Any]
#: the harness imports the code of `include_path`, and another Python runs
_TRUSTED = RunOptions(trust=frozenset({"lm-eval-include-path", "lm-eval-python"}))

pytestmark = pytest.mark.lm_eval

CHOICES = ["the lazy dog", "a forest", "old models and new ones", "pieces of a text"]
NOUNS = ("fox", "dog", "forest", "model", "token", "row", "piece", "text")
ASKED = {
    "output_type": "multiple_choice",
    "doc_to_text": "{{question}}",
    "doc_to_choice": "{{choices}}",
    "doc_to_target": "{{answer}}",
}
TASKS: dict[str, Options] = {
    "foxes": {
        **ASKED,
        "metric_list": [
            {"metric": name, "aggregation": "mean", "higher_is_better": True}
            for name in ("acc", "acc_norm")
        ],
        "metadata": {"version": 3.0},
    },
    "bits": {
        "tag": "loose",
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{question}}",
    },
    "said": {
        "output_type": "generate_until",
        "doc_to_text": "{{question}}",
        "doc_to_target": "{{question}}",
        "generation_kwargs": {"until": ["."], "max_gen_toks": 4, "do_sample": False},
        "filter_list": [{"name": "strict", "filter": [{"function": "take_first"}]}],
    },
    "unsafe": {**ASKED, "unsafe_code": True},
    "elsewhere": {**ASKED, "dataset_path": "org/elsewhere", "dataset_kwargs": {}},
}
PAIR = {
    "group": "pair",
    "task": ["foxes", {"task": "bits", "num_fewshot": 0}],
    "aggregate_metric_list": [{"metric": "acc", "weight_by_size": True}],
    "metadata": {"version": 7},
}


def rows() -> list[Options]:
    return [
        {"question": f"the {noun} jumps over{' and over' * more}", "choices": CHOICES, "answer": 0}
        for noun in NOUNS
        for more in range(2)
    ]


def write_tasks(folder: Path, data: list[Options]) -> Path:
    """Write the tasks, as YAML that is JSON, and their data."""
    folder.mkdir(exist_ok=True)
    file = folder / "data.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in data))
    shared = {
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(file)}},
        "test_split": "test",
    }
    for name, task in TASKS.items():
        (folder / f"{name}.yaml").write_text(json.dumps({**shared, "task": name, **task}))
    (folder / "pair.yaml").write_text(json.dumps(PAIR))
    return folder


@pytest.fixture
def other_python(tmp_path: Path) -> str:
    """Return the Python of another environment, which uses the packages of this one."""
    environment = tmp_path / "environment"
    line = [sys.executable, "-m", "venv", "--without-pip", str(environment)]
    subprocess.run(line, check=True)
    (packages,) = environment.glob("lib/python*/site-packages")
    (packages / "others.pth").write_text(sysconfig.get_path("purelib"))
    return str(environment / "bin" / "python")


@pytest.fixture(autouse=True)
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def scores(directory: Path, data: list[Options]) -> list[list[float]]:
    """Return the log-likelihood of each choice after its question, computed in fp64."""
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float64)
    tokenizer = AutoTokenizer.from_pretrained(directory)

    def score(question: str, choice: str) -> float:
        start = len(tokenizer(question).input_ids)
        tokens = torch.tensor([tokenizer(f"{question} {choice}").input_ids])
        with torch.no_grad():
            logs = model(tokens).logits[0].log_softmax(-1)
        positions = range(start, tokens.shape[1])
        return sum(float(logs[position - 1, tokens[0, position]]) for position in positions)

    return [[score(row["question"], choice) for choice in row["choices"]] for row in data]


def best(values: list[float]) -> int:
    return values.index(max(values))


def direct(directory: Path, include: Path) -> dict[str, Any]:
    """Return the results of the harness without this project."""
    code = f"""
import json, lm_eval
from lm_eval.tasks import TaskManager
found = lm_eval.simple_evaluate(
    model="hf", model_args={{"pretrained": {str(directory)!r}}}, tasks=["foxes", "bits", "said"],
    task_manager=TaskManager(include_path={str(include)!r}), batch_size=8, device="cpu",
    log_samples=False,
)
print("found", json.dumps(found["results"], default=float))
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    line = next(text for text in run.stdout.splitlines() if text.startswith("found "))
    results: dict[str, Any] = json.loads(line.removeprefix("found "))
    return results


def test_results_match_the_harness_and_a_direct_computation(
    models_of: Callable[..., Options], tmp_path: Path, other_python: str
) -> None:
    pool = {"name": "causal-lm", **models_of("llama", names=["foxes", "b"])}
    data, output = rows(), tmp_path / "merged"
    run_fusion(algorithm=Mean(), model_pool=pool, output=output)
    likelihoods_by_row = scores(output, data)
    for number, (row, likelihoods) in enumerate(zip(data, likelihoods_by_row, strict=True)):
        row["answer"] = (best(likelihoods) + (number % 3 == 0)) % len(CHOICES)
    include = write_tasks(tmp_path / "tasks", data)
    names = ["foxes", "bits", "said", "pair"]
    reports = []
    for python in (None, other_python):
        result = run_fusion(
            algorithm=Mean(),
            model_pool=pool,
            task_pool={
                "name": "lm-eval",
                "tasks": names,
                "include_path": str(include),
                "python": python,
            },
            output=tmp_path / f"out-{len(reports)}",
            options=_TRUSTED,
        )
        assert result.report is not None
        reports.append(result.report)
    here, there = reports
    assert here.tasks == there.tasks
    assert there.remembered == {"base": tuple(names), "experts": ("foxes",)}
    recorded = read_provenance(tmp_path / "out-0").tasks
    hashed = {"data.jsonl": sha256((include / "data.jsonl").read_bytes()).hexdigest()}
    for name in names:
        files = recorded[name]["files"]
        assert {file: identity["sha256"] for file, identity in files.items()} == hashed
    answers = [row["answer"] for row in data]
    expected = [
        best(values) == answer for values, answer in zip(likelihoods_by_row, answers, strict=True)
    ]
    by_length = [
        best([score / len(choice) for score, choice in zip(values, CHOICES, strict=True)]) == answer
        for values, answer in zip(likelihoods_by_row, answers, strict=True)
    ]
    assert 0 < sum(expected) < len(data)
    assert here.tasks["foxes"]["acc"] == sum(expected) / len(data)
    assert here.tasks["foxes"]["acc_norm"] == sum(by_length) / len(data)
    for name, values in direct(output, include).items():
        for key, value in values.items():
            if "," in key and value != "N/A":
                assert here.tasks[name][key.removesuffix(",none")] == value
    assert here.metric("bits", "bits_per_byte").unit == "bits per byte"
    assert not here.metric("bits", "word_perplexity").higher_is_better
    assert here.tasks["pair"]["acc"] == here.tasks["foxes"]["acc"]
    conditions = here.conditions["foxes"]
    assert (conditions["version"], conditions["num_fewshot"], conditions["examples"]) == (3, 0, 16)
    assert conditions["seeds"] == {"random": 0, "numpy": 1234, "torch": 1234, "fewshot": 1234}
    assert conditions["versions"]["lm-eval"].startswith("0.4.")


WRONG = [
    (["foxs"], {}, RecipeError, "unknown lm-eval task 'foxs'\nSimilar names: foxes"),
    (["loose"], {}, RecipeError, "'loose' is a list of tasks[\\s\\S]*tasks: bits"),
    (["glue"], {}, RecipeError, "tasks: cola, mnli"),
    (["unsafe"], {}, RecipeError, "'unsafe' runs code"),
    (["foxes"], {"main": {"foxes": "f1"}}, RecipeError, "Metrics: acc, acc_norm"),
    (["foxes"], {"device": "xpu:7"}, RecipeError, "cannot use this device"),
]


@pytest.mark.parametrize(("names", "options", "kind", "message"), WRONG)
def test_check_reports_problems(
    tmp_path: Path, names: list[str], options: Options, kind: type[FusionError], message: str
) -> None:
    include = write_tasks(tmp_path / "tasks", rows())
    config = HarnessConfig(tasks=names, include_path=str(include), **options)
    with pytest.raises(kind, match=message):
        HarnessTasks(config).check()


def test_invalid_and_remote_data_are_reported(
    models_of: Callable[..., Options], tmp_path: Path
) -> None:
    include = write_tasks(tmp_path / "tasks", rows())
    pool = {"name": "causal-lm", **models_of("llama")}
    tasks = {"name": "lm-eval", "include_path": str(include), "tasks": ["elsewhere"]}
    recipe: dict[str, Any] = {"algorithm": Mean(), "model_pool": pool, "task_pool": tasks}
    with pytest.raises(HubError, match="'elsewhere'"):
        run_fusion(**recipe, output=tmp_path / "one", options=_TRUSTED)
    with (include / "data.jsonl").open("a") as file:
        file.write('{"question": "the f')
    tasks["tasks"] = ["foxes"]
    with pytest.raises(FusionError, match=r"(?s)'foxes'.*JSON"):
        run_fusion(**recipe, output=tmp_path / "two", options=_TRUSTED)
    (include / "data.jsonl").unlink()
    with pytest.raises(RecipeError, match="missing data file"):
        run_fusion(**recipe, output=tmp_path / "three", options=_TRUSTED)
    assert not (tmp_path / "three").exists()
