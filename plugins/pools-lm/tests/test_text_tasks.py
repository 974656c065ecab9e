"""Tasks on texts, held against transformers one text at a time, without padding."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from scipy.stats import spearmanr
from transformers import AutoTokenizer

from fusion_core import Batch, Split, run_fusion
from fusion_core.errors import FusionError, RecipeError
from pools_lm.config import LanguageConfig
from pools_lm.confined.tokenizer import ConfinedTokenizer
from pools_lm.pools import CausalPool, Seq2SeqPool
from pools_lm.tasks.config import LanguageTasksConfig
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
    """Make tasks called like their kinds, of lines, with options that all tasks or a pool has."""

    def make(options: dict[str, Any] | None = None, **kinds: dict[str, Any]) -> LanguageTasks:
        datasets = {}
        for kind, each in kinds.items():
            data = {"kind": kind, **each}
            for split in set(Split) & data.keys():
                path = tmp_path / f"{kind}-{split}.jsonl"
                path.write_text("\n".join(map(json.dumps, data[split])), encoding="utf-8")
                data[split] = str(path)
            datasets[kind] = data
        return LanguageTasks(LanguageTasksConfig(datasets=datasets, **(options or {})))

    return make


def own_tokenizer(pool: ModelPool[Any]) -> Any:
    """Return the base's tokenizer as transformers has it, in this process."""
    return AutoTokenizer.from_pretrained(pool.reference.describe())


def measured(tasks: LanguageTasks, pool: ModelPool[Any], name: str) -> Any:
    bound = tasks.bind(pool)
    return bound[name].evaluate(pool.build(pool.reference, dtype=torch.float64))


