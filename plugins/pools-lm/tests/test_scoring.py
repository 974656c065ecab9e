"""Scores at selected positions, and their gradients, are those of all positions."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from pools_lm.tasks.prompts import Pair
from pools_lm.tasks.scoring import log_likelihoods, next_token_scores, pad_rows

_ROWS = [[5, 6, 7, 8, 9], [10, 11], [12, 13, 14]]
_DECODERS = ["llama", "qwen2", "gpt2"]
_FORCED = "t5 that must begin with a token"


def _build(tiny: Any, family: str) -> Any:
    if family != _FORCED:
        return tiny.live(family, 0)
    model = tiny.live("t5", 0)
    model.generation_config.forced_bos_token_id = 17
    return model


def _starts(model: Any) -> list[int]:
    forced = model.generation_config.forced_bos_token_id
    return [model.config.decoder_start_token_id, *([forced] if forced else [])]


def _ignore_positions(model: Any) -> None:
    """Turn a model's class into one that computes the scores of all positions, as xLSTM's does."""
    forward = model.forward
    model.forward = lambda logits_to_keep=None, **inputs: forward(**inputs)


def _all_scores(model: Any, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """Return the next token's scores out of those of all positions."""
    if model.config.is_encoder_decoder:
        starts = torch.tensor([_starts(model)] * len(inputs["input_ids"]))
        return model(**inputs, decoder_input_ids=starts).logits[:, -1]
    logits = model(**inputs).logits
    return torch.stack([row[len(tokens) - 1] for row, tokens in zip(logits, _ROWS, strict=True)])


@pytest.mark.parametrize("ignores", [False, True], ids=["selects", "ignores"])
@pytest.mark.parametrize("family", [*_DECODERS, "t5", _FORCED])
def test_selected_positions_have_the_scores_and_the_gradient_of_all_positions(
    family: str, *, ignores: bool, tiny: Any
) -> None:
    model = _build(tiny, family)
    inputs, results, rows = pad_rows(_ROWS), [], []
    head = model.get_output_embeddings()
    for function in (_all_scores, next_token_scores):
        rows.clear()
        handle = head.register_forward_hook(
            lambda _, given, __: rows.append(given[0].flatten(0, -2).shape[0])
        )
        scores = function(model, inputs)
        handle.remove()
        scores.log_softmax(-1).square().sum().backward()
        gradients = [p.grad.clone() for p in model.parameters() if p.grad is not None]
        results.append([scores.detach(), *gradients])
        model.zero_grad()
        if ignores:
            _ignore_positions(model)
    for expected, selected in zip(*results, strict=True):
        torch.testing.assert_close(selected, expected, rtol=1e-4, atol=1e-5)
    if not ignores:
        positions = len(_starts(model)) if model.config.is_encoder_decoder else 1
        assert rows == [len(_ROWS) * positions], "the head multiplies one position per text"


@pytest.mark.parametrize("family", _DECODERS)
def test_log_likelihoods_do_not_depend_on_whether_the_model_selects_positions(
    family: str, tiny: Any
) -> None:
    model = tiny.live(family, 0)
    pairs = [Pair(row[:1], row[1:]) for row in _ROWS]
    selected = log_likelihoods(model, pairs, batch_size=3, label="")
    _ignore_positions(model)
    assert log_likelihoods(model, pairs, batch_size=3, label="") == pytest.approx(selected)


@pytest.mark.parametrize("family", [*_DECODERS, "t5", _FORCED])
def test_batches_change_neither_order_nor_values(family: str, tiny: Any) -> None:
    model = _build(tiny, family).double()
    lengths = [3, 9, 1, 5, 5, 2, 8, 4]
    rows = [[5 + (7 * row + n) % 60 for n in range(size)] for row, size in enumerate(lengths)]
    pairs = [Pair(row, [6 + len(row), 9][: 1 + len(row) % 2]) for row in rows]

    def measure(batch_size: int) -> list[float]:
        return log_likelihoods(model, pairs, batch_size=batch_size, label="")

    with torch.inference_mode():
        alone = [_compute_likelihood(model, pair) for pair in pairs]
    for batch_size in (1, 3, 8):
        assert measure(batch_size) == pytest.approx(alone, rel=1e-12)
    assert measure(3) == measure(3)


def _compute_likelihood(model: Any, pair: Pair) -> float:
    """Compute a likelihood from all scores of one text without padding."""
    answer = list(pair.continuation)
    if model.config.is_encoder_decoder:
        start = _starts(model)
        inputs = {"input_ids": [[*pair.context]], "decoder_input_ids": [[*start, *answer[:-1]]]}
    else:
        inputs = {"input_ids": [[*pair.context, *answer]]}
    logits = model(**{name: torch.tensor(ids) for name, ids in inputs.items()}).logits[0]
    first = len(start) if model.config.is_encoder_decoder else len(pair.context)
    logits = logits[first - 1 :][: len(answer)]
    logs = logits.log_softmax(dim=-1)
    return float(logs.gather(1, torch.tensor(answer)[:, None]).sum())
