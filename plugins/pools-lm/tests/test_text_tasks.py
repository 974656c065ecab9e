"""Text tasks, compared with transformers on one text at a time, without padding."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from pydantic import TypeAdapter, ValidationError
from scipy.stats import spearmanr
from tokenizers import processors
from transformers import AutoTokenizer, M2M100Config, PreTrainedConfig, XLNetConfig

from fusion_core import Batch, Split, run_fusion
from fusion_core.errors import FusionError, RecipeError
from pools_lm.config import LanguageConfig
from pools_lm.confined.tokenizer import ConfinedTokenizer
from pools_lm.pools import CausalPool, Seq2SeqPool
from pools_lm.tasks.config import LanguageTasksConfig, Template, TextLines
from pools_lm.tasks.generation import TextGenerator
from pools_lm.tasks.lines import Line, identify_data, read_lines
from pools_lm.tasks.pool import LanguageTasks
from pools_lm.tasks.prompts import Prompts, Turn
from pools_lm.tasks.ranks import rank_correlation

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from fusion_core import ModelPool

POOLS = {"llama": CausalPool, "gpt2": CausalPool, "t5": Seq2SeqPool}
TEXTS = ["the quick brown fox", "merging models is adding up", "a", "each piece has its row " * 9]
CHOICES = [
    {
        "question": f"the {word} jumps over",
        "choices": ["the lazy dog", "a row", "ö"],
        "answer": n % 3,
    }
    for n, word in enumerate(["quick fox", "brown fox and the dog", "fox", "old forest"])
]
ANSWERS = [{"prompt": choice["question"], "answer": ["dog", "fox"]} for choice in CHOICES]
TEMPLATE = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{{ eos_token }}{% endfor %}<a>"


@pytest.fixture
def pool_of(models_of: Callable[..., dict[str, Any]]) -> Callable[..., ModelPool[Any]]:
    def make(family: str) -> ModelPool[Any]:
        return POOLS[family](LanguageConfig(**models_of(family)))

    return make


@pytest.fixture
def tasks_of(tmp_path: Path) -> Callable[..., LanguageTasks]:
    """Return a function that makes one task per kind from lines and options."""

    def make(options: dict[str, Any] | None = None, **kinds: dict[str, Any]) -> LanguageTasks:
        datasets = {}
        for kind, data_options in kinds.items():
            data = {"kind": kind, **data_options}
            for split in set(Split) & data.keys():
                path = tmp_path / f"{kind}-{split}.jsonl"
                path.write_text("\n".join(map(json.dumps, data[split])), encoding="utf-8")
                data[split] = str(path)
            datasets[kind] = data
        return LanguageTasks(LanguageTasksConfig(datasets=datasets, **(options or {})))

    return make


def own_tokenizer(pool: ModelPool[Any]) -> Any:
    """Return the base's tokenizer, loaded by transformers in this process."""
    return AutoTokenizer.from_pretrained(pool.reference.describe())


def measure(tasks: LanguageTasks, pool: ModelPool[Any], name: str) -> Any:
    bound = tasks.bind(pool)
    return bound[name].evaluate(pool.build(pool.reference, dtype=torch.float64))


@torch.no_grad()
def log_likelihood(model: Any, context: Sequence[int], continuation: Sequence[int]) -> float:
    """Return transformers' log-likelihood of one continuation."""
    if model.config.is_encoder_decoder:
        encoder_ids, decoder_ids = (
            context,
            [model.config.decoder_start_token_id, *continuation[:-1]],
        )
        logits = model(
            torch.tensor([encoder_ids]), decoder_input_ids=torch.tensor([decoder_ids])
        ).logits[0]
    else:
        logits = model(torch.tensor([[*context, *continuation[:-1]]])).logits[0]
    logs = logits[-len(continuation) :].log_softmax(-1)
    return float(sum(logs[n, token] for n, token in enumerate(continuation)))


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("batch_size", [1, 3])
def test_bits_per_byte_match_single_windows(
    family: str,
    batch_size: int,
    pool_of: Callable[..., ModelPool[Any]],
    tasks_of: Callable[..., LanguageTasks],
) -> None:
    pool = pool_of(family)
    tasks = tasks_of(
        {"length": 7, "batch_size": batch_size}, perplexity={"test": [{"text": t} for t in TEXTS]}
    )
    model = pool.build(pool.reference, dtype=torch.float64)
    nats, bits, tokenizer = 0.0, [], own_tokenizer(pool)
    for text in TEXTS:
        before = nats
        tokens = [2, *tokenizer(text, add_special_tokens=False).input_ids]
        for start in range(0, len(tokens) - 1, 7):
            nats -= log_likelihood(model, tokens[start : start + 1], tokens[start + 1 : start + 8])
        bits.append((nats - before) / math.log(2) / len(text.encode()))
    expected = nats / math.log(2) / sum(len(text.encode()) for text in TEXTS)
    metrics = measure(tasks, pool, "perplexity")
    assert metrics == {"bits_per_byte": pytest.approx(expected, rel=1e-9)}
    assert metrics.outcomes == pytest.approx(bits, rel=1e-9)
    assert metrics.weights == tuple(len(text.encode()) for text in TEXTS)


