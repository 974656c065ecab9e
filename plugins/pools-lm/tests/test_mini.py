"""lm-mini: the files match their checksums, and merges rank as in published tables."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from fusion_core import run_fusion
from fusion_core.errors import IntegrityError
from fusion_testing import ModelPoolSuite, TaskPoolSuite
from pools_checkpoints import PackagedFiles
from pools_lm import plugin
from pools_lm.mini import pools
from pools_lm.mini.config import MiniConfig, MiniTasksConfig
from pools_lm.mini.pools import DATA, MiniPool, MiniTasks

FILES = [path for path in DATA.rglob("*") if path.is_file()]
PAIR = {"tasks": ["roman", "speech"]}


def spec_of(specs: Any) -> Any:
    return next(spec for spec in specs if spec.name == "lm-mini")


class TestPool(ModelPoolSuite):
    @pytest.fixture
    def spec(self) -> Any:
        return spec_of(plugin.fusion_register_model_pools())

    @pytest.fixture
    def options(self) -> dict[str, Any]:
        return PAIR


class TestTasks(TaskPoolSuite):
    @pytest.fixture
    def spec(self) -> Any:
        return spec_of(plugin.fusion_register_task_pools())

    @pytest.fixture
    def options(self) -> dict[str, Any]:
        return {**PAIR, "limit": 24}


def test_every_file_has_a_checksum_and_all_fit_into_a_wheel() -> None:
    names = {path.relative_to(DATA).as_posix() for path in FILES} - {"SHA256SUMS"}
    files = PackagedFiles(DATA, "pools-lm")
    assert {files.file(name).relative_to(DATA).as_posix() for name in names} == names
    listed = [line.split("  ")[1] for line in (DATA / "SHA256SUMS").read_text().splitlines()]
    assert names == {*listed}
    assert sum(path.stat().st_size for path in FILES) < 25e6


def test_a_changed_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pools, "DATA", Path(shutil.copytree(DATA, tmp_path / "data")))
    (tmp_path / "data" / "tasks" / "roman" / "test.jsonl").write_text("{}")
    with pytest.raises(IntegrityError, match="--force-reinstall pools-lm"):
        MiniTasks(MiniTasksConfig())


def test_no_question_is_in_two_splits() -> None:
    for folder in (DATA / "tasks").iterdir():
        seen: dict[str, str] = {}
        for path in folder.iterdir():
            for line in map(json.loads, path.read_text(encoding="utf-8").splitlines()):
                question = next(iter(line.values()))
                assert seen.setdefault(question, path.stem) == path.stem, question
                assert ("answer" in line) == ("text" not in line and path.stem != "unlabeled")


def test_the_base_is_an_ordinary_directory() -> None:
    tokenizer = AutoTokenizer.from_pretrained(DATA / "base")
    model: Any = AutoModelForCausalLM.from_pretrained(DATA / "experts" / "roman")
    right = 0
    for line in (DATA / "tasks" / "roman" / "test.jsonl").read_text().splitlines()[:8]:
        messages = [{"role": "user", "content": json.loads(line)["prompt"]}]
        inputs = tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        output = model.generate(**inputs, max_new_tokens=16, do_sample=False)[0]
        answer = tokenizer.decode(output[inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        right += answer == json.loads(line)["answer"]
    assert right >= 7
    assert model.num_parameters() == 1_672_896


@pytest.mark.thorough
@pytest.mark.plugins
def test_merges_are_ordered_as_in_published_tables() -> None:
    tasks = MiniTasks(MiniTasksConfig(limit=40))
    assert not tasks.transductive

    def share(**algorithm: Any) -> float:
        result = run_fusion(algorithm=algorithm, model_pool=MiniPool(MiniConfig()), task_pool=tasks)
        assert result.report is not None
        average = result.report.normalised_average
        assert average is not None
        return average

    def share_at_scale(scale: float) -> float:
        return share(name="task-arithmetic", scale=scale)

    nothing, summed, too_much = (share_at_scale(scale) for scale in (0.0, 0.6, 1.0))
    average, best = share(name="simple-average"), share(name="tsv-m")
    assert nothing + 0.03 < average < average + 0.1 < summed < best + 0.02 < 0.98
    assert too_much + 0.05 < summed
