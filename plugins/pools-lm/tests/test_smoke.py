"""The smoke test: what is wrong is said, what is sound is not, and nobody is asked twice."""

from __future__ import annotations

import json
import math
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest
import torch
import typer
from typer.testing import CliRunner

from fusion_core import Progress, run_fusion
from fusion_core.errors import CheckpointError, RecipeError
from fusion_testing import CommandSuite, Mean
from pools_lm import plugin
from pools_lm.pools import CausalPool
from pools_lm.smoke import after_run, room
from pools_lm.smoke.answers import repeats
from pools_lm.smoke.command import smoke
from pools_lm.smoke.directory import made_of, speakers
from pools_lm.smoke.trial import Trial

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from fusion_core import CommandSpec
    from pools_lm.smoke.findings import Findings

CPU = torch.device("cpu")


class TestCommand(CommandSuite):
    @pytest.fixture
    def spec(self) -> CommandSpec:
        (found,) = plugin.fusion_register_commands()
        return found


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
def test_what_repeats_itself_is_seen(text: str) -> None:
    assert repeats(text)


@pytest.mark.parametrize("text", SOUND)
def test_what_does_not_is_left_alone(text: str) -> None:
    assert not repeats(text)


class Chains:
    """Models that go on as they are told: after each token comes one other.

    Layers add nothing, each token's row of the embeddings is a direction of its own, and the head
    finds in it the token that is next.
    """

    prompt = "the quick brown fox"

    def __init__(self, tiny: Any, root: Path) -> None:
        self.tiny, self.root, self.own = tiny, root, tiny.tokenizer()
        self.ids = self.own(self.prompt).input_ids

    def save(self, name: str, text: str, *, loops: bool = False, nan: bool = False) -> Path:
        """Save one that says a text, and then ends or begins again with it."""
        said = self.own(text, add_special_tokens=False).input_ids if text else []
        assert len({*said}) == len(said), "a token is followed by one other"
        line = [self.ids[-1], *said, said[0] if loops else 3]
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
        self.tiny.save(self.root / name, model, self.own)
        return self.root / name

    def trial(self, **options: Any) -> Trial:
        return Trial(device=CPU, prompts=[self.prompt], **options)


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


@pytest.mark.parametrize(("options", "said", "verdict"), CASES.values(), ids=CASES)
def test_verdicts(chains: Chains, options: Any, said: str, verdict: str | None) -> None:
    found = chains.trial().findings(chains.save("model", **options), [])
    (answer,) = found.answers["model"]
    assert answer.verdict == verdict
    assert found.problems == ({} if verdict is None else {verdict: 1})
    if said:
        assert answer.text == said
    shown = found.as_text()
    assert (f"[{verdict}]" in shown) is (verdict is not None)
    assert ("model: no answer is empty" in shown) is (verdict is None)


@pytest.fixture
def merge(chains: Chains) -> Path:
    """Merge two models, of which nobody was asked anything."""
    pool = {
        "name": "causal-lm",
        "base": str(chains.save("base", " jumps over")),
        "models": {"math": str(chains.save("math", " lazy dog"))},
    }
    run_fusion(algorithm=Mean(), model_pool=pool, output=chains.root / "merged")
    return chains.root / "merged"


def test_a_run_shows_it_and_nothing_else(merge: Path, run_fuse: Callable[..., Any]) -> None:
    pool = [f"model_pool.base={merge}/../base", f"model_pool.models=[{merge}/../math]"]
    given = ["--pool", "causal-lm", "--set", pool[0], "--set", pool[1]]
    done = run_fuse("run", "--algo", "simple-average", *given, "-o", "again", "-q")
    assert done.stdout.startswith("written: again\n\nsmoke test: greedy, 32 tokens at most")
    assert "\n  base   " in done.stdout
    assert "\nto again  " in done.stdout
    assert done.stderr == ""


