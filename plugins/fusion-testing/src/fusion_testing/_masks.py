"""Checks of texts: the mask marks padding and nothing else, and texts keep their last token."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest

from fusion_core.contracts.batch import ATTENTION_MASK, Batch
from fusion_core.contracts.task_pool import TaskPool
from fusion_testing._component import ComponentSuite
from fusion_testing._examples import SIZE, adaptive_tasks, every_split, read, read_all
from fusion_testing._suite import fail

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

_IDS = "input_ids"
_TOKENIZER = "tokenizer.json"
#: The share of texts that make something the rule, and the share that make it an exception.
_RULE, _EXCEPTION = 0.9, 0.1


class MaskChecks(ComponentSuite):
    """What batches of texts keep; a part of `TaskPoolSuite`."""

    def test_the_mask_marks_padding_and_nothing_else(self, pool: TaskPool[Any]) -> None:
        """Masks hold 1 at every token and 0 at every position of padding."""
        looked_at = False
        for task, split in every_split(pool):
            batch = read(task, split).batch
            if batch.mask is None:
                continue
            looked_at = True
            _check_mask(f"{task.name}: {split} batches", batch.mask, len(batch))
            if _IDS in batch.tensors:
                _check_padding(f"{task.name}: {split} batches", batch.tensors[_IDS], batch.mask)
        if not looked_at:
            pytest.skip(f"no batch has an {ATTENTION_MASK}")

    def test_every_split_ends_texts_alike(self, pool: TaskPool[Any]) -> None:
        """A token that ends the texts of one split ends those of the others, too."""
        looked_at = False
        for task in adaptive_tasks(pool):
            splits = read_all(task)
            if any(_IDS not in examples.batch.tensors for examples in splits.values()):
                continue
            looked_at = True
            ends = {split: Counter(_last_ids(each.batch)) for split, each in splits.items()}
            for split, counts in ends.items():
                token, count = counts.most_common(1)[0]
                for other, others in ends.items():
                    is_rule = count >= _RULE * counts.total() and counts.total() >= SIZE
                    if is_rule and others[token] <= _EXCEPTION * others.total():
                        fail(
                            f"{task.name}: {split} texts end with token {token}, {other} texts do "
                            "not.",
                            "Encode all splits in the same way, and cut no last token off.",
                        )
        if not looked_at:
            pytest.skip(f"no batch has {_IDS}")

    def test_texts_keep_the_token_that_ends_them(
        self, pool: TaskPool[Any], request: pytest.FixtureRequest
    ) -> None:
        """Where the models' tokenizer ends texts with a special token, batches hold it."""
        tokenizer = _tokenizer_of(pool, request)
        for task, split in every_split(pool):
            batch = read(task, split).batch
            if _IDS not in batch.tensors:
                continue
            texts = [_visible_ids(batch, row) for row in range(min(len(batch), 64))]
            lost = [text for text in texts if _lacks_its_end(text, tokenizer)]
            if len(lost) >= _RULE * len(texts):
                fail(
                    f"{task.name}: {split} texts lack the special token with which the models' "
                    "tokenizer ends a text.",
                    "Keep the tokenizer's last token: truncate with the tokenizer, not by slicing.",
                )


def _check_mask(where: str, mask: Tensor, size: int) -> None:
    if mask.dim() != 2 or len(mask) != size:  # noqa: PLR2004 - (examples, length)
        fail(
            f"{where} have an {ATTENTION_MASK} of shape {list(mask.shape)}.",
            "Its shape is (examples, length).",
        )
    if not ((mask == 0) | (mask == 1)).all():
        fail(
            f"{where} have an {ATTENTION_MASK} with other values than 0 and 1.", "Use 1 for tokens."
        )
    if not mask.bool().any(1).all():
        fail(
            f"{where} have an example of which the {ATTENTION_MASK} hides everything.",
            "Leave it out.",
        )


def _check_padding(where: str, ids: Tensor, mask: Tensor) -> None:
    if ids.shape != mask.shape:
        fail(
            f"{where} have {_IDS} of shape {list(ids.shape)} and an {ATTENTION_MASK} of shape "
            f"{list(mask.shape)}.",
            "Both have the shape (examples, length).",
        )
    seen, hidden = (set(ids[part].tolist()) for part in (mask.bool(), ~mask.bool()))
    if len(ids) > 1 and len(seen) == 1 and len(hidden) > 1:
        fail(f"the {ATTENTION_MASK} of {where} is inverted.", "It is 1 at tokens and 0 at padding.")
    if len(hidden) > 1:
        fail(
            f"the {ATTENTION_MASK} of {where} hides tokens that are not padding: {sorted(hidden)[:4]}.",
            "It is 1 at every token, the last one included, and 0 at padding only.",
        )
    if not hidden and (token := _padding_in(ids)) is not None:
        fail(
            f"the {ATTENTION_MASK} of {where} is 1 everywhere, and token {token} fills up the shorter texts.",
            "Take the mask from the tokenizer: 0 at padding.",
        )


def _padding_in(ids: Tensor) -> int | None:
    """Return the token that fills up rows to one length; None if there is none."""
    for turned in (ids, ids.flip(1)):
        last = turned[:, -1:]
        lengths = (turned == last).flip(1).long().cumprod(1).sum(1)
        runs = Counter(last[:, 0][lengths > 1].tolist())
        if not runs:
            continue
        token, count = runs.most_common(1)[0]
        own = lengths[(last[:, 0] == token) & (lengths > 1)]
        if count >= max(2, len(ids) / 4) and len(set(own.tolist())) > 1:
            return int(token)
    return None


def _visible_ids(batch: Batch, row: int) -> list[int]:
    ids = batch.tensors[_IDS][row]
    visible = ids if batch.mask is None else ids[batch.mask[row].bool()]
    return [int(token) for token in visible]


def _last_ids(batch: Batch) -> list[int]:
    rows = (_visible_ids(batch, row) for row in range(len(batch)))
    return [ids[-1] for ids in rows if ids]


def _tokenizer_of(pool: TaskPool[Any], request: pytest.FixtureRequest) -> Any:  # noqa: ANN401
    """Return the tokenizer beside the models; skips the check where there is none."""
    if type(pool).bind is TaskPool.bind:
        pytest.skip("the pool does not read the models' tokenizer: it has no `bind`")
    library = pytest.importorskip("tokenizers", reason="the library tokenizers is not installed")
    file = request.getfixturevalue("models").assets().get(_TOKENIZER)
    if file is None:
        pytest.skip(f"the models have no {_TOKENIZER}")
    content = file if isinstance(file, bytes) else file.read_bytes()
    return library.Tokenizer.from_buffer(content)


def _lacks_its_end(ids: Sequence[int], tokenizer: Any) -> bool:  # noqa: ANN401
    """Tell whether the tokenizer would put one more token, a special one, behind a text."""
    special = tokenizer.get_added_tokens_decoder()
    again = tokenizer.encode(tokenizer.decode(list(ids), skip_special_tokens=True)).ids
    return again[:-1] == list(ids) and again[-1] in special