def test_models_are_evaluated_in_the_chosen_dtype(
    pool_of: Callable[..., ModelPool[Any]],
    tasks_of: Callable[..., LanguageTasks],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pool, seen = pool_of("llama"), []
    build = type(pool).build
    monkeypatch.setattr(
        type(pool),
        "build",
        lambda *arguments, **options: seen.append(options["dtype"]) or build(*arguments, **options),
    )
    tasks = tasks_of({"dtype": "bfloat16"}, choice={"test": CHOICES})
    result = run_fusion(algorithm="simple-average", model_pool=pool, task_pool=tasks)
    assert set(seen) == {torch.bfloat16}
    assert result.report is not None


@pytest.mark.sampled(3)
@pytest.mark.parametrize("normalise", ["bytes", "tokens", "none"])
@pytest.mark.parametrize("family", sorted(POOLS))
def test_the_most_likely_choice_matches_a_direct_computation(
    family: str,
    normalise: str,
    pool_of: Callable[..., ModelPool[Any]],
    tasks_of: Callable[..., LanguageTasks],
) -> None:
    pool = pool_of(family)
    tasks = tasks_of({"batch_size": 5}, choice={"test": CHOICES, "normalise": normalise})
    model = pool.build(pool.reference, dtype=torch.float64)
    cut = own_tokenizer(pool)
    right = []
    for line in CHOICES:
        scores = []
        for answer in line["choices"]:
            context = cut(line["question"]).input_ids
            if family == "t5":
                follows = cut(answer, add_special_tokens=False).input_ids
            else:
                follows = cut(f"{line['question']} {answer}").input_ids[len(context) :]
            lengths = {"bytes": len(answer.encode()), "tokens": len(follows), "none": 1}
            scores.append(log_likelihood(model, context, follows) / lengths[normalise])
        right.append(scores.index(max(scores)) == line["answer"])
    metrics = measure(tasks, pool, "choice")
    assert metrics == {"accuracy": sum(right) / len(CHOICES)}
    assert metrics.outcomes == tuple(right)


@pytest.mark.parametrize("family", sorted(POOLS))
def test_generated_answers_match_single_prompts(
    family: str,
    pool_of: Callable[..., ModelPool[Any]],
    tasks_of: Callable[..., LanguageTasks],
) -> None:
    pool = pool_of(family)
    model: Any = pool.build(pool.reference, dtype=torch.float64)
    cut = own_tokenizer(pool)
    texts = []
    for line in ANSWERS:
        inputs = cut(line["prompt"], return_tensors="pt")
        output = model.generate(
            input_ids=inputs.input_ids,
            do_sample=False,
            max_new_tokens=6,
            eos_token_id=3,
            pad_token_id=0,
        )[0]
        start = 1 if family == "t5" else inputs.input_ids.shape[1]
        texts.append(cut.decode(output[start:], skip_special_tokens=True).strip())
    lines = [{**line, "answer": [text or "?"]} for line, text in zip(ANSWERS, texts, strict=True)]
    tasks = tasks_of({"batch_size": 3}, generate={"test": lines, "max_tokens": 6})
    empty = sum(not text for text in texts) / len(texts)
    metrics = measure(tasks, pool, "generate")
    assert metrics == {"exact_match": 1 - empty, "invalid": empty}
    assert metrics.outcomes == tuple(bool(text) for text in texts)


@pytest.mark.parametrize(("stop", "score"), [([], 0.0), (["<|end|>"], 1.0)])
def test_an_answer_ends_at_a_stop_text_that_is_a_special_token(
    stop: list[str],
    score: float,
    tiny: Any,
    tmp_path: Path,
    tasks_of: Callable[..., LanguageTasks],
) -> None:
    tokenizer = tiny.tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|end|>"]})
    (end,), first = tokenizer.encode("<|end|>"), tokenizer.encode("a")[0]
    base = tiny.save(tmp_path / "base", tiny.live("llama", 0, rows=len(tokenizer)), tokenizer)
    pool = CausalPool(LanguageConfig(base=base, models={"a": base}))
    line = {"prompt": "a", "answer": tokenizer.decode([first])}
    task = tasks_of(generate={"test": [line], "stop": stop, "max_tokens": 4}).bind(pool)["generate"]
    script = iter([first, end, first, first])

    def write_next(_: object, __: object, output: Any) -> None:
        output.logits[..., next(script)] = 1e9

    model = pool.build(pool.reference)
    model.register_forward_hook(write_next)
    assert task.evaluate(model)["exact_match"] == score
    for text in ("<|end|>a", "<|end|><|end|>"):
        with pytest.raises(RecipeError, match=r"stop: '<\|end\|>.* other text than one special"):
            tasks_of(generate={"test": [line], "stop": [text]}).bind(pool).check()


def test_a_model_that_computes_nan_has_no_score(
    pool_of: Callable[..., ModelPool[Any]], tasks_of: Callable[..., LanguageTasks]
) -> None:
    pool = pool_of("llama")
    tasks = tasks_of(choice={"test": CHOICES}, agreement={"test": ANSWERS}).bind(pool)
    model = pool.build(pool.reference)
    tasks["agreement"].evaluate(model)  # the teacher's answers are finite
    model.get_parameter("lm_head.weight").data.fill_(torch.nan)
    for kind in ("choice", "agreement"):
        metrics = tasks[kind].evaluate(model)
        assert math.isnan(next(iter(metrics.values())))
        assert all(map(math.isnan, metrics.outcomes))


def test_invalid_answers_are_counted_as_wrong(
    pool_of: Callable[..., ModelPool[Any]], tasks_of: Callable[..., LanguageTasks]
) -> None:
    pool = pool_of("llama")
    tasks = tasks_of(generate={"test": ANSWERS, "max_tokens": 4, "pattern": "[0-9]{9}"})
    assert measure(tasks, pool, "generate") == {"exact_match": 0.0, "invalid": 1.0}
    numbers = [{**line, "answer": n} for n, line in enumerate(ANSWERS)]
    tasks = tasks_of(generate={"test": numbers, "max_tokens": 4, "metric": "spearman"})
    assert measure(tasks, pool, "generate") == {"spearman": 0.0, "invalid": 1.0}


@pytest.mark.parametrize(
    ("options", "text", "expected"),
    [
        ({}, "  dog\n", "dog"),
        ({}, " \n", None),
        ({"pattern": r"#### (\d+)"}, "so 2 and\n#### 17, then", "17"),
        ({"pattern": r"\d+"}, "it is 17 or 18", "17"),
        ({"pattern": r"x(\d*)"}, "x", None),
        ({"metric": "spearman"}, "3.5", "3.5"),
        ({"metric": "spearman"}, "nan", None),
        ({"metric": "spearman"}, "three", None),
    ],
)
def test_answers_are_extracted_by_the_pattern(
    options: dict[str, Any],
    text: str,
    expected: str | None,
    tasks_of: Callable[..., LanguageTasks],
) -> None:
    task: Any = tasks_of(generate={"test": ANSWERS, **options})["generate"]
    assert task._extract(text) == expected  # noqa: SLF001 - what `evaluate` counts


def test_rank_correlations_match_scipy() -> None:
    drawn = torch.Generator().manual_seed(0)
    one, other = torch.randint(9, (2, 50), generator=drawn).tolist()
    assert rank_correlation(one, other) == pytest.approx(spearmanr(one, other).statistic, abs=1e-12)
    assert rank_correlation(one, [1.0] * 50) == 0.0
    assert math.isnan(rank_correlation(one, [1.0] * 49 + [float("nan")]))


# --- prompts ------------------------------------------------------------------------------------


def test_conversations_use_the_chat_template(
    tiny: Any, tmp_path: Path, tasks_of: Callable[..., LanguageTasks]
) -> None:
    tokenizer = tiny.tokenizer()
    tokenizer.chat_template = TEMPLATE
    path = tiny.save(tmp_path / "base", tiny.live("llama", 0), tokenizer)
    pool = CausalPool(LanguageConfig(base=path, models={"a": path}))
    few_shot = {"test": CHOICES, "train": CHOICES[2:], "shots": 1, "system": "be brief"}
    task: Any = tasks_of(choice=few_shot).bind(pool)["choice"]
    (question,) = task.questions(task.lines(Split.TEST)[:1])
    assert question == (
        "<system>be brief</s><user>the fox jumps over</s><assistant>ö</s>"
        "<user>the quick fox jumps over</s><a>"
    )
    plain: Any = tasks_of({"chat": False}, choice=few_shot).bind(pool)["choice"]
    (question,) = plain.questions(plain.lines(Split.TEST)[:1])
    assert question == "be brief\n\nthe fox jumps over ö\n\nthe quick fox jumps over"
    (pair,) = plain.bound_prompts.pairs([("the old fox  ", "dog")])
    parts = plain.bound_prompts.decode([pair.context, pair.continuation])
    assert parts == ["the old fox", "  dog"]


_M2M: dict[str, Any] = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "vocab_size": 90}
_FACTS: dict[str, Any] = {
    "is_seq2seq": False,
    "is_chat": False,
    "length": 64,
    "positions": 64,
    "ends": (3,),
    "digest": "",
}


