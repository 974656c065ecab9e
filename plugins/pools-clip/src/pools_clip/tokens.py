"""Tokenize prompts in a child process, because a model's tokenizer may be hostile.

The child imports this module too, without torch.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ValidationError

from fusion_core.errors import CheckpointError
from pools_checkpoints import LimitExceeded, Limits, SandboxedWorker, WorkFailed

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

#: Limits for the prompts of one task, which are some thousand short texts.
_LIMITS = Limits(seconds=120, memory=2_000_000_000, answer=256_000_000)
_CHILD = SandboxedWorker("pools_clip.tokens:serve")


class Tokens(BaseModel):
    """Rows of equal length: token ids, and a mask with 0 for padding."""

    input_ids: list[list[int]]
    attention_mask: list[list[int]]


def tokenize(directory: str, texts: Sequence[str], length: int) -> Tokens:
    """Return the padded tokens of texts, truncated to `length`, from the tokenizer in a directory.

    Raises `CheckpointError` for a tokenizer that cannot be read, fails, or exceeds a limit.
    """
    try:
        return Tokens.model_validate_json(_CHILD.ask([directory, list(texts), length], _LIMITS))
    except WorkFailed as error:
        raise CheckpointError(
            f"{directory}: its tokenizer cannot be loaded: {error}",
            hint="Save the model's tokenizer there too.",
        ) from error
    except (LimitExceeded, ValidationError) as error:
        problem = error if isinstance(error, LimitExceeded) else "gave an invalid answer"
        raise CheckpointError(
            f"{directory}: tokenizing prompts {problem}",
            hint="tokenizer.json came with the model, and may be damaged or hostile: look at it.",
        ) from error


def serve() -> Callable[[Any], Any]:
    """Import transformers in the child, and return the function that answers requests."""
    os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    modules: dict[str, Any] = sys.modules
    modules["torch"] = None  # as if it were not installed, because importing it takes seconds
    from transformers import AutoTokenizer

    def answer(request: tuple[str, list[str], int]) -> dict[str, Any]:
        directory, texts, length = request
        tokenizer = AutoTokenizer.from_pretrained(
            directory, trust_remote_code=False, local_files_only=True
        )
        tokens = tokenizer(texts, padding=True, truncation=True, max_length=length)
        return {name: tokens[name] for name in ("input_ids", "attention_mask")}

    return answer
