"""Prompts that models write, and the agreement with experts on them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import torch
import transformers

from fusion_core import Split, run_fusion
from fusion_core.errors import CheckpointError, FusionError, RecipeError
from fusion_testing import TaskPoolSuite
from pools_lm import plugin
from pools_lm.config import LanguageConfig
from pools_lm.mini.config import MiniConfig, MiniTasksConfig
from pools_lm.mini.pools import DATA, MiniPool, MiniTasks
from pools_lm.pools import CausalPool, Seq2SeqPool
from pools_lm.tasks.agreement import AgreementTask, AgreementTasks
from pools_lm.tasks.config import AgreementConfig, LanguageTasksConfig
from pools_lm.tasks.generation import TextGenerator
from pools_lm.tasks.pool import LanguageTasks
from pools_lm.tasks.prompts import Pair, Prompts, Turn
from pools_lm.tasks.sampling import PROMPTS_FILE, PromptSampler
from pools_lm.tasks.scoring import answer_start

if TYPE_CHECKING:
    from collections.abc import Callable

    from fusion_core import ModelPool, TaskPoolSpec

FEW = {"sampled": 4, "prompt_tokens": 12, "answer_tokens": 6}
PAIR = MiniConfig(tasks=["roman", "past"])
_SPLITS = ("test", "unlabeled")


def sampler_of(pool: ModelPool[Any], **options: Any) -> PromptSampler:
    chat = options.pop("chat", None)
    config = AgreementConfig(**{**FEW, **options})
    return PromptSampler(pool, Prompts.of_pool(pool, chat=chat), config)


class TestAgreement(TaskPoolSuite):
    @pytest.fixture
    def spec(self) -> TaskPoolSpec:
        specs = plugin.fusion_register_task_pools()
        return next(spec for spec in specs if spec.name == "lm-agreement")

    @pytest.fixture
    def options(self) -> dict[str, Any]:
        return {**FEW, "sampled": 8}

    @pytest.fixture
    def models(self, models_of: Callable[..., dict[str, Any]]) -> CausalPool:
        return CausalPool(LanguageConfig(**models_of("llama")))


def test_samples_follow_the_models_distribution() -> None:
    pool = MiniPool(PAIR)
    prompts, model = Prompts.of_pool(pool), pool.build(pool.base or pool.reference)
    context = prompts.contexts(prompts.questions([[Turn("What is the past tense of go?")]]))[0]
    generator = TextGenerator(prompts, model, 1, batch_size=500)
    rows = generator.sample_tokens([context] * 3000, seed=0, key="test")
    # an end token is not part of a row
    tokens = torch.tensor([[*row, *prompts.ends][0] for row in rows])
    with torch.inference_mode():
        expected = model(torch.tensor([context])).logits[0, -1].softmax(dim=-1)
    counted = torch.bincount(tokens, minlength=len(expected)) / len(rows)
    assert float((counted - expected).abs().sum()) / 2 < 0.1  # total variation
    assert expected.max() < 0.9
    again = generator.sample_tokens([context] * 100, seed=0, key="test")
    other = generator.sample_tokens([context] * 100, seed=1, key="test")
    assert rows[:100] == again != other


def test_an_expert_answers_prompts_that_it_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    pool = MiniPool(PAIR)
    sampler = sampler_of(pool)
    pairs = sampler.pairs("roman")
    start = sampler.prompts.user_start()
    assert 0 < len(pairs) <= FEW["sampled"]
    assert all(pair.context[: len(start)] == start for pair in pairs)
    generator = TextGenerator(sampler.prompts, pool.build(pool.experts["roman"]), 6)
    answers = generator.generate_tokens([pair.context for pair in pairs], label="test")
    assert [list(pair.continuation) for pair in pairs] == answers
    assert pairs != sampler.pairs("past")
    assert pairs != sampler.pairs("roman", key="test")
    assert pairs != sampler_of(pool, prompts="base").pairs("roman")

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("prompts are cached")

    monkeypatch.setattr(MiniPool, "build", refuse)
    assert sampler_of(MiniPool(PAIR)).pairs("roman") == pairs


def test_the_base_answers_a_task_without_an_expert() -> None:
    pool = MiniPool(PAIR)
    sampler = sampler_of(pool)
    (context,) = sampler.prompts.contexts(sampler.prompts.questions([[Turn("What is a tiger?")]]))
    assert pool.base is not None
    answers = [
        TextGenerator(sampler.prompts, pool.build(source), 6).generate_tokens([context], label="")
        for source in (pool.base, pool.experts["past"])
    ]
    answered = [
        [list(pair.continuation) for pair in sampler.answer(task, [Pair(context)], or_base=True)]
        for task in ("general", "past")
    ]
    assert answered == answers
    assert answers[0] != answers[1]


@pytest.fixture
def general(tmp_path: Path) -> dict[str, Any]:
    path = tmp_path / "general.jsonl"
    path.write_text("".join(f'{{"prompt": "What is a {w}?"}}\n' for w in ("tiger", "rose", "day")))
    return {"kind": "agreement", "test": str(path), "unlabeled": str(path)}


def test_a_model_agrees_with_the_base_or_the_expert_on_prompts(general: dict[str, Any]) -> None:
    pool = MiniPool(PAIR)
    config = LanguageTasksConfig(datasets={"general": general, "past": general}, answer_tokens=6)
    tasks = LanguageTasks(config).bind(pool)
    assert pool.base is not None
    base, past = pool.build(pool.base), pool.build(pool.experts["past"])
    assert tasks["general"].evaluate(base) == tasks["past"].evaluate(past) == {"agreement": 1.0}
    measured = tasks["general"].evaluate(past)
    pairs = tasks["general"].load_examples(Split.UNLABELED)
    counts = [_count_agreed(base, past, pair) for pair in pairs]
    sizes = [len(pair.continuation) for pair in pairs]
    assert measured == {"agreement": sum(counts) / sum(sizes)}
    assert 0 < measured["agreement"] < 1


def _count_agreed(model: Any, other: Any, pair: Pair) -> int:
    tokens, first = torch.tensor([[*pair.context, *pair.continuation]]), len(pair.context) - 1
    with torch.inference_mode():
        ours, theirs = (m(tokens).logits[0, first:-1].argmax(-1) for m in (model, other))
    return int((ours == theirs).sum())


def test_agreement_needs_answers(general: dict[str, Any]) -> None:
    pool = MiniPool(PAIR)
    tasks = LanguageTasks(LanguageTasksConfig(datasets={"general": general}, answer_tokens=0)).bind(
        pool
    )
    with pytest.raises(RecipeError, match="no model answers"):
        tasks["general"].evaluate(pool.build(pool.base or pool.reference))


def test_a_base_of_encoder_decoders_agrees_with_itself(
    general: dict[str, Any], models_of: Callable[..., dict[str, Any]]
) -> None:
    pool: Any = Seq2SeqPool(LanguageConfig(**models_of("t5")))
    config = LanguageTasksConfig(datasets={"general": general}, answer_tokens=6)
    task = LanguageTasks(config).bind(pool)["general"]
    assert task.evaluate(pool.build(pool.base))["agreement"] == 1
    assert task.evaluate(pool.build(pool.experts["a"]))["agreement"] < 1


@pytest.mark.thorough
def test_a_merge_retains_what_the_base_says(general: dict[str, Any], tmp_path: Path) -> None:
    datasets: dict[str, Any] = {"general": general}
    for name in PAIR.tasks or ():
        files = {split: str(DATA / "tasks" / name / f"{split}.jsonl") for split in _SPLITS}
        datasets[name] = {"kind": "generate", "max_tokens": 6, **files}
    few = {"limit": 4, "answer_tokens": 6}
    recipe: dict[str, Any] = {
        "model_pool": {"name": "lm-mini", "tasks": PAIR.tasks},
        "task_pool": {"name": "lm-tasks", "datasets": datasets, **few},
    }
    agreements = []
    for retain in ([], ["general"]):
        search = {"preset": "strong", "steps": 6, "batch_size": 4, "retain": retain}
        recipe["algorithm"] = {"name": "adamerging", **search}
        report = run_fusion(recipe, output=tmp_path / f"merged-{len(retain)}").report
        assert report is not None
        agreements.append(report.tasks["general"]["agreement"])
    assert agreements[0] < agreements[1]


def test_an_expert_is_built_once_to_write_and_to_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    pool, builds, build = MiniPool(PAIR), [], MiniPool.build

    def record_build(self: Any, *arguments: Any, **options: Any) -> Any:
        builds.append(arguments)
        return build(self, *arguments, **options)

    monkeypatch.setattr(MiniPool, "build", record_build)
    sampler_of(pool).pairs("roman")
    assert len(builds) == 1


def test_a_long_prompt_is_cut_so_that_its_answer_fits() -> None:
    pool = MiniPool(PAIR)
    sampler = sampler_of(pool)
    short = replace(sampler, prompts=replace(sampler.prompts, length=10, positions=10))
    context = list(range(5, 15))
    answered, given = short.answer("roman", [Pair(context), Pair(context[:5], context[5:])])
    assert answered.context == context[-10 + FEW["answer_tokens"] :]
    assert 0 < len(answered.continuation) <= FEW["answer_tokens"]
    assert given == Pair(context[:5], context[5:])
    unknown = [Pair(context)]
    assert short.answer("unknown", unknown) == unknown
    (by_base,) = short.answer("unknown", unknown, or_base=True)
    assert by_base.context == answered.context


def test_without_a_chat_template_models_write_texts(
    models_of: Callable[..., dict[str, Any]],
) -> None:
    sampler = sampler_of(CausalPool(LanguageConfig(**models_of("llama"))), chat=False)
    pairs = sampler.pairs("b")
    assert {tuple(pair.context) for pair in pairs} == {(sampler.prompts.start_token,)}
    assert all(0 < len(pair.continuation) <= FEW["prompt_tokens"] for pair in pairs)


def test_encoder_decoders_write_no_prompts(models_of: Callable[..., dict[str, Any]]) -> None:
    pool = Seq2SeqPool(LanguageConfig(**models_of("t5", "seq2seq-lm")))
    with pytest.raises(RecipeError, match=r"'b'.* writes answers, but no prompts"):
        sampler_of(pool).pairs("b")


def test_a_template_that_drops_the_user_is_named(
    tiny: Any, models_of: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    options = models_of("llama")
    tokenizer = tiny.tokenizer()
    tokenizer.chat_template = "<a>"
    tokenizer.save_pretrained(options["base"])
    with pytest.raises(RecipeError, match="chat template omits what users say"):
        sampler_of(CausalPool(LanguageConfig(**options))).pairs("b")


def test_agreement_is_the_share_of_the_experts_tokens() -> None:
    pool = MiniPool(PAIR)
    task = AgreementTasks(AgreementConfig(**FEW)).bind(pool)["roman"]
    expert, base = pool.build(pool.experts["roman"]), pool.build(pool.base or pool.reference)
    pairs = task.load_examples(Split.TEST)
    equal = total = 0
    for pair in pairs:
        tokens = torch.tensor([[*pair.context, *pair.continuation]])
        with torch.inference_mode():
            first, second = (model(tokens).logits[0].argmax(-1) for model in (expert, base))
        spoken = slice(len(pair.context) - 1, -1)
        equal += int((first == second)[spoken].sum())
        total += len(pair.continuation)
    assert dict(task.evaluate(base)) == {"agreement": pytest.approx(equal / total)}
    assert dict(task.evaluate(expert)) == {"agreement": 1.0}
    assert equal < total
    unlabeled = {tuple(pair.context) for pair in task.load_examples(Split.UNLABELED)}
    assert unlabeled.isdisjoint(tuple(pair.context) for pair in pairs)


def test_prompts_that_a_search_sees_are_not_measured() -> None:
    """With prompts of one token, models write some of them twice."""
    tasks = AgreementTasks(AgreementConfig(**{**FEW, "sampled": 40, "prompt_tokens": 1}))
    task = tasks.bind(MiniPool(PAIR))["past"]
    searched, measured = (
        {tuple(pair.context) for pair in task.load_examples(split)}
        for split in (Split.UNLABELED, Split.TEST)
    )
    written = task.sampler.pairs("past", key=str(Split.TEST))
    assert searched & {tuple(pair.context) for pair in written}
    assert measured
    assert not searched & measured


def test_too_few_different_prompts_are_an_error() -> None:
    sampler: Any = SimpleNamespace(pairs=lambda *_, **__: [Pair([5], [6])])
    task = AgreementTask("past", sampler=sampler, batch_size=1)
    with pytest.raises(FusionError, match="'past': models write 1 different prompts, too few"):
        task.load_examples(Split.TEST)


def test_a_base_and_experts_need_no_task_pool(tmp_path: Path) -> None:
    experts = {name: str(DATA / "experts" / name) for name in ("roman", "past")}
    models = {"name": "causal-lm", "base": str(DATA / "base"), "models": experts}
    algorithm = {"name": "adamerging", "objective": "teacher", "steps": 2, "batch_size": 2}
    tasks = {"name": "lm-agreement", **FEW}
    recipe = {"algorithm": algorithm, "model_pool": models}
    result = run_fusion(recipe, task_pool=tasks, output=tmp_path / "named")
    assert result.report is not None
    assert list(result.report.tasks) == ["roman", "past"]
    assert result.report.transductive is False
    lines = (tmp_path / "named" / PROMPTS_FILE).read_text().splitlines()
    assert {json.loads(line)["task"] for line in lines} == {"roman", "past"}
    assert "lm-agreement" in (tmp_path / "named" / "recipe.yaml").read_text()
    without = run_fusion({**recipe, "algorithm": "ties"}, output=None)
    assert without.report is None  # only a method that needs examples brings its tasks


def test_prompts_that_show_nothing_are_named(caplog: pytest.LogCaptureFixture) -> None:
    pool = MiniPool(MiniConfig(tasks=["roman"]))
    sampler = sampler_of(pool)
    start = sampler.prompts.user_start()
    base = TextGenerator(sampler.prompts, pool.build(pool.base or pool.reference), 1)
    (token,) = base.generate_tokens([start], label="test")[0]
    sampler.warn_of_idle_prompts(
        "roman", [Pair(start, [token, 5])] * 2 + [Pair(start, [token + 1])] * 2
    )
    assert caplog.text == ""
    sampler.warn_of_idle_prompts("roman", [Pair(start, [token])] * 2 + [Pair(start, [token + 1])])
    assert "for roman say little about it: the base begins 2 of 3 answers" in caplog.text


def test_experts_answer_the_tasks_own_prompts_on_the_runs_device(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    devices: list[torch.device] = []
    tasks = MiniTasks(MiniTasksConfig(tasks=["roman"])).bind(MiniPool(PAIR))
    files: dict[str, bytes] = {}
    prepared = tasks.prepare(torch.device("meta"), files.__setitem__)
    assert files == {}

    def answer(*_: object, device: torch.device) -> list[list[int]]:
        devices.append(device)
        return [[1]] * 1000

    monkeypatch.setattr("pools_lm.tasks.sampling.cached_answer", answer)
    assert prepared["roman"].load_examples(Split.UNLABELED)[0].continuation == [1]
    assert devices == [torch.device("meta")]


def test_tasks_of_files_adapt_on_prompts_of_models() -> None:
    pool = MiniPool(PAIR)
    options = {"tasks": ["roman"], "prompts": "experts", **FEW}
    tasks = MiniTasks(MiniTasksConfig(**options)).bind(pool)
    files: dict[str, bytes] = {}
    prepared = tasks.prepare(torch.device("cpu"), files.__setitem__)
    assert [*files] == [PROMPTS_FILE]
    task = prepared["roman"]
    assert task.load_examples(Split.UNLABELED) == sampler_of(pool).pairs("roman", key="unlabeled")
    untouched = MiniTasks(MiniTasksConfig(tasks=["roman"])).bind(pool)["roman"]
    assert task.load_examples(Split.TEST) == untouched.load_examples(Split.TEST)
    assert not prepared.transductive
    assert replace(task, half=1).is_transductive is False


def test_an_encoder_with_absolute_positions_reads_the_same_in_any_batch() -> None:
    """Padding before a question would shift the positions at which BART's encoder reads it."""
    sizes = {"d_model": 16, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
    layers = {"encoder_layers": 2, "decoder_layers": 2}
    config = transformers.BartConfig(vocab_size=60, **sizes, **heads, **layers, init_std=1.0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = transformers.BartForConditionalGeneration(config).eval()
    prompts: Any = SimpleNamespace(is_seq2seq=True, ends=[2])
    questions = [[0, *range(5, 6 + 3 * number), 2] for number in range(6)]
    together, alone = (
        TextGenerator(prompts, model, 8, batch_size=size).generate_tokens(questions, label="")
        for size in (6, 1)
    )
    assert together == alone
    assert len({tuple(row) for row in alone}) > 1, "the answers depend on the questions"


def test_an_answer_begins_with_the_token_that_the_generation_config_forces(
    tiny: Any, tmp_path: Path
) -> None:
    """BART's start token and the language of a multilingual model are such tokens."""
    model = tiny.live("t5", 0, initializer_factor=3.0)
    model.generation_config.forced_bos_token_id = 17
    path = tiny.save(tmp_path / "base", model, tiny.tokenizer("pieces"))
    pool = Seq2SeqPool(Seq2SeqPool.config_class(models={"base": path}))
    generator = TextGenerator(Prompts.of_pool(pool), pool.build(pool.reference), 6)
    questions = [[5, 6, 7, 8, 9, 3], [10, 11, 3], [12, 3]]
    expected = [
        model.generate(torch.tensor([row]), max_new_tokens=7, do_sample=False)[0, 2:].tolist()
        for row in questions
    ]
    assert generator.generate_tokens(questions, label="") == [
        row[: row.index(3)] if 3 in row else row for row in expected
    ]


def test_an_answer_begins_after_the_token_that_the_generation_config_states(
    tiny: Any, tmp_path: Path
) -> None:
    model = tiny.live("t5", 0, initializer_factor=3.0)
    model.generation_config.decoder_start_token_id = 40
    path = Path(tiny.save(tmp_path / "base", model, tiny.tokenizer("pieces")))
    pool = Seq2SeqPool(Seq2SeqPool.config_class(models={"base": str(path)}))
    assert answer_start(pool.build(pool.reference)) == [40]
    for name in ("config.json", "generation_config.json"):
        content = json.loads((path / name).read_text())
        content.pop("decoder_start_token_id", None)
        (path / name).write_text(json.dumps(content))
    pool = Seq2SeqPool(Seq2SeqPool.config_class(models={"base": str(path)}))
    with pytest.raises(CheckpointError, match="has a decoder_start_token_id"):
        Prompts.of_pool(pool)