def confine_tokenizer(tokenizer: Any, folder: Path) -> ConfinedTokenizer:
    """Save a tokenizer, and return it in a child process."""
    tokenizer.save_pretrained(folder)
    return ConfinedTokenizer.of({path.name: path for path in folder.iterdir()}, "tiny")


def test_a_long_question_loses_its_start(tiny: Any, tmp_path: Path) -> None:
    tokenizer = tiny.tokenizer()
    prompts = Prompts(confine_tokenizer(tokenizer, tmp_path), **{**_FACTS, "length": 8})
    (pair,) = prompts.pairs([(" ".join(TEXTS), "the dog")])
    whole = tokenizer(f"{' '.join(TEXTS)}".rstrip() + " the dog").input_ids
    assert [*pair.context, *pair.continuation] == whole[-8:]
    assert prompts.questions([[Turn("a", "b"), Turn("c")]]) == ["a b\n\nc"]


def test_an_example_is_spaced_like_the_question(tiny: Any, tmp_path: Path) -> None:
    prompts = Prompts(confine_tokenizer(tiny.tokenizer(), tmp_path), **_FACTS)
    shots = [Turn("a: ", "b"), Turn("a:\n", "b"), Turn("a:", "b"), Turn("c: ")]
    assert prompts.questions([shots]) == ["a: b\n\na:\nb\n\na: b\n\nc: "]


