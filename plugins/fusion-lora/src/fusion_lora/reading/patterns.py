"""Regular expressions from untrusted files, matched in a child process under limits.

A LoRA adapter names modules by regular expressions, and a hostile one keeps Python's `re` busy
forever. The child imports this module too, so it must not import torch.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, cast

from pools_checkpoints import LimitExceeded, Limits, SandboxedWorker, WorkFailed

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

#: Many times what the adapters of large models need.
_LIMITS = Limits(seconds=1, memory=128_000_000, answer=16_000_000)
_CHILD = SandboxedWorker("fusion_lora.reading.patterns:serve")


def find_first_matches(patterns: Sequence[str], modules: Sequence[str]) -> list[int | None]:
    """Return, for each module name, the index of the first pattern that matches it as in PEFT.

    The index is None if no pattern matches. Raises `ValueError` for an invalid pattern, and for
    patterns that exceed the limits of time or memory.
    """
    if not patterns:
        return [None] * len(modules)
    try:
        answer = _CHILD.ask([list(patterns), list(modules)], _LIMITS)
    except WorkFailed as error:
        raise ValueError(str(error)) from error
    except LimitExceeded as error:
        raise ValueError(f"matching its patterns {error}") from error
    return cast("list[int | None]", json.loads(answer))


def serve() -> Callable[[tuple[list[str], list[str]]], list[int | None]]:
    """Return the function that answers requests in the child."""

    def answer(request: tuple[list[str], list[str]]) -> list[int | None]:
        patterns, modules = request
        matchers = [_compile(pattern).match for pattern in patterns]
        return [
            next((index for index, match in enumerate(matchers) if match(module)), None)
            for module in modules
        ]

    return answer


def _compile(pattern: str) -> re.Pattern[str]:
    """Compile a pattern as PEFT does: it matches a whole name, or the end of one after a dot."""
    try:
        return re.compile(rf"(.*\.)?({pattern})$")
    except (re.error, RecursionError, OverflowError) as error:
        raise ValueError(f"the pattern {pattern[:80]!r} is invalid: {error}") from error
