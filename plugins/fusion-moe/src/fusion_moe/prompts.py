"""The prompts of experts as token ids."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from fusion_core.errors import RecipeError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from fusion_core import ModelPool
    from fusion_moe.config import MoeConfig

    Tokens = Sequence[Sequence[int]]


@runtime_checkable
class TokenizingPool(Protocol):
    """A model pool that knows its models' tokenizer, such as those of `pools-lm`."""

    def tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the token ids of texts, after the token that begins a text if there is one."""


@dataclass(frozen=True)
class ExpertPrompts:
    """The tokens of the prompts for an expert, and of those against it."""

    positive: Tokens
    negative: Tokens


def check_prompts(config: MoeConfig, experts: Sequence[str], shared: str | None) -> None:
    """Raise `RecipeError` for prompts that are missing, needless, equal, or of unknown models."""
    known = [*experts, *filter(None, [shared])]
    for option, prompts in (
        ("prompts", config.prompts),
        ("negative_prompts", config.negative_prompts),
        ("output_scale", config.output_scale),
    ):
        for name in prompts:
            if name not in known:
                raise RecipeError(
                    f"algorithm.{option}: unknown expert {name!r}",
                    hint=f"The experts are: {', '.join(known)}.",
                )
    if config.gate == "random":
        if config.prompts or config.negative_prompts:
            raise RecipeError(
                "algorithm.prompts: random gates do not depend on prompts",
                hint="Leave prompts and negative_prompts out, or choose another gate.",
            )
        return
    for name in experts:
        if name not in config.prompts:
            raise RecipeError(
                f"algorithm.prompts: missing prompts for {name!r}",
                hint="Give each expert some texts of its kind, as in prompts: "
                f"{{{name}: [a text, another]}}; or set algorithm.gate to random.",
            )
    if shared is not None and shared in config.negative_prompts and shared not in config.prompts:
        raise RecipeError(
            f"algorithm.negative_prompts: {shared!r} has no prompts to subtract these from",
            hint=f"Give {shared!r} prompts, too.",
        )
    _check_different(config, experts)


def _check_different(config: MoeConfig, experts: Sequence[str]) -> None:
    """Raise `RecipeError` for experts that the router could not tell apart."""
    owners: dict[tuple[frozenset[str], frozenset[str]], str] = {}
    for name in experts:
        negative = frozenset(config.negative_prompts.get(name, ()))
        key = frozenset(config.prompts[name]), negative
        other = owners.setdefault(key, name)
        if other != name:
            raise RecipeError(
                f"algorithm.prompts: {other!r} and {name!r} have the same prompts, so the router "
                "cannot tell them apart",
                hint="Give them different prompts, or set algorithm.gate to random.",
            )


def check_tokenizer(config: MoeConfig, pool: ModelPool[Any]) -> None:
    """Raise `RecipeError` for gates from prompts if the pool knows no tokenizer."""
    if config.gate != "random" and not isinstance(pool, TokenizingPool):
        raise RecipeError(
            f"algorithm.gate: {config.gate} reads prompts, and the model pool has no tokenizer",
            hint="Use the model pool 'causal-lm' of pools-lm, or set algorithm.gate to random.",
        )


def tokenize_prompts(config: MoeConfig, pool: ModelPool[Any]) -> Mapping[str, ExpertPrompts]:
    """Return the tokens of all prompts by expert; raise `RecipeError` for a text without any."""
    assert isinstance(pool, TokenizingPool)  # noqa: S101 - `check_tokenizer` ran before
    texts = [
        *(text for prompts in config.prompts.values() for text in prompts),
        *(text for prompts in config.negative_prompts.values() for text in prompts),
    ]
    tokens = dict(zip(texts, pool.tokenize(texts), strict=True))
    for text, row in tokens.items():
        if not row:
            raise RecipeError(f"algorithm.prompts: {text!r} has no tokens", hint="Write some text.")
    return {
        name: ExpertPrompts(
            [tokens[text] for text in prompts],
            [tokens[text] for text in config.negative_prompts.get(name, ())],
        )
        for name, prompts in config.prompts.items()
    }