def test_the_command_says_what_is_wrong_by_its_exit_code(merge: Path, chains: Chains) -> None:
    program, runner = typer.Typer(), CliRunner()
    program.command()(smoke)
    asked = ["--prompt", chains.prompt, "-q"]
    done = runner.invoke(program, [str(merge), *asked, "--json"])
    found = json.loads(done.stdout)
    assert done.exit_code == len(found["problems"])
    assert list(found["models"]) == ["base", "math", "merged"]
    assert found["models"]["math"]["answers"] == [{"text": " lazy dog", "verdict": None}]
    assert list(found["models"]["base"]["bits_per_byte"]) == ["base", "math", "merged"]
    done = runner.invoke(program, [str(merge), *asked, "--json", "--alone"])
    assert list(json.loads(done.stdout)["models"]) == ["merged"]
    loop = chains.save("loop", " the", loops=True)
    done = runner.invoke(program, [str(loop), *asked])
    assert done.exit_code == 1
    assert done.stdout.endswith("\nloop: repeats itself (1 of 1 answers)\n")


def nats_by_hand(directory: Path, ids: list[int], said: list[int]) -> float:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float64)
    given = torch.tensor([[*ids, *said]])
    labels = torch.tensor([[-100] * len(ids) + said])
    return float(model(input_ids=given, labels=labels).loss.detach()) * len(said)


def findings(trial: Trial, directory: Path) -> Findings:
    return trial.findings(directory, made_of(directory, frozenset(), frozenset()))


