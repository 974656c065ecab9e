"""The options of a transplant, checked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from fusion_core.errors import RecipeError

Method = Literal["omp", "common-interpolation", "subword", "mean", "zero"]
SubwordWeights = Literal["mean", "ends"]
ChatTemplate = Literal["none", "donor", "model"]

METHODS: tuple[Method, ...] = get_args(Method)
#: Methods that read the donor's embeddings.
FROM_DONOR: frozenset[Method] = frozenset({"omp", "common-interpolation"})
DEFAULT_K = 64


@dataclass(frozen=True)
class TransplantOptions:
    """How new tokens get their rows, and what else the output has of the donor."""

    method: Method = "omp"
    #: shared tokens in a combination
    k: int = DEFAULT_K
    #: whether omp represents differences from the mean of the shared tokens' rows
    center: bool = True
    subword_weights: SubwordWeights = "mean"
    #: whether control tokens of other strings match by their role
    match_roles: bool = True
    #: the number of rows is a multiple of it
    multiple: int = 1
    chat_template: ChatTemplate = "none"

    @property
    def needs_donor_weights(self) -> bool:
        """Whether the method reads the donor's embeddings."""
        return self.method in FROM_DONOR


def read_options(  # noqa: PLR0913 - the options of the command
    *,
    method: str,
    k: int | None,
    center: bool,
    subword_weights: str | None,
    match_roles: bool,
    multiple: int,
    chat_template: str,
) -> TransplantOptions:
    """Return checked options. Raises `RecipeError` for invalid ones and those without effect."""
    for flag, value, allowed in (
        ("--method", method, METHODS),
        ("--subword-weights", subword_weights or "mean", get_args(SubwordWeights)),
        ("--chat-template", chat_template, get_args(ChatTemplate)),
    ):
        if value not in allowed:
            raise RecipeError(f"{flag}: expected {', '.join(allowed)}, got {value!r}")
    if k is not None and method not in FROM_DONOR:
        raise RecipeError(
            f"-k has no effect on --method {method}",
            hint=f"Leave it out, or choose {' or '.join(sorted(FROM_DONOR))}.",
        )
    if not center and method != "omp":
        raise RecipeError(f"--no-center has no effect on --method {method}", hint="Leave it out.")
    if subword_weights is not None and method != "subword":
        raise RecipeError(
            f"--subword-weights has no effect on --method {method}",
            hint="Leave it out, or choose --method subword.",
        )
    return TransplantOptions(
        method,  # type: ignore[arg-type] # checked above
        k or DEFAULT_K,
        center,
        subword_weights or "mean",  # type: ignore[arg-type]
        match_roles,
        multiple,
        chat_template,  # type: ignore[arg-type]
    )