def test_a_decoder_continues_what_the_tokenizer_would_end(tiny: Any, tmp_path: Path) -> None:
    tokenizer = tiny.tokenizer()
    bos, eos = tokenizer.bos_token, tokenizer.eos_token
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A {eos}", special_tokens=[(bos, 2), (eos, 3)]
    )
    prompts = Prompts(confine_tokenizer(tokenizer, tmp_path), **_FACTS)
    plain = tokenizer("the fox", add_special_tokens=False).input_ids
    assert prompts.contexts(["the fox", ""]) == [[2, *plain], [2]]
    (pair,) = prompts.pairs([("the", "fox")])
    assert [*pair.context, *pair.continuation] == [2, *plain]
    assert replace(prompts, is_seq2seq=True).contexts(["the fox"]) == [[2, *plain, 3]]


@pytest.mark.parametrize(
    ("config", "positions"),
    [
        (M2M100Config(max_position_embeddings=64, **_M2M), 64),  # computes its table
        (XLNetConfig(d_model=16, n_layer=1, n_head=2), None),  # states -1
    ],
    ids=["sinusoids", "no number"],
)
def test_models_without_a_position_table_are_read(
    config: PreTrainedConfig, positions: int | None, tiny: Any, tmp_path: Path
) -> None:
    tiny.tokenizer().save_pretrained(tmp_path)
    config.save_pretrained(tmp_path)
    prompts = Prompts.of({path.name: path for path in tmp_path.iterdir()}, "tiny")
    assert prompts.positions == positions
    assert prompts.length == (positions or 2048)


def test_an_empty_question_is_the_start_token(tiny: Any, tmp_path: Path) -> None:
    prompts = Prompts(confine_tokenizer(tiny.tokenizer(), tmp_path), **_FACTS)
    assert prompts.contexts([""]) == [[2]]


def test_no_token_spans_question_and_answer(tiny: Any, tmp_path: Path) -> None:
    tokenizer = tiny.tokenizer()
    prompts = Prompts(confine_tokenizer(tokenizer, tmp_path), **{**_FACTS, "is_chat": True})
    (whole,) = tokenizer("the").input_ids  # one token, though "t" and "he" are two
    apart = [tokenizer(text).input_ids for text in ("t", "he")]
    pair, other = prompts.pairs([("t", "he"), ("the ", "dog")])
    assert [pair.context, pair.continuation] == apart
    assert [whole] not in apart
    assert [other.context, other.continuation] == [
        tokenizer(text).input_ids for text in ("the ", "dog")
    ]
    with pytest.raises(FusionError, match="no tokens"):
        prompts.pairs([("t", "")])


def test_a_missing_chat_template_is_reported(
    pool_of: Callable[..., ModelPool[Any]], tasks_of: Callable[..., LanguageTasks]
) -> None:
    with pytest.raises(RecipeError, match=r"task_pool\.chat: the models' tokenizer has no chat"):
        tasks_of({"chat": True}, choice={"test": CHOICES}).bind(pool_of("llama"))


def test_end_tokens_come_from_all_files(tiny: Any, tmp_path: Path) -> None:
    tiny.save(tmp_path / "base", tiny.live("llama", 0), tiny.tokenizer())
    (tmp_path / "base" / "generation_config.json").write_text('{"eos_token_id": [7, 3]}')
    files = {path.name: path for path in (tmp_path / "base").iterdir() if path.suffix == ".json"}
    assert Prompts.of(files, "base").ends == (7, 3)


# --- adaptation ---------------------------------------------------------------------------------