def test_bits_per_byte_are_transformers_own_loss(merge: Path, chains: Chains) -> None:
    found = findings(chains.trial(), merge)
    said = {"base": " jumps over", "math": " lazy dog"}
    for reader in ("base", "math", "merged"):
        for author, text in said.items():
            ids = chains.own(text).input_ids
            nats = nats_by_hand(chains.root / reader, chains.ids, ids)
            bits = nats / math.log(2) / len(text.encode())
            assert found.bits[reader][author] == pytest.approx(bits, rel=1e-5)


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return which models are built from now on."""
    names: list[str] = []
    build = CausalPool.build

    def noted(self: CausalPool, weights: Any, **options: Any) -> Any:
        names.append(weights.describe().rpartition("/")[2])
        return build(self, weights, **options)

    monkeypatch.setattr(CausalPool, "build", noted)
    return names


def test_base_and_experts_are_built_once(merge: Path, chains: Chains, built: list[str]) -> None:
    trial = chains.trial(is_thorough=False)
    first = findings(trial, merge)
    assert sorted(built) == ["base", "base", "math", "math", "merged"]
    built.clear()
    (merge / "generation_config.json").write_text("{}")  # another merge, for all that is known
    again = findings(trial, merge)
    assert built == ["merged"]
    assert (again.answers, again.bits) == (first.answers, first.bits)
    findings(chains.trial(is_thorough=False, fresh=True), merge)
    assert len(built) == 6


def test_one_that_cannot_be_read_is_left_out(
    merge: Path, chains: Chains, caplog: pytest.LogCaptureFixture
) -> None:
    weights = chains.root / "math" / "model.safetensors"
    whole = weights.read_bytes()
    others = made_of(merge, frozenset(), frozenset())
    weights.write_bytes(whole[:-8])
    found = chains.trial().findings(merge, others)
    assert list(found.answers) == ["base", "merged"]
    assert "math is not asked: " in caplog.text
    alone = findings(chains.trial(), merge)
    assert (list(alone.answers), alone.bits) == (["merged"], {})
    assert "base and experts are not asked: " in caplog.text


def test_the_models_of_any_pool_are_asked_as_what_the_directory_holds(
    merge: Path, chains: Chains
) -> None:
    recipe = merge / "recipe.yaml"
    recipe.write_text(
        "algorithm: simple-average\nmodel_pool: {name: checkpoints, base: ../base, "
        "models: {merged: ../math}}\n"
    )
    assert list(findings(chains.trial(), merge).answers) == ["base", "merged (merged)", "merged"]


def test_an_encoder_reads_the_prompt_of_a_seq2seq_model(
    models_of: Callable[..., Any], tmp_path: Path
) -> None:
    models_of("t5")
    found = Trial(device=CPU, prompts=["the quick"], max_tokens=5).findings(tmp_path / "a", [])
    (answer,) = found.answers["a"]
    from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

    model = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "a")
    given = AutoTokenizer.from_pretrained(tmp_path / "a")("the quick", return_tensors="pt")
    said = [0]
    for _ in range(5):
        scores = model(input_ids=given.input_ids, decoder_input_ids=torch.tensor([said])).logits
        said.append(int(scores[0, -1].argmax()))
    assert answer.tokens == [token for token in said[1:] if token != 3]


def test_a_template_is_used_unless_it_is_not_wanted(chains: Chains) -> None:
    path = chains.save("model", " jumps over")
    (path / "chat_template.jinja").write_text("{{ raise_exception('never') }}")
    with pytest.raises(RecipeError, match="never") as caught:
        chains.trial().findings(path, [])
    assert caught.value.hint == "Ask without it: --plain"
    assert "as plain text" in chains.trial(is_plain=True).findings(path, []).how
    (path / "chat_template.jinja").write_text("{{ messages[0].content }}")
    found = chains.trial().findings(path, [])
    assert "through the chat template" in found.how
    assert found.answers["model"][0].text == " jumps over"


def test_what_is_not_a_model_is_refused(chains: Chains, tmp_path: Path) -> None:
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
    (tmp_path / "file").write_text("")
    (tmp_path / "empty").mkdir()
    trial = chains.trial()
    refused = {"file": "not a directory", "adapter": "LoRA", "empty": "config.json"}
    for name, said in refused.items():
        with pytest.raises(CheckpointError, match=said):
            trial.findings(tmp_path / name, [])
    with pytest.raises(RecipeError, match="no tokens"):
        Trial(device=CPU, prompts=[""]).findings(chains.save("model", ""), [])


def test_a_long_prompt_loses_its_beginning(chains: Chains) -> None:
    trial = Trial(device=CPU, prompts=[f"{chains.prompt} " * 99 + chains.prompt], max_tokens=999)
    found = trial.findings(chains.save("model", " jumps over"), [])
    assert found.answers["model"][0].text == " jumps over"
    assert "64 tokens at most" in found.how


def test_numbers_and_names_are_printed_as_they_may_be(chains: Chains) -> None:
    chains.save("nan", " jumps over", nan=True)
    own = chains.trial().findings(chains.save("a\x1b[2J", " dog"), [])
    assert "a\\x1b[2J: no answer" in own.as_text()
    others = speakers(
        CausalPool(CausalPool.config_class(models={"x": str(chains.root / "nan")})), chains.root
    )
    found = chains.trial().findings(chains.root / "a\x1b[2J", others)
    assert "\nto x         -  nan\n" in found.as_text()
    assert json.loads(found.as_json())["models"]["x"]["bits_per_byte"] == {
        "x": None,
        "a\x1b[2J": None,
    }


def test_a_model_that_is_too_large_is_not_asked_after_a_run(
    merge: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Result:
        path, pool = merge, made_of(merge, frozenset(), frozenset())[0].pool

    def looked() -> str | None:
        found: Any = Result
        return after_run.shown_after_run(found, CPU, Progress())

    monkeypatch.setenv("PATH", str(merge.parent))
    assert "merged" in (looked() or "")
    monkeypatch.setattr(after_run, "room_on", lambda _: 10_000)
    assert looked() is None
    assert "no smoke test: a model takes" in caplog.text
    converter = merge.parent / "convert_hf_to_gguf.py"
    converter.touch(0o755)
    said = f"as GGUF: convert_hf_to_gguf.py {merge} --outtype auto --outfile {merge}.gguf"
    assert looked() == said


def test_the_room_is_the_least_that_anybody_grants(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("_MEMINFO", "_LIMIT"):
        monkeypatch.setattr(room, name, tmp_path / name)
    assert room.room_on(CPU) > 10**8
    (tmp_path / "_MEMINFO").write_text("MemTotal: 9 kB\nMemAvailable:      50 kB\n")
    (tmp_path / "_LIMIT").write_text("max\n")
    assert room.room_on(CPU) == 51_200
    (tmp_path / "_LIMIT").write_text("1000\n")
    assert room.room_on(CPU) == 1000
