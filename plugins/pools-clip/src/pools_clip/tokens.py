"""Prompts as tokens, cut in a child process: a tokenizer comes with its model and may never end.

The child imports this module, too, and no torch.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ValidationError

from fusion_core.errors import CheckpointError
from fusion_core.files import Confined, Limits, Overrun, Refused

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

#: For the prompts of one task, some thousand short ones.
_LIMITS = Limits(seconds=120, memory=2_000_000_000, answer=256_000_000)
_CHILD = Confined("pools_clip.tokens:serve")


class Tokens(BaseModel):
    """Rows of one length: ids, and 1 where an id is of the text."""

    input_ids: list[list[int]]
    attention_mask: list[list[int]]


def tokens_of(folder: str, texts: Sequence[str], length: int) -> Tokens:
    """Return texts as the tokenizer in a folder has them, padded; the end of long ones is lost.

    Raises `CheckpointError` for a tokenizer that cannot be read, fails, or hits a limit.
    """
    try:
        return Tokens.model_validate_json(_CHILD.ask([folder, list(texts), length], _LIMITS))
    except Refused as error:
        raise CheckpointError(
            f"{folder}: its tokenizer cannot be loaded: {error}",
            hint="Save the model's tokenizer there too.",
        ) from error
    except (Overrun, ValidationError) as error:
        said = error if isinstance(error, Overrun) else "gave an answer that makes no sense"
        raise CheckpointError(
            f"{folder}: cutting prompts by its tokenizer {said}",
            hint="tokenizer.json came with the model, and may be damaged or hostile: look at it.",
        ) from error


def serve() -> Callable[[Any], Any]:
    """Import transformers in the child, and return what answers its requests."""
    os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    modules: dict[str, Any] = sys.modules
    modules["torch"] = None  # as if it were not installed: it would take seconds
    from transformers import AutoTokenizer

    def answer(request: tuple[str, list[str], int]) -> dict[str, Any]:
        folder, texts, length = request
        local = {"trust_remote_code": False, "local_files_only": True}
        tokenizer = AutoTokenizer.from_pretrained(folder, **local)
        found = tokenizer(texts, padding=True, truncation=True, max_length=length)
        return {"input_ids": found["input_ids"], "attention_mask": found["attention_mask"]}

    return answer
