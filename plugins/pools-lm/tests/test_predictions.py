"""Searches learn from every token of an answer that a pass computes anyway."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from fusion_adapting import Batches, ask_teachers
from fusion_core import Batch, Progress, Split
from fusion_testing import tiny_pool
from pools_lm.config import LanguageConfig
from pools_lm.pools import Seq2SeqPool
from pools_lm.tasks import task as module
from pools_lm.tasks.config import LanguageTasksConfig
from pools_lm.tasks.pool import LanguageTasks
from pools_lm.tasks.prompts import Pair
from pools_lm.tasks.scoring import pad_rows
from pools_lm.tasks.task import TokenTask

_PAIRS = [Pair([5, 6, 7], [8, 9]), Pair([10], [11]), Pair([12, 13], []), Pair([14], [15, 16, 17])]


class _Answers(TokenTask):
    """A task of questions, some with an answer."""

    name = "a"

    def read_examples(self, split: Split) -> list[Pair]:
        return _PAIRS

    def evaluate(self, _: object) -> dict[str, float]:
        return {}


def _task(*, is_seq2seq: bool = False) -> Any:
    prompts: Any = SimpleNamespace(is_seq2seq=is_seq2seq)
    return _Answers(prompts=prompts).with_all_predictions()


def _batch(task: Any, step: int = 0, size: int = 4) -> Batch:
    return task.batch(step, size=size, split=Split.UNLABELED, seed=0)


def _texts(batch: Batch) -> list[list[int]]:
    rows = zip(batch.tensors["input_ids"], batch.tensors["attention_mask"], strict=True)
    return [row[mask.bool()].tolist() for row, mask in rows]


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_pass_scores_all_tokens_as_one_pass_per_token_does(family: str, tiny: Any) -> None:
    model, task = tiny.live(family, 0), _task()
    batch = _batch(task)
    order = [
        next(p for p in _PAIRS if p.context == text[: len(p.context)]) for text in _texts(batch)
    ]
    starts = [
        [*pair.context, *pair.continuation[:n]]
        for pair in order
        for n in range(max(1, len(pair.continuation)))
    ]
    expected = task.logits(model, Batch(pad_rows(starts)))
    torch.testing.assert_close(task.logits(model, batch), expected, rtol=1e-4, atol=1e-5)
    assert batch.count_predictions() == [max(1, len(pair.continuation)) for pair in order]


def test_many_texts_have_fewer_predictions_each_the_same_in_every_step(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "_PREDICTIONS", 8)
    marked: dict[str, set[str]] = {}
    for step in range(12):
        batch = _batch(_task(), step, size=2)
        for text, marks in zip(_texts(batch), batch.tensors["predicted"], strict=True):
            marked.setdefault(str(text), set()).add(str(marks.nonzero().tolist()))
        assert max(batch.count_predictions()) <= 2
    assert len(marked) == len(_PAIRS)
    assert all(len(marks) == 1 for marks in marked.values())


def test_an_expert_predicts_every_token_once(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    expert, asked = tiny.live("llama", 1), []
    monkeypatch.setattr("fusion_adapting._teachers.build_live", lambda *_: expert)
    task, batches = _task(), Batches(2, 0)
    task.logits = lambda model, batch: (
        asked.append(scores := _Answers.logits(task, model, batch)) or scores
    )
    cpu: dict[str, Any] = {"device": torch.device("cpu"), "progress": Progress()}
    predictions = ask_teachers(tiny_pool("mlp"), [task], batches, 6, temperature=0.01, **cpu)["a"]
    assert sum(map(len, asked)) == 7
    for step in range(6):
        scores = _Answers.logits(task, expert, batches.of(task, step)).detach()
        assert float(predictions.disagreement(step, scores / 0.01)) < 1e-6
        assert float(predictions.disagreement(step, scores.flip(0) / 0.01)) > 1e-3


def test_an_encoder_decoder_predicts_every_token_of_its_answers(tiny: Any) -> None:
    model, task = tiny.live("t5", 0), _task(is_seq2seq=True)
    batch = _batch(task)
    order = [next(p for p in _PAIRS if list(p.context) == text) for text in _texts(batch)]
    assert batch.count_predictions() == [max(1, len(pair.continuation)) for pair in order]
    scores = task.logits(model, batch).split(batch.count_predictions())
    for pair, rows in zip(order, scores, strict=True):
        decoder = torch.tensor([[model.config.decoder_start_token_id, *pair.continuation[:-1]]])
        inputs = torch.tensor([pair.context])
        expected = model(input_ids=inputs, decoder_input_ids=decoder).logits[0]
        torch.testing.assert_close(rows, expected[: len(rows)], rtol=1e-4, atol=1e-5)
    assert (
        task.logits(model, Batch.joined([_batch(task, 1, 1), _batch(task, 2, 3)])).isfinite().all()
    )


def test_experts_of_an_encoder_decoder_answer_its_prompts(models_of: Any, tmp_path: Any) -> None:
    path = tmp_path / "asked.jsonl"
    path.write_text("".join(f'{{"prompt": "{word}", "answer": "a"}}\n' for word in "abc"))
    pool = Seq2SeqPool(LanguageConfig(**models_of("t5", "seq2seq-lm")))
    options: Any = {"kind": "generate", "test": str(path)}
    config = LanguageTasksConfig(datasets={"a": options}, answer_tokens=3)
    task: Any = LanguageTasks(config).bind(pool)["a"]
    answers = [len(pair.continuation) for pair in task.load_examples(Split.UNLABELED)]
    assert all(1 <= count <= 3 for count in answers)
    assert sum(_batch(task.with_all_predictions(), size=3).count_predictions()) == sum(answers)