def test_answers_of_test_lines_are_hidden(
    pool_of: Callable[..., ModelPool[Any]], tasks_of: Callable[..., LanguageTasks]
) -> None:
    pool = pool_of("llama")
    tasks = tasks_of(choice={"test": CHOICES})
    assert tasks.transductive
    task = tasks.bind(pool)["choice"]
    seen = [task.batch(step, size=4, split=Split.UNLABELED, seed=0) for step in range(20)]
    questions = set(
        map(tuple, task.bound_prompts.contexts([choice["question"] for choice in CHOICES]))
    )
    assert {row for batch in seen for row in _texts(batch)} == questions
    assert all(batch.labels is None for batch in seen)


def test_unlabeled_lines_that_are_the_test_lines_are_hidden(
    tasks_of: Callable[..., LanguageTasks],
) -> None:
    lines = tasks_of(choice={"test": CHOICES, "unlabeled": CHOICES})
    data = lines.config.datasets["choice"]
    assert not lines.transductive
    same = {"kind": "choice", "test": data.test, "unlabeled": f"{data.test}/../choice-test.jsonl"}
    tasks: Any = LanguageTasks(LanguageTasksConfig(datasets={"choice": same}))
    assert tasks.transductive
    assert tasks["choice"].hides_answers
    assert not tasks.halves()[1].transductive


def test_answers_of_unlabeled_questions_are_text(
    pool_of: Callable[..., ModelPool[Any]], tasks_of: Callable[..., LanguageTasks]
) -> None:
    pool = pool_of("llama")
    without = [{"question": "a row of models"}]
    tasks = tasks_of(choice={"test": CHOICES, "unlabeled": [*CHOICES[:1], *without]})
    assert not tasks.transductive
    task = tasks.bind(pool)["choice"]
    (pair,) = task.bound_prompts.pairs([(CHOICES[0]["question"], "the lazy dog")])
    begun = {(*pair.context, *pair.continuation[:n]) for n in range(len(pair.continuation))}
    seen = {
        row
        for step in range(60)
        for row in _texts(task.batch(step, size=2, split=Split.UNLABELED, seed=0))
    }
    assert seen == begun | set(map(tuple, task.bound_prompts.contexts([without[0]["question"]])))


def test_labels_are_the_tokens_that_follow(
    pool_of: Callable[..., ModelPool[Any]], tasks_of: Callable[..., LanguageTasks]
) -> None:
    task = tasks_of(choice={"test": CHOICES}).bind(pool_of("llama"))["choice"]
    batch = task.batch(0, size=4, split=Split.TEST, seed=0)
    assert batch.labels is not None
    pairs = task.bound_prompts.pairs(
        [(line["question"], line["choices"][line["answer"]]) for line in CHOICES]
    )
    wholes = [(*pair.context, *pair.continuation) for pair in pairs]
    for row, label in zip(_texts(batch), batch.labels.tolist(), strict=True):
        assert any(whole[: len(row) + 1] == (*row, label) for whole in wholes)


def test_a_template_takes_parts_of_a_field(
    pool_of: Callable[..., ModelPool[Any]], tasks_of: Callable[..., LanguageTasks]
) -> None:
    rows = [
        {"messages": [{"role": "user", "content": row["question"]}], "answers": {"text": ["a"]}}
        for row in CHOICES
    ]
    plain = [{"prompt": row["question"], "answer": "a"} for row in CHOICES]
    parts = {"prompt": "{messages[0][content]}", "answer": "{answers[text][0]}"}
    pool = pool_of("llama")
    first, second = (
        tasks_of(generate=options).bind(pool)["generate"].load_examples(Split.TEST)
        for options in ({"test": rows, **parts}, {"test": plain})
    )
    assert first == second


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("{messages[3][content]}", "list index out of range"),
        ("{messages[0][text]}", "nothing at 'text'"),
        ("{messages[text]}", "list indices must be integers"),
    ],
)
def test_a_missing_part_of_a_field_is_an_error(prompt: str, message: str) -> None:
    line = Line("line 1", {"messages": [{"role": "user", "content": "a"}]})
    with pytest.raises(FusionError, match=f"line 1: cannot fill .*: {message}"):
        line.fill(prompt)


@pytest.mark.parametrize("template", ["{a.b}", "{a[0].b}", "{a[0}", "{a[]}", "{0}", "{a!r}"])
def test_templates_read_data_alone(template: str) -> None:
    with pytest.raises(ValidationError):
        TypeAdapter(Template).validate_python(template)


def test_halves_share_no_line(tasks_of: Callable[..., LanguageTasks]) -> None:
    task = tasks_of(choice={"test": CHOICES}).holdout()["choice"]
    seen, left = (task.lines(split) for split in (Split.UNLABELED, Split.TEST))
    assert sorted(line.location for line in [*seen, *left]) == sorted(
        line.location for line in tasks_of(choice={"test": CHOICES})["choice"].lines(Split.TEST)
    )


