"""The smoke test reports defective answers, accepts sound ones, and asks no model twice."""

from __future__ import annotations

import json
import math
from itertools import pairwise
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any, cast

import pytest
import torch
import typer
from typer.testing import CliRunner

from fusion_core import Progress, run_fusion
from fusion_core.errors import CheckpointError, RecipeError
from fusion_core.weights import StateDictSource
from fusion_testing import CommandSuite, Mean, tiny_pool
from pools_lm import plugin
from pools_lm.config import LanguageConfig
from pools_lm.pools import CausalPool
from pools_lm.smoke import after_run, memory
from pools_lm.smoke.answers import repeats
from pools_lm.smoke.command import smoke
from pools_lm.smoke.directory import models_of_pool, source_models
from pools_lm.smoke.interview import NamedModel
from pools_lm.smoke.smoke_test import SmokeTest

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from fusion_core import CommandSpec
    from pools_lm.smoke.findings import Findings

CPU = torch.device("cpu")


class TestCommand(CommandSuite):
    @pytest.fixture
    def spec(self) -> CommandSpec:
        (findings,) = plugin.fusion_register_commands()
        return findings


REPEATING = [
    "the the the the",
    " the" * 32,
    "!" * 32,
    "ééééééééééééé",
    "日本日本日本日本日本日本",
    "First I thought it over. Then: no no no no no no no",
    "I am a cat. I am a cat. I am a cat. I am",
    " and then it was the same again, and then it was the same again, and",
    "Sure!\n\n\n\n\n\n\n\n\n\n\n\n\n\n",
]
SOUND = [
    "Paris",
    "Yes.",
    "4",
    "ha ha ha",
    "1, 2, 3, 4, 5, 6, 7, 8, 9, 10",
    "The capital of France is Paris.",
    "Well... I would say that it depends...",
    "| a | b | c |\n|---|---|---|\n| 1 | 2 | 3 |",
    "It was the best of times, it was the worst of times, it was the age of wisdom",
    "Row, row, row your boat, gently down the stream",
    "We sang na na na na na na, and then everybody went home for tea and cake",
]


@pytest.mark.parametrize("text", REPEATING)
def test_repetition_is_detected(text: str) -> None:
    assert repeats(text)


@pytest.mark.parametrize("text", SOUND)
def test_sound_texts_are_not_repetitions(text: str) -> None:
    assert not repeats(text)


class Chains:
    """Models with a fixed successor for each token.

    Layers add nothing. Each token's embedding is a separate direction, from which the head reads
    the next token.
    """

    prompt = "the quick brown fox"

    def __init__(self, tiny: Any, root: Path) -> None:
        self.tiny, self.root, self.tokenizer = tiny, root, tiny.tokenizer()
        self.ids = self.tokenizer(self.prompt).input_ids

    def save(self, name: str, text: str, *, loops: bool = False, nan: bool = False) -> Path:
        """Save a model that writes a text, and then ends or repeats it."""
        tokens = self.tokenizer(text, add_special_tokens=False).input_ids if text else []
        assert len({*tokens}) == len(tokens), "each token has one successor"
        line = [self.ids[-1], *tokens, tokens[0] if loops else 3]
        model = self.tiny.live("llama", 0, rows=90, hidden_size=96, max_position_embeddings=128)
        with torch.no_grad():
            for layer in model.model.layers:
                layer.self_attn.o_proj.weight.zero_()
                layer.mlp.down_proj.weight.zero_()
            model.model.embed_tokens.weight.copy_(torch.eye(90, 96))
            model.lm_head.weight.zero_()
            for one, other in pairwise(line):
                model.lm_head.weight[other, one] = 1
            if nan:
                model.model.layers[1].mlp.down_proj.weight[0, 0] = math.nan
        self.tiny.save(self.root / name, model, self.tokenizer)
        return self.root / name

    def smoke_test(self, **options: Any) -> SmokeTest:
        return SmokeTest(device=CPU, prompts=[self.prompt], **options)


@pytest.fixture
def chains(tiny: Any, tmp_path: Path) -> Chains:
    return Chains(tiny, tmp_path)


