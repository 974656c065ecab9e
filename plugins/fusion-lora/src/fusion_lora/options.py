"""The options of `fuse extract-lora`, checked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from pydantic import ValidationError

from fusion_core.errors import RecipeError
from fusion_lora.config import AdapterConfig
from fusion_lora.extraction import Ranks

if TYPE_CHECKING:
    from collections.abc import Iterable

#: The rank of a module if no option sets it.
DEFAULT_RANK = 16


@dataclass(frozen=True)
class ExtractionOptions:
    """The ranks of an extraction, and the dtype of its factors."""

    ranks: Ranks
    dtype: torch.dtype


def read_options(
    *, rank: int | None, energy: float | None, patterns: Iterable[str] | None, dtype: str
) -> ExtractionOptions:
    """Return checked options. Raises `RecipeError` for invalid or conflicting ones."""
    if rank is not None and energy is not None:
        raise RecipeError("--rank conflicts with --energy", hint="Give one of them.")
    if energy is not None and not 0 < energy <= 1:
        raise RecipeError(f"--energy: expected a share above 0, at most 1, got {energy}")
    if rank is None and energy is None:
        rank = DEFAULT_RANK
    by_pattern = dict(_read_pattern(text) for text in patterns or ())
    try:
        checked = AdapterConfig.model_validate({"dtype": dtype})
    except ValidationError as error:
        expected = "float64, float32, float16 or bfloat16"
        raise RecipeError(f"--dtype: expected {expected}, got {dtype!r}") from error
    return ExtractionOptions(Ranks(rank, energy, by_pattern), getattr(torch, checked.dtype))


def _read_pattern(text: str) -> tuple[str, int]:
    pattern, _, rank = text.rpartition("=")
    if not pattern or not rank.isdecimal() or int(rank) < 1:
        raise RecipeError(
            f"--rank-pattern: expected PATTERN=R with a rank of at least 1, got {text!r}",
            hint="For example: --rank-pattern '*down_proj*=64'",
        )
    return pattern, int(rank)