def test_halves_match_the_splits_of_holdout(
    tasks_of: Callable[..., LanguageTasks], pool_of: Callable[..., ModelPool[Any]]
) -> None:
    whole = tasks_of(choice={"test": CHOICES}).bind(pool_of("llama"))
    held_out = whole.holdout()["choice"]
    chosen, measured = (half["choice"] for half in whole.halves())
    assert chosen.lines(Split.TEST) == held_out.lines(Split.UNLABELED)
    assert measured.lines(Split.TEST) == held_out.lines(Split.TEST)
    assert chosen.lines(Split.UNLABELED) == measured.lines(Split.UNLABELED)
    assert chosen.identity() != measured.identity() != whole["choice"].identity()
    assert whole.halves()[0].measured_on == "a half of the test examples"


def _texts(batch: Batch) -> list[tuple[int, ...]]:
    rows = zip(
        batch.tensors["input_ids"].tolist(), batch.tensors["attention_mask"].sum(1), strict=True
    )
    return [tuple(row[:count]) for row, count in rows]


@pytest.mark.sampled(3)
@pytest.mark.parametrize("family", sorted(POOLS))
@pytest.mark.parametrize(
    "algorithm",
    [
        {"name": "adamerging", "steps": 2, "batch_size": 2},
        {"name": "adamerging", "steps": 2, "batch_size": 2, "objective": "teacher"},
        {"name": "regmean", "samples": 4},
        {"name": "fisher", "samples": 4},
        {"name": "symerge", "steps": 1, "batch_size": 2},
    ],
    ids=["entropy", "teacher", "regmean", "fisher", "symerge"],
)
@pytest.mark.plugins
def test_adaptive_methods_work_on_language_models(
    family: str,
    algorithm: dict[str, Any],
    models_of: Callable[..., dict[str, Any]],
    tasks_of: Callable[..., LanguageTasks],
) -> None:
    models = models_of(family, names=("choice", "generate"))
    tasks = tasks_of(choice={"test": CHOICES}, generate={"test": ANSWERS, "max_tokens": 3})
    pool = POOLS[family](LanguageConfig(**models))
    result = run_fusion(algorithm=algorithm, model_pool=pool, task_pool=tasks)
    assert set(result.report.tasks) == {"choice", "generate"}


# --- errors --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (
            '{"question": "a", "choices": ["b", "c"]}',
            r"line 1: missing field 'answer'; fields: question",
        ),
        (
            '{"question": "a", "choices": "bc", "answer": 0}',
            r"line 1: expected a list of at least two choices in 'choices', got 'bc'",
        ),
        (
            '{"question": "a", "choices": ["b", "c"], "answer": 2}',
            r"answer 2 matches none of the 2",
        ),
        (
            '{"question": "a", "choices": [2, 3, 4], "answer": 2}',
            r"answer 2 is the index of choice '4', and the text of another choice",
        ),
        (
            '{"question": "a", "choices": ["yes", "no"], "answer": true}',
            r"answer is true, which is neither the text nor the index of a choice",
        ),
        (
            '{"question": "a", "choices": ["b", "c"], "answer": "d"}',
            r"answer 'd' matches none",
        ),
        (
            '{"question": null, "choices": ["b", "c"], "answer": 0}',
            r"line 1: cannot fill '\{question\}': question is null",
        ),
        (
            '{"question": [{"role": "user", "content": "a"}], "choices": ["b", "c"], "answer": 0}',
            r"line 1: cannot fill '\{question\}': question is a list",
        ),
        (
            '{"question": {"text": "a"}, "choices": ["b", "c"], "answer": 0}',
            r"line 1: cannot fill '\{question\}': question is a mapping",
        ),
        (
            '{"question": "a", "choices": ["b", null], "answer": 0}',
            r"line 1: expected a list of at least two choices",
        ),
        (
            '{"question": "\\ud83d", "choices": ["b", "c"], "answer": 0}',
            r"line 1: invalid text: surrogates not allowed",
        ),
        ('\n{"question": "a"', r"line 2: invalid JSON"),
        ("[1]", r"line 1: expected a JSON object"),
        ("", r"contains no examples"),
    ],
)
def test_an_invalid_line_is_named(
    lines: str, message: str, tmp_path: Path, pool_of: Callable[..., ModelPool[Any]]
) -> None:
    path = tmp_path / "c.jsonl"
    path.write_text(lines)
    config: Any = {"datasets": {"c": {"kind": "choice", "test": str(path)}}}
    with pytest.raises(FusionError, match=message):
        measure(LanguageTasks(LanguageTasksConfig(**config)), pool_of("llama"), "c")