@torch.no_grad()
def log_likelihood(model: Any, context: Sequence[int], continuation: Sequence[int]) -> float:
    """Return what transformers says of one continuation alone."""
    if model.config.is_encoder_decoder:
        given, begun = context, [model.config.decoder_start_token_id, *continuation[:-1]]
        logits = model(torch.tensor([given]), decoder_input_ids=torch.tensor([begun])).logits[0]
    else:
        logits = model(torch.tensor([[*context, *continuation[:-1]]])).logits[0]
    logs = logits[-len(continuation) :].log_softmax(-1)
    return float(sum(logs[n, token] for n, token in enumerate(continuation)))


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("batch_size", [1, 3])
def test_bits_per_byte_are_those_of_one_window_at_a_time(
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
    nats, bits, own = 0.0, [], own_tokenizer(pool)
    for text in TEXTS:
        before = nats
        tokens = [2, *own(text, add_special_tokens=False).input_ids]
        for start in range(0, len(tokens) - 1, 7):
            nats -= log_likelihood(model, tokens[start : start + 1], tokens[start + 1 : start + 8])
        bits.append((nats - before) / math.log(2) / len(text.encode()))
    expected = nats / math.log(2) / sum(len(text.encode()) for text in TEXTS)
    found = measured(tasks, pool, "perplexity")
    assert found == {"bits_per_byte": pytest.approx(expected, rel=1e-9)}
    assert found.outcomes == pytest.approx(bits, rel=1e-9)
    assert found.weights == tuple(len(text.encode()) for text in TEXTS)


def test_models_are_measured_in_the_dtype_asked_for(
    pool_of: Callable[..., ModelPool[Any]],
    tasks_of: Callable[..., LanguageTasks],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pool, seen = pool_of("llama"), []
    build = type(pool).build
    monkeypatch.setattr(
        type(pool), "build", lambda *given, **how: seen.append(how["dtype"]) or build(*given, **how)
    )
    tasks = tasks_of({"dtype": "bfloat16"}, choice={"test": CHOICES})
    result = run_fusion(algorithm="simple-average", model_pool=pool, task_pool=tasks)
    assert set(seen) == {torch.bfloat16}
    assert result.report is not None


@pytest.mark.parametrize("normalise", ["bytes", "tokens", "none"])
@pytest.mark.parametrize("family", sorted(POOLS))
def test_the_likeliest_answer_is_found_as_by_hand(
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
    found = measured(tasks, pool, "choice")
    assert found == {"accuracy": sum(right) / len(CHOICES)}
    assert found.outcomes == tuple(right)


@pytest.mark.parametrize("family", sorted(POOLS))
def test_answers_are_what_a_model_writes_alone(
    family: str,
    pool_of: Callable[..., ModelPool[Any]],
    tasks_of: Callable[..., LanguageTasks],
) -> None:
    pool = pool_of(family)
    model: Any = pool.build(pool.reference, dtype=torch.float64)
    cut = own_tokenizer(pool)
    said = []
    for line in ANSWERS:
        given = cut(line["prompt"], return_tensors="pt")
        made = model.generate(
            input_ids=given.input_ids,
            do_sample=False,
            max_new_tokens=6,
            eos_token_id=3,
            pad_token_id=0,
        )[0]
        begun = 1 if family == "t5" else given.input_ids.shape[1]
        said.append(cut.decode(made[begun:], skip_special_tokens=True).strip())
    lines = [{**line, "answer": [each or "?"]} for line, each in zip(ANSWERS, said, strict=True)]
    tasks = tasks_of({"batch_size": 3}, generate={"test": lines, "max_tokens": 6})
    empty = sum(not each for each in said) / len(said)
    found = measured(tasks, pool, "generate")
    assert found == {"exact_match": 1 - empty, "invalid": empty}
    assert found.outcomes == tuple(bool(each) for each in said)


def test_invalid_answers_are_counted_and_are_wrong(
    pool_of: Callable[..., ModelPool[Any]], tasks_of: Callable[..., LanguageTasks]
) -> None:
    pool = pool_of("llama")
    tasks = tasks_of(generate={"test": ANSWERS, "max_tokens": 4, "pattern": "[0-9]{9}"})
    assert measured(tasks, pool, "generate") == {"exact_match": 0.0, "invalid": 1.0}
    numbers = [{**each, "answer": n} for n, each in enumerate(ANSWERS)]
    tasks = tasks_of(generate={"test": numbers, "max_tokens": 4, "metric": "spearman"})
    assert measured(tasks, pool, "generate") == {"spearman": 0.0, "invalid": 1.0}


@pytest.mark.parametrize(
    ("options", "said", "expected"),
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
def test_an_answer_is_read_by_the_pattern(
    options: dict[str, Any],
    said: str,
    expected: str | None,
    tasks_of: Callable[..., LanguageTasks],
) -> None:
    task: Any = tasks_of(generate={"test": ANSWERS, **options})["generate"]
    assert task._read(said) == expected  # noqa: SLF001 - what `evaluate` counts


def test_ranks_are_scipys() -> None:
    drawn = torch.Generator().manual_seed(0)
    one, other = torch.randint(9, (2, 50), generator=drawn).tolist()
    assert rank_correlation(one, other) == pytest.approx(spearmanr(one, other).statistic, abs=1e-12)
    assert rank_correlation(one, [1.0] * 50) == 0.0


# --- prompts ------------------------------------------------------------------------------------


def test_conversations_go_through_the_template(
    tiny: Any, tmp_path: Path, tasks_of: Callable[..., LanguageTasks]
) -> None:
    own = tiny.tokenizer()
    own.chat_template = TEMPLATE
    path = tiny.save(tmp_path / "base", tiny.live("llama", 0), own)
    pool = CausalPool(LanguageConfig(base=path, models={"a": path}))
    shown = {"test": CHOICES, "train": CHOICES[2:], "shots": 1, "system": "be brief"}
    task: Any = tasks_of(choice=shown).bind(pool)["choice"]
    (question,) = task.questions(task.lines(Split.TEST)[:1])
    assert question == (
        "<system>be brief</s><user>the fox jumps over</s><assistant>ö</s>"
        "<user>the quick fox jumps over</s><a>"
    )
    plain: Any = tasks_of({"chat": False}, choice=shown).bind(pool)["choice"]
    (question,) = plain.questions(plain.lines(Split.TEST)[:1])
    assert question == "be brief\n\nthe fox jumps over ö\n\nthe quick fox jumps over"
    (pair,) = plain.bound.pairs([("the old fox  ", "dog")])
    said = plain.bound.said([pair.context, pair.continuation])
    assert said == ["the old fox", "  dog"]


def confined(tokenizer: Any, folder: Path) -> ConfinedTokenizer:
    """Return a tokenizer as prompts have it."""
    tokenizer.save_pretrained(folder)
    return ConfinedTokenizer.of({path.name: path for path in folder.iterdir()}, "tiny")


def test_a_long_question_loses_its_beginning(tiny: Any, tmp_path: Path) -> None:
    own = tiny.tokenizer()
    how: Any = {"is_seq2seq": False, "is_chat": False, "length": 8, "ends": (3,), "digest": ""}
    prompts = Prompts(confined(own, tmp_path), **how)
    (pair,) = prompts.pairs([(" ".join(TEXTS), "the dog")])
    whole = own(f"{' '.join(TEXTS)}".rstrip() + " the dog").input_ids
    assert [*pair.context, *pair.continuation] == whole[-8:]
    assert prompts.questions([[Turn("a", "b"), Turn("c")]]) == ["a b\n\nc"]


def test_a_token_of_question_and_answer_is_of_neither(tiny: Any, tmp_path: Path) -> None:
    own = tiny.tokenizer()
    how: Any = {"is_seq2seq": False, "is_chat": True, "length": 64, "ends": (3,), "digest": ""}
    prompts = Prompts(confined(own, tmp_path), **how)
    (whole,) = own("the").input_ids  # one token, though "t" and "he" are two
    apart = [own(text).input_ids for text in ("t", "he")]
    pair, other = prompts.pairs([("t", "he"), ("the ", "dog")])
    assert [pair.context, pair.continuation] == apart
    assert [whole] not in apart
    assert [other.context, other.continuation] == [own(text).input_ids for text in ("the ", "dog")]
    with pytest.raises(FusionError, match="no tokens"):
        prompts.pairs([("t", "")])


def test_a_chat_template_that_is_not_there_is_named(
    pool_of: Callable[..., ModelPool[Any]], tasks_of: Callable[..., LanguageTasks]
) -> None:
    with pytest.raises(RecipeError, match=r"task_pool\.chat: the models' tokenizer has no chat"):
        tasks_of({"chat": True}, choice={"test": CHOICES}).bind(pool_of("llama"))


def test_answers_end_by_what_any_file_says(tiny: Any, tmp_path: Path) -> None:
    tiny.save(tmp_path / "base", tiny.live("llama", 0), tiny.tokenizer())
    (tmp_path / "base" / "generation_config.json").write_text('{"eos_token_id": [7, 3]}')
    files = {path.name: path for path in (tmp_path / "base").iterdir() if path.suffix == ".json"}
    assert Prompts.of(files, "base").ends == (7, 3)


# --- what adapting sees -------------------------------------------------------------------------


def test_answers_of_test_lines_are_hidden(
    pool_of: Callable[..., ModelPool[Any]], tasks_of: Callable[..., LanguageTasks]
) -> None:
    pool = pool_of("llama")
    tasks = tasks_of(choice={"test": CHOICES})
    assert tasks.transductive
    task = tasks.bind(pool)["choice"]
    seen = [task.batch(step, size=4, split=Split.UNLABELED, seed=0) for step in range(20)]
    questions = set(map(tuple, task.bound.contexts([each["question"] for each in CHOICES])))
    assert {row for batch in seen for row in _texts(batch)} == questions
    assert all(batch.labels is None for batch in seen)


def test_answers_beside_unlabeled_questions_are_text(
    pool_of: Callable[..., ModelPool[Any]], tasks_of: Callable[..., LanguageTasks]
) -> None:
    pool = pool_of("llama")
    without = [{"question": "a row of models"}]
    tasks = tasks_of(choice={"test": CHOICES, "unlabeled": [*CHOICES[:1], *without]})
    assert not tasks.transductive
    task = tasks.bind(pool)["choice"]
    (pair,) = task.bound.pairs([(CHOICES[0]["question"], "the lazy dog")])
    begun = {(*pair.context, *pair.continuation[:n]) for n in range(len(pair.continuation))}
    seen = {
        row
        for step in range(60)
        for row in _texts(task.batch(step, size=2, split=Split.UNLABELED, seed=0))
    }
    assert seen == begun | set(map(tuple, task.bound.contexts([without[0]["question"]])))


def test_labels_are_the_tokens_that_follow(
    pool_of: Callable[..., ModelPool[Any]], tasks_of: Callable[..., LanguageTasks]
) -> None:
    task = tasks_of(choice={"test": CHOICES}).bind(pool_of("llama"))["choice"]
    batch = task.batch(0, size=4, split=Split.TEST, seed=0)
    assert batch.labels is not None
    pairs = task.bound.pairs([(e["question"], e["choices"][e["answer"]]) for e in CHOICES])
    wholes = [(*pair.context, *pair.continuation) for pair in pairs]
    for row, label in zip(_texts(batch), batch.labels.tolist(), strict=True):
        assert any(whole[: len(row) + 1] == (*row, label) for whole in wholes)


def test_halves_share_no_line(tasks_of: Callable[..., LanguageTasks]) -> None:
    task = tasks_of(choice={"test": CHOICES}).holdout()["choice"]
    seen, left = (task.lines(split) for split in (Split.UNLABELED, Split.TEST))
    assert sorted(each.place for each in [*seen, *left]) == sorted(
        line.place for line in tasks_of(choice={"test": CHOICES})["choice"].lines(Split.TEST)
    )


def test_options_are_chosen_on_the_half_that_holdout_leaves_unlabeled(
    tasks_of: Callable[..., LanguageTasks], pool_of: Callable[..., ModelPool[Any]]
) -> None:
    whole = tasks_of(choice={"test": CHOICES}).bind(pool_of("llama"))
    held = whole.holdout()["choice"]
    chosen, measured = (half["choice"] for half in whole.halves())
    assert chosen.lines(Split.TEST) == held.lines(Split.UNLABELED)
    assert measured.lines(Split.TEST) == held.lines(Split.TEST)
    assert chosen.lines(Split.UNLABELED) == measured.lines(Split.UNLABELED)
    assert chosen.identity() != measured.identity() != whole["choice"].identity()
    assert whole.halves()[0].measured_on == "a half of the test examples"


def _texts(batch: Batch) -> list[tuple[int, ...]]:
    rows = zip(
        batch.tensors["input_ids"].tolist(), batch.tensors["attention_mask"].sum(1), strict=True
    )
    return [tuple(row[:count]) for row, count in rows]


@pytest.mark.parametrize("family", sorted(POOLS))
@pytest.mark.parametrize(
    "algorithm",
    [
        {"name": "adamerging", "steps": 2, "batch_size": 2},
        {"name": "adamerging", "steps": 2, "batch_size": 2, "objective": "teacher"},
        {"name": "regmean", "samples": 4},
        {"name": "fisher", "samples": 4},
    ],
    ids=["entropy", "teacher", "regmean", "fisher"],
)
@pytest.mark.plugins
def test_methods_that_use_data_work_on_language_models(
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


# --- what is wrong ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (
            '{"question": "a", "choices": ["b", "c"]}',
            r"line 1 has no field 'answer', only question",
        ),
        ('{"question": "a", "choices": "bc", "answer": 0}', r"line 1: 'choices' does not list two"),
        (
            '{"question": "a", "choices": ["b", "c"], "answer": 2}',
            r"answer is 2, which is none of its 2",
        ),
        (
            '{"question": "a", "choices": ["b", "c"], "answer": "d"}',
            r"answer is 'd', which is none",
        ),
        ('\n{"question": "a"', r"line 2 is not JSON"),
        ("[1]", r"line 1 is not an object"),
        ("", r"holds no examples"),
    ],
)
def test_a_line_that_will_not_do_is_named(
    lines: str, said: str, tmp_path: Path, pool_of: Callable[..., ModelPool[Any]]
) -> None:
    path = tmp_path / "c.jsonl"
    path.write_text(lines)
    config: Any = {"datasets": {"c": {"kind": "choice", "test": str(path)}}}
    with pytest.raises(FusionError, match=said):
        measured(LanguageTasks(LanguageTasksConfig(**config)), pool_of("llama"), "c")


def test_files_of_other_kinds(tmp_path: Path, pool_of: Callable[..., ModelPool[Any]]) -> None:
    def checked(name: str) -> None:
        data = {"kind": "perplexity", "test": str(tmp_path / name)}
        LanguageTasks(LanguageTasksConfig(datasets={"t": data})).check()

    pq.write_table(pa.table({"text": TEXTS}), tmp_path / "t.parquet")
    (tmp_path / "t.txt").write_text(TEXTS[0])
    for name in ("t.parquet", "t.txt"):
        checked(name)
    (tmp_path / "t.csv").write_text("text\na\n")
    (tmp_path / "u.parquet").write_bytes(b"PAR1 no")
    (tmp_path / "u.txt").write_bytes(b"\xff\xfe\xff")
    with pytest.raises(FusionError, match=r"task 't': .*u\.parquet is not readable parquet"):
        checked("u.parquet")
    with pytest.raises(FusionError, match=r"u\.txt is not UTF-8"):
        checked("u.txt")
    with pytest.raises(FusionError, match=r"task 't': its data cannot be read: .*gone\.jsonl"):
        checked("gone.jsonl")
    with pytest.raises(FusionError, match=r"t\.csv is neither JSON lines"):
        checked("t.csv")


def test_tasks_that_know_no_models_say_so(tasks_of: Callable[..., LanguageTasks]) -> None:
    with pytest.raises(RecipeError, match="its pool is bound to no models"):
        tasks_of(choice={"test": CHOICES})["choice"].batch(0, size=1, split=Split.TEST, seed=0)
    with pytest.raises(RecipeError, match=r"unknown task 'chioce'; did you mean choice"):
        tasks_of(choice={"test": CHOICES})["chioce"]
    with pytest.raises(RecipeError, match=r"has no train examples"):
        tasks_of(choice={"test": CHOICES})["choice"].lines(Split.TRAIN)
