"""The smoke test: every model answers, then reads the answers of the others."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, field
from logging import ERROR, getLogger
from typing import TYPE_CHECKING

from fusion_core import Progress, show_notes_on
from fusion_core.errors import FusionError
from fusion_core.weights import describe_nearness
from pools_lm.smoke.directory import load_model
from pools_lm.smoke.findings import Findings
from pools_lm.smoke.interview import Interview
from pools_lm.tasks.prompts import Prompts

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    import torch

    from pools_lm.smoke.answers import Answer
    from pools_lm.smoke.interview import NamedModel

_LOG = getLogger(__name__)
#: The default prompts: a fact, an explanation, and a text to continue.
PROMPTS = (
    "What is the capital of France?",
    "Explain in one sentence why the sky is blue.",
    "Once upon a time there was a",
)


@dataclass(frozen=True, kw_only=True)
class SmokeTest:
    """The prompts and settings of a smoke test."""

    device: torch.device
    prompts: Sequence[str] = PROMPTS
    max_tokens: int = 32
    is_plain: bool = False
    fresh: bool = False
    #: whether the other models read the tested model's answers, which builds each of them again
    is_thorough: bool = True
    progress: Progress = field(default_factory=Progress)

    def run(self, directory: Path, others: Sequence[NamedModel]) -> Findings:
        """Test the model in a directory next to others. One that cannot be built is left out.

        Raises a `FusionError` if the tested model or its tokenizer cannot be read.
        """
        with _silence_transformers():
            tested = load_model(directory)
            prompts = Prompts.of_pool(tested.pool, chat=False if self.is_plain else None)
            interview = Interview(prompts, self.prompts, self.max_tokens, self.device, self.fresh)
            models = [*others, tested]
            answers: dict[NamedModel, list[Answer]] = {}
            bits: dict[str, dict[str, float | None]] = {}
            total = 2 * len(models) if others else 1
            with self.progress.track("smoke test", total=total) as advance, show_notes_on(advance):
                for model in models:
                    try:
                        answers[model] = interview.answers(model)
                    except FusionError as error:
                        if model is tested:
                            raise
                        _LOG.warning("%s is not asked: %s", model.name, error.message)
                    advance()
                if len(answers) > 1:
                    bits = {model.name: {} for model in answers}
                    authors = list(answers)[: None if self.is_thorough else -1]
                    # the model that answered last is still in memory, so it reads first
                    for reader in reversed(list(answers)):
                        for author in authors:
                            likelihood = interview.bits_per_byte(reader, answers[author])
                            bits[reader.name][author.name] = likelihood
                        advance()
        template = "through the chat template" if prompts.is_chat else "as plain text"
        return Findings(
            self.prompts,
            f"greedy, {interview.max_tokens} tokens at most, {template}",
            {model.name: answer for model, answer in answers.items()},
            bits,
            _compare_weights(list(answers)),
        )


def _compare_weights(models: Sequence[NamedModel]) -> list[str]:
    """Return notes if the last model's weights are nearly equal to another model's."""
    *others, tested = models
    if not others or tested.add_modules is not None:
        return []
    base = others[0].pool.base
    experts = {other.name: other.weights for other in others if other.weights is not base}
    is_base_readable = len(experts) < len(others)
    return (
        describe_nearness(tested.weights, base, experts) if is_base_readable or base is None else []
    )


@contextmanager
def _silence_transformers() -> Iterator[None]:
    """Silence warnings of transformers, which users cannot act on."""
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity(ERROR)
    try:
        yield
    finally:
        logging.set_verbosity(before)