@pytest.mark.parametrize("kind", ["choice", "generate"])
def test_a_search_on_test_examples_sees_no_answers(
    kind: str, pool_of: Callable[..., ModelPool[Any]], tasks_of: Callable[..., LanguageTasks]
) -> None:
    batches = []
    for answer in (0, 1):
        lines = {
            "choice": [
                {"question": f"the {w}", "choices": ["fox", "dog"], "answer": answer}
                for w in ("old", "new")
            ],
            "generate": [
                {"prompt": f"the {w}", "answer": ["fox", "dog"][answer]} for w in ("old", "new")
            ],
        }[kind]
        more = {"max_tokens": 8} if kind == "generate" else {}
        tasks: Any = tasks_of(**{kind: {"test": lines, "unlabeled": lines, **more}})
        task = tasks.bind(pool_of("llama")).adaptive(kind).with_all_predictions()
        batches.append(task.batch(0, size=2, split=Split.TEST, seed=0).inputs["input_ids"])
    assert torch.equal(*batches)


def test_a_byte_order_mark_is_not_text(tmp_path: Path) -> None:
    for name, text in {"a.txt": "the fox", "a.jsonl": '{"text": "the fox"}'}.items():
        (tmp_path / name).write_text(text, encoding="utf-8-sig")
        (line,) = read_lines(str(tmp_path / name))
        assert line.fields == {"text": "the fox"}


def test_a_template_that_refuses_the_system_message_is_named_before_a_merge(
    tiny: Any, tmp_path: Path, tasks_of: Callable[..., LanguageTasks]
) -> None:
    tokenizer = tiny.tokenizer()
    tokenizer.chat_template = (
        "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
        + TEMPLATE
    )
    path = tiny.save(tmp_path / "base", tiny.live("llama", 0), tokenizer)
    pool = CausalPool(LanguageConfig(base=path, models={"a": path}))
    for kind, lines in {"choice": CHOICES, "agreement": [{"prompt": "the fox"}]}.items():
        tasks_of(**{kind: {"test": lines}}).bind(pool).check()
        tasks = tasks_of(**{kind: {"test": lines, "system": "be brief"}}).bind(pool)
        with pytest.raises(RecipeError, match=rf"task '{kind}': .*no system") as caught:
            tasks.check()
        assert f"task_pool.datasets.{kind}.system" in str(caught.value.hint)


def test_a_decoders_positions_hold_what_goes_before_an_answer(tiny: Any, tmp_path: Path) -> None:
    facts = {**_FACTS, "is_seq2seq": True, "length": 8, "positions": 8}
    prompts = Prompts(confine_tokenizer(tiny.tokenizer(), tmp_path), **facts)
    assert prompts.room_for_question(7, "max_tokens") == 8
    with pytest.raises(RecipeError, match=r"max_tokens: an answer of 8 tokens.* 8 positions"):
        prompts.room_for_question(8, "max_tokens")
    (windows,) = prompts.windows([" ".join(TEXTS)])
    assert max(len(pair.continuation) for pair in windows) == 7


def test_equal_choices_are_one_answer(
    pool_of: Callable[..., ModelPool[Any]], tasks_of: Callable[..., LanguageTasks]
) -> None:
    pool, line = pool_of("llama"), {"question": "the fox", "choices": ["dog", "dog"]}
    for answer in (0, 1):
        tasks = tasks_of(choice={"test": [{**line, "answer": answer}]})
        assert measure(tasks, pool, "choice") == {"accuracy": 1.0}


def test_shots_that_the_training_file_lacks_are_reported(
    pool_of: Callable[..., ModelPool[Any]], tasks_of: Callable[..., LanguageTasks]
) -> None:
    tasks = tasks_of(choice={"test": CHOICES, "train": CHOICES[:1], "shots": 2})
    with pytest.raises(FusionError, match=r"has 1 examples, expected 2 for its shots"):
        measure(tasks, pool_of("llama"), "choice")


def test_a_rank_correlation_needs_numbers(tasks_of: Callable[..., LanguageTasks]) -> None:
    line = {"prompt": "a", "answer": "3,5"}
    with pytest.raises(FusionError, match=r"line 1: expected a number as answer, got '3,5'"):
        tasks_of(generate={"test": [line], "metric": "spearman"}).check()


def test_texts_without_characters_are_reported(
    pool_of: Callable[..., ModelPool[Any]], tasks_of: Callable[..., LanguageTasks]
) -> None:
    with pytest.raises(FusionError, match=r"the texts of .* are empty"):
        measure(tasks_of(perplexity={"test": [{"text": ""}]}), pool_of("llama"), "perplexity")