CASES: Mapping[str, tuple[dict[str, Any], str, str | None]] = {
    "sound": ({"text": " jumps over"}, " jumps over", None),
    "short": ({"text": " dog"}, " dog", None),
    "token": ({"text": " the", "loops": True}, " the" * 32, "repeats itself"),
    "phrase": ({"text": " over the lazy", "loops": True}, "", "repeats itself"),
    "ends": ({"text": ""}, "", "empty"),
    "nan": ({"text": " jumps over", "nan": True}, "", "not finite"),
}


@pytest.mark.parametrize(("options", "text", "verdict"), CASES.values(), ids=CASES)
def test_verdicts(chains: Chains, options: Any, text: str, verdict: str | None) -> None:
    findings = chains.smoke_test().run(chains.save("model", **options), [])
    (answer,) = findings.answers["model"]
    assert answer.verdict == verdict
    assert findings.problems == ({} if verdict is None else {verdict: 1})
    if text:
        assert answer.text == text
    printed = findings.as_text()
    assert (f"[{verdict}]" in printed) is (verdict is not None)
    assert ("model: no answer is empty" in printed) is (verdict is None)


@pytest.fixture
def merge(chains: Chains) -> Path:
    """Merge two models that have not been asked before."""
    pool = {
        "name": "causal-lm",
        "base": str(chains.save("base", " jumps over")),
        "models": {"math": str(chains.save("math", " lazy dog"))},
    }
    run_fusion(algorithm=Mean(), model_pool=pool, output=chains.root / "merged")
    return chains.root / "merged"


def test_a_run_prints_the_smoke_test(merge: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(merge.parent)
    pool = [f"model_pool.base={merge}/../base", f"model_pool.models=[{merge}/../math]"]
    options = ["--pool", "causal-lm", "--set", pool[0], "--set", pool[1]]
    arguments = ["run", "--algo", "simple-average", *options, "-o", "again", "-q"]
    done = CliRunner().invoke(resolve_name("fusion_core.cli.app:app"), arguments)
    assert done.exit_code == 0
    assert done.stdout.startswith("written: again\n\nsmoke test: greedy, 32 tokens at most")
    assert "\n  base   " in done.stdout
    assert "\nto again  " in done.stdout
    assert done.stderr == ""


def test_the_exit_code_reports_problems(merge: Path, chains: Chains) -> None:
    program, runner = typer.Typer(), CliRunner()
    program.command()(smoke)
    options = ["--prompt", chains.prompt, "-q"]
    done = runner.invoke(program, [str(merge), *options, "--json"])
    findings = json.loads(done.stdout)
    assert done.exit_code == len(findings["problems"])
    assert list(findings["models"]) == ["base", "math", "merged"]
    assert findings["models"]["math"]["answers"] == [{"text": " lazy dog", "verdict": None}]
    assert list(findings["models"]["base"]["bits_per_byte"]) == ["base", "math", "merged"]
    done = runner.invoke(program, [str(merge), *options, "--json", "--alone"])
    assert list(json.loads(done.stdout)["models"]) == ["merged"]
    loop = chains.save("loop", " the", loops=True)
    done = runner.invoke(program, [str(loop), *options])
    assert done.exit_code == 1
    assert done.stdout.endswith("\nloop: repeats itself (1 of 1 answers)\n")


def test_copies_of_other_models_are_named(chains: Chains) -> None:
    for name, text in {"base": " jumps over", "math": " lazy dog", "copy": " lazy dog"}.items():
        chains.save(name, text)
    options = LanguageConfig(
        base=str(chains.root / "base"), models={"math": str(chains.root / "math")}
    )
    others = models_of_pool(CausalPool(options), chains.root / "copy")
    smoke_test = SmokeTest(device=CPU, prompts=[chains.prompt, f"{chains.prompt} jumps"])
    findings = smoke_test.run(chains.root / "copy", others)
    assert findings.same_answers["math"] == 2
    assert findings.same_answers["base"] < 2
    text = findings.as_text()
    assert "math (2 of 2 prompts)" in text
    assert "look in its recipe.yaml for a scale or weight of 0" in text
    assert json.loads(findings.as_json())["same_answers"] == dict(findings.same_answers)
    alike = smoke_test.run(chains.root / "copy", others[1:])
    assert "copies of the base" in alike.as_text()
    assert not smoke_test.run(chains.root / "base", others[1:]).same_answers["math"]


def compute_nats(directory: Path, ids: list[int], answer: list[int]) -> float:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float64)
    input_ids = torch.tensor([[*ids, *answer]])
    labels = torch.tensor([[-100] * len(ids) + answer])
    return float(model(input_ids=input_ids, labels=labels).loss.detach()) * len(answer)


