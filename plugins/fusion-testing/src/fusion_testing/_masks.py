"""Checks of texts: masks hide only padding, and texts keep their last token."""

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
#: Share of texts from which a token is the usual end, and up to which it is an exception.
_RULE, _EXCEPTION = 0.9, 0.1


class MaskChecks(ComponentSuite):
    """Checks of batches of texts; part of `TaskPoolSuite`."""

    def test_the_mask_marks_padding_and_nothing_else(self, pool: TaskPool[Any]) -> None:
        """Masks are 1 at every token and 0 at every padding position."""
        has_masks = False
        for task, split in every_split(pool):
            batch = read(task, split).batch
            if batch.mask is None:
                continue
            has_masks = True
            _check_mask(f"{task.name}: {split} batches", batch.mask, len(batch))
            if _IDS in batch.tensors:
                _check_padding(f"{task.name}: {split} batches", batch.tensors[_IDS], batch.mask)
        if not has_masks:
            pytest.skip(f"no batch has an {ATTENTION_MASK}")

    def test_every_split_ends_texts_alike(self, pool: TaskPool[Any]) -> None:
        """A token that ends the texts of one split ends those of all other splits."""
        has_texts = False
        for task in adaptive_tasks(pool):
            splits = read_all(task)
            if any(_IDS not in examples.batch.tensors for examples in splits.values()):
                continue
            has_texts = True
            ends = {split: Counter(_last_ids(part.batch)) for split, part in splits.items()}
            for split, counts in ends.items():
                token, count = counts.most_common(1)[0]
                for other, others in ends.items():
                    is_rule = count >= _RULE * counts.total() and counts.total() >= SIZE
                    if is_rule and others[token] <= _EXCEPTION * others.total():
                        fail(
                            f"{task.name}: {split} texts end with token {token}, but {other} texts "
                            "do not.",
                            "Encode all splits in the same way, and keep the last token.",
                        )
        if not has_texts:
            pytest.skip(f"no batch has {_IDS}")

    def test_texts_keep_the_token_that_ends_them(
        self, pool: TaskPool[Any], request: pytest.FixtureRequest
    ) -> None:
        """Texts keep the special token with which the models' tokenizer ends them."""
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
                    "Truncate with the tokenizer, not by slicing, to keep its last token.",
                )


def _check_mask(where: str, mask: Tensor, size: int) -> None:
    if mask.dim() != 2 or len(mask) != size:  # noqa: PLR2004 - (examples, length)
        fail(
            f"{where} have an {ATTENTION_MASK} of shape {list(mask.shape)}, "
            f"expected [{size}, length].",
            f"Return an {ATTENTION_MASK} of shape (examples, length).",
        )
    if not ((mask == 0) | (mask == 1)).all():
        fail(
            f"{where} have an {ATTENTION_MASK} with values other than 0 and 1.",
            "Use 1 for tokens and 0 for padding.",
        )
    if not mask.bool().any(1).all():
        fail(
            f"{where} have an example whose {ATTENTION_MASK} is 0 everywhere.",
            "Leave out empty examples.",
        )


def _check_padding(where: str, ids: Tensor, mask: Tensor) -> None:
    if ids.shape != mask.shape:
        fail(
            f"{where} have {_IDS} of shape {list(ids.shape)} and an {ATTENTION_MASK} of shape "
            f"{list(mask.shape)}, expected equal shapes.",
            "Return both with the shape (examples, length).",
        )
    visible, hidden = (set(ids[part].tolist()) for part in (mask.bool(), ~mask.bool()))
    if len(ids) > 1 and len(visible) == 1 and len(hidden) > 1:
        fail(f"the {ATTENTION_MASK} of {where} is inverted.", "Use 1 for tokens and 0 for padding.")
    if len(hidden) > 1:
        fail(
            f"the {ATTENTION_MASK} of {where} hides tokens that are not padding: "
            f"{sorted(hidden)[:4]}.",
            "Use 1 for every token, including the last one, and 0 for padding only.",
        )
    if not hidden and (token := _padding_in(ids)) is not None:
        fail(
            f"the {ATTENTION_MASK} of {where} is 1 everywhere, "
            f"but token {token} pads the shorter texts.",
            "Use the mask that the tokenizer returns: 0 for padding.",
        )


def _padding_in(ids: Tensor) -> int | None:
    """Return the token that pads rows to one length, on the right or left; None without one."""
    for padded in (ids, ids.flip(1)):
        last = padded[:, -1:]
        lengths = (padded == last).flip(1).long().cumprod(1).sum(1)
        runs = Counter(last[:, 0][lengths > 1].tolist())
        if not runs:
            continue
        token, count = runs.most_common(1)[0]
        runs_of_token = lengths[(last[:, 0] == token) & (lengths > 1)]
        if count >= max(2, len(ids) / 4) and len(set(runs_of_token.tolist())) > 1:
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
    """Return the tokenizer of the models; skip the check if there is none."""
    if type(pool).bind is TaskPool.bind:
        pytest.skip("the pool does not use the models' tokenizer: it does not override `bind`")
    library = pytest.importorskip("tokenizers", reason="the library tokenizers is not installed")
    file = request.getfixturevalue("models").assets().get(_TOKENIZER)
    if file is None:
        pytest.skip(f"the models have no {_TOKENIZER}")
    content = file if isinstance(file, bytes) else file.read_bytes()
    return library.Tokenizer.from_buffer(content)


def _lacks_its_end(ids: Sequence[int], tokenizer: Any) -> bool:  # noqa: ANN401
    """Tell whether the tokenizer would append one more token, a special one."""
    special = tokenizer.get_added_tokens_decoder()
    encoded = tokenizer.encode(tokenizer.decode(list(ids), skip_special_tokens=True)).ids
    return encoded[:-1] == list(ids) and encoded[-1] in special