@pytest.mark.parametrize(("max_tokens", "room"), [(8, 55), (60, 4), (63, 1)])
def test_a_question_has_the_positions_that_its_answer_leaves(
    max_tokens: int,
    room: int,
    pool_of: Callable[..., ModelPool[Any]],
    tasks_of: Callable[..., LanguageTasks],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lengths: list[int] = []

    def generate(_: object, contexts: Sequence[Sequence[int]], **__: object) -> list[str]:
        lengths.extend(map(len, contexts))
        return ["x"] * len(contexts)

    monkeypatch.setattr(TextGenerator, "generate", generate)
    line = {"prompt": "a " * 99, "answer": "b"}
    tasks = tasks_of({"length": 55}, generate={"test": [line], "max_tokens": max_tokens})
    measure(tasks, pool_of("gpt2"), "generate")
    assert lengths == [room]


def test_lengths_beyond_the_positions_are_reported(
    pool_of: Callable[..., ModelPool[Any]], tasks_of: Callable[..., LanguageTasks]
) -> None:
    pool = pool_of("gpt2")
    with pytest.raises(RecipeError, match=r"datasets\.generate\.max_tokens.* 64 positions"):
        tasks_of(generate={"test": ANSWERS, "max_tokens": 64}).bind(pool).check()
    with pytest.raises(RecipeError, match=r"task_pool\.length: 65 tokens"):
        tasks_of({"length": 65}, choice={"test": CHOICES}).bind(pool)
    long = {"question": "the", "choices": ["fox " * 70, "dog"], "answer": 1}
    with pytest.raises(FusionError, match=r"more than fit into the models' 64 positions"):
        measure(tasks_of(choice={"test": [long]}), pool, "choice")


@pytest.mark.parametrize("field", ["answer", "{answer}", "answers", "boolean"])
def test_null_and_booleans_are_not_answers(
    field: str, tasks_of: Callable[..., LanguageTasks]
) -> None:
    line = {"prompt": "a", "answer": None, "answers": ["b", None], "boolean": True}
    with pytest.raises(FusionError, match=r"line 1: (invalid (answer|bool)|.*answer is null)"):
        tasks_of(generate={"test": [line], "answer": field}).check()


def test_answers_are_names_or_their_numbers(tasks_of: Callable[..., LanguageTasks]) -> None:
    def answer(value: object) -> str:
        line = {"prompt": "a", "answer": value}
        task: Any = tasks_of(generate={"test": [line], "names": ["no", "1"]})["generate"]
        return str(task.answer(task.lines(Split.TEST)[0]))

    assert [answer(value) for value in (0, 1, "no", "1", ["no", 1])] == ["no", "1", "no", "1", "no"]
    for value in (2, "yes", True, ["no", "yes"]):
        with pytest.raises(FusionError, match="line 1: invalid answer") as refusal:
            answer(value)
        assert refusal.value.hint == "Give one of no, 1, or its number, from 0."


def test_file_types(tmp_path: Path, pool_of: Callable[..., ModelPool[Any]]) -> None:
    def checked(name: str) -> None:
        data = {"kind": "perplexity", "test": str(tmp_path / name)}
        LanguageTasks(LanguageTasksConfig(datasets={"t": data})).check()

    pq.write_table(pa.table({"text": TEXTS}), tmp_path / "t.parquet")
    (tmp_path / "t.txt").write_bytes(b"the fox\r\n")
    for name in ("t.parquet", "t.txt"):
        checked(name)
    assert [line["text"] for line in read_lines(str(tmp_path / "t.txt"))] == ["the fox\r\n"]
    (tmp_path / "t.csv").write_text("text\na\n")
    (tmp_path / "u.parquet").write_bytes(b"PAR1 no")
    (tmp_path / "u.txt").write_bytes(b"\xff\xfe\xff")
    with pytest.raises(FusionError, match=r"task 't': invalid parquet in .*u\.parquet"):
        checked("u.parquet")
    with pytest.raises(FusionError, match=r"expected UTF-8 text in .*u\.txt"):
        checked("u.txt")
    with pytest.raises(FusionError, match=r"task 't': its data cannot be read: .*gone\.jsonl"):
        checked("gone.jsonl")
    with pytest.raises(FusionError, match=r"unsupported file type of .*t\.csv"):
        checked("t.csv")


def test_unbound_tasks_are_refused(tasks_of: Callable[..., LanguageTasks]) -> None:
    with pytest.raises(RecipeError, match="its pool is not bound to models"):
        tasks_of(choice={"test": CHOICES})["choice"].batch(0, size=1, split=Split.TEST, seed=0)
    with pytest.raises(RecipeError, match=r"unknown task 'chioce'; did you mean choice"):
        tasks_of(choice={"test": CHOICES})["chioce"]
    with pytest.raises(RecipeError, match=r"has no train examples"):
        tasks_of(choice={"test": CHOICES})["choice"].lines(Split.TRAIN)


def test_tasks_are_the_same_wherever_a_command_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "inner").mkdir()
    file = tmp_path / "lines.jsonl"
    file.write_text('{"text": "one"}\n')
    seen = []
    for folder, name in ((tmp_path, "lines.jsonl"), (tmp_path / "inner", "../lines.jsonl")):
        monkeypatch.chdir(folder)
        paths = (name, str(file))
        seen += [(TextLines(test=path).identity(), identify_data([path])) for path in paths]
    assert seen == seen[:1] * 4
    assert seen[0][0]["test"] == str(file)