def run_smoke_test(smoke_test: SmokeTest, directory: Path) -> Findings:
    return smoke_test.run(directory, source_models(directory, frozenset(), frozenset()))


def test_bits_per_byte_are_transformers_own_loss(merge: Path, chains: Chains) -> None:
    findings = run_smoke_test(chains.smoke_test(), merge)
    answers = {"base": " jumps over", "math": " lazy dog"}
    for reader in ("base", "math", "merged"):
        for author, text in answers.items():
            ids = chains.tokenizer(text).input_ids
            nats = compute_nats(chains.root / reader, chains.ids, ids)
            bits = nats / math.log(2) / len(text.encode())
            assert findings.bits[reader][author] == pytest.approx(bits, rel=1e-5)


def test_an_adapter_is_built_in_the_dtype_of_its_base() -> None:
    """Differences of some adapters are in fp64, so that a merge rounds once."""
    pool = tiny_pool("mlp", dtype=torch.bfloat16)
    assert pool.base is not None
    differences = {
        name: torch.zeros(info.shape, dtype=torch.float64) for name, info in pool.base.infos.items()
    }
    adapter = StateDictSource(differences)
    adapter.is_delta = True
    model = NamedModel("adapter", cast("Any", pool), adapter)
    assert model.nbytes == NamedModel("base", cast("Any", pool), pool.base).nbytes
    assert {value.dtype for value in model.build(CPU).parameters()} == {torch.bfloat16}


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Record the names of the models that are built."""
    names: list[str] = []
    build = CausalPool.build

    def record(self: CausalPool, weights: Any, **options: Any) -> Any:
        names.append(weights.describe().rpartition("/")[2])
        return build(self, weights, **options)

    monkeypatch.setattr(CausalPool, "build", record)
    return names


def test_base_and_experts_are_built_once(merge: Path, chains: Chains, built: list[str]) -> None:
    smoke_test = chains.smoke_test(is_thorough=False)
    first = run_smoke_test(smoke_test, merge)
    assert sorted(built) == ["base", "base", "math", "math", "merged"]
    built.clear()
    (merge / "generation_config.json").write_text("{}")  # changes the identity of the merge
    again = run_smoke_test(smoke_test, merge)
    assert built == ["merged"]
    assert (again.answers, again.bits) == (first.answers, first.bits)
    run_smoke_test(chains.smoke_test(is_thorough=False, fresh=True), merge)
    assert len(built) == 6


def test_an_unreadable_model_is_left_out(
    merge: Path, chains: Chains, caplog: pytest.LogCaptureFixture
) -> None:
    weights = chains.root / "math" / "model.safetensors"
    whole = weights.read_bytes()
    others = source_models(merge, frozenset(), frozenset())
    weights.write_bytes(whole[:-8])
    findings = chains.smoke_test().run(merge, others)
    assert list(findings.answers) == ["base", "merged"]
    assert "math is not asked: " in caplog.text
    alone = run_smoke_test(chains.smoke_test(), merge)
    assert (list(alone.answers), alone.bits) == (["merged"], {})
    assert "the base and experts are not asked: " in caplog.text


def test_models_of_the_pool_checkpoints_are_built_like_the_merge(
    merge: Path, chains: Chains
) -> None:
    recipe = merge / "recipe.yaml"
    recipe.write_text(
        "algorithm: simple-average\nmodel_pool: {name: checkpoints, base: ../base, "
        "models: {merged: ../math}}\n"
    )
    assert list(run_smoke_test(chains.smoke_test(), merge).answers) == [
        "base",
        "merged (merged)",
        "merged",
    ]


def test_an_encoder_reads_the_prompt_of_a_seq2seq_model(
    models_of: Callable[..., Any], tmp_path: Path
) -> None:
    models_of("t5")
    findings = SmokeTest(device=CPU, prompts=["the quick"], max_tokens=5).run(tmp_path / "a", [])
    (answer,) = findings.answers["a"]
    from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

    model = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "a")
    inputs = AutoTokenizer.from_pretrained(tmp_path / "a")("the quick", return_tensors="pt")
    answer_ids = [0]
    for _ in range(5):
        scores = model(
            input_ids=inputs.input_ids, decoder_input_ids=torch.tensor([answer_ids])
        ).logits
        answer_ids.append(int(scores[0, -1].argmax()))
    assert answer.tokens == [token for token in answer_ids[1:] if token != 3]


def test_plain_uses_no_chat_template(chains: Chains) -> None:
    path = chains.save("model", " jumps over")
    (path / "chat_template.jinja").write_text("{{ raise_exception('never') }}")
    with pytest.raises(RecipeError, match="never") as caught:
        chains.smoke_test().run(path, [])
    assert caught.value.hint == "Use no chat template: --plain"
    assert "as plain text" in chains.smoke_test(is_plain=True).run(path, []).how
    (path / "chat_template.jinja").write_text("{{ messages[0].content }}")
    findings = chains.smoke_test().run(path, [])
    assert "through the chat template" in findings.how
    assert findings.answers["model"][0].text == " jumps over"


def test_directories_without_a_model_are_refused(chains: Chains, tmp_path: Path) -> None:
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
    (tmp_path / "file").write_text("")
    (tmp_path / "empty").mkdir()
    smoke_test = chains.smoke_test()
    refused = {"file": "expected a directory", "adapter": "LoRA", "empty": "config.json"}
    for name, message in refused.items():
        with pytest.raises(CheckpointError, match=message):
            smoke_test.run(tmp_path / name, [])
    with pytest.raises(RecipeError, match="a prompt is empty"):
        SmokeTest(device=CPU, prompts=[""]).run(chains.save("model", ""), [])


def test_a_long_prompt_loses_its_start(chains: Chains) -> None:
    smoke_test = SmokeTest(
        device=CPU, prompts=[f"{chains.prompt} " * 99 + chains.prompt], max_tokens=999
    )
    findings = smoke_test.run(chains.save("model", " jumps over"), [])
    assert findings.answers["model"][0].text == " jumps over"
    assert "64 tokens at most" in findings.how


def test_special_numbers_and_names_are_printed_safely(chains: Chains) -> None:
    chains.save("nan", " jumps over", nan=True)
    alone = chains.smoke_test().run(chains.save("a\x1b[2J", " dog"), [])
    assert "a\\x1b[2J: no answer" in alone.as_text()
    others = models_of_pool(
        CausalPool(CausalPool.config_class(models={"x": str(chains.root / "nan")})), chains.root
    )
    findings = chains.smoke_test().run(chains.root / "a\x1b[2J", others)
    assert "\nto x         -  nan\n" in findings.as_text()
    assert json.loads(findings.as_json())["models"]["x"]["bits_per_byte"] == {
        "x": None,
        "a\x1b[2J": None,
    }


def test_a_model_that_is_too_large_is_not_asked_after_a_run(
    merge: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Result:
        path, pool = merge, source_models(merge, frozenset(), frozenset())[0].pool
        add_modules = None

    def print_after_run() -> str | None:
        findings: Any = Result
        return after_run.text_after_run(findings, CPU, Progress())

    monkeypatch.setenv("PATH", str(merge.parent))
    assert "merged" in (print_after_run() or "")
    monkeypatch.setattr(after_run, "available_bytes", lambda _: 10_000)
    assert print_after_run() is None
    assert "no smoke test: a model needs" in caplog.text
    converter = merge.parent / "convert_hf_to_gguf.py"
    converter.touch(0o755)
    command = f"as GGUF: convert_hf_to_gguf.py {merge} --outtype auto --outfile {merge}.gguf"
    assert print_after_run() == command


def test_available_memory_is_the_smallest_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("_MEMINFO", "_LIMIT"):
        monkeypatch.setattr(memory, name, tmp_path / name)
    assert memory.available_bytes(CPU) > 10**8
    (tmp_path / "_MEMINFO").write_text("MemTotal: 9 kB\nMemAvailable:      50 kB\n")
    (tmp_path / "_LIMIT").write_text("max\n")
    assert memory.available_bytes(CPU) == 51_200
    (tmp_path / "_LIMIT").write_text("1000\n")
    assert memory.available_bytes(CPU) == 1000
