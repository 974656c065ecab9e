"""The test itself: every model answers, then reads what the others have answered."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, field
from logging import ERROR, getLogger
from typing import TYPE_CHECKING

from fusion_core import Progress, noting
from fusion_core.errors import FusionError
from fusion_core.weights import nearness
from pools_lm.smoke.asking import Asking
from pools_lm.smoke.directory import model_in
from pools_lm.smoke.findings import Findings
from pools_lm.tasks.prompts import Prompts

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    import torch

    from pools_lm.smoke.answers import Answer
    from pools_lm.smoke.asking import Speaker
    from pools_lm.smoke.findings import Bits

    Heard = Mapping[Speaker, list[Answer]]

_LOG = getLogger(__name__)
#: What models are asked: a fact, an explanation, and a text to go on with.
PROMPTS = (
    "What is the capital of France?",
    "Explain in one sentence why the sky is blue.",
    "Once upon a time there was a",
)


@dataclass(frozen=True, kw_only=True)
class Trial:
    """What is asked, and how."""

    device: torch.device
    prompts: Sequence[str] = PROMPTS
    max_tokens: int = 32
    is_plain: bool = False
    fresh: bool = False
    #: whether the others read what the tested model has answered, for which each has to be built
    is_thorough: bool = True
    progress: Progress = field(default_factory=Progress)

    def findings(self, directory: Path, others: Sequence[Speaker]) -> Findings:
        """Test the model in a directory beside others; one that cannot be built is left out.

        Raises a `FusionError` if the model itself, or its tokenizer, cannot be read.
        """
        with _without_advice():
            return self._findings(model_in(directory), others)

    def _findings(self, model: Speaker, others: Sequence[Speaker]) -> Findings:
        found = Prompts.of_pool(model.pool, chat=False if self.is_plain else None)
        asking = Asking(found, self.prompts, self.max_tokens, self.device, self.fresh)
        how = "through the chat template" if found.is_chat else "as plain text"
        speakers = [*others, model]
        total = 2 * len(speakers) if others else 1
        with self.progress.track("smoke test", total=total) as advance, noting(advance):
            heard = dict(_answered(asking, speakers, advance))
            bits = self._read(asking, heard, advance) if len(heard) > 1 else {}
        answers = {speaker.name: own for speaker, own in heard.items()}
        said = f"greedy, {asking.max_tokens} tokens at most, {how}"
        return Findings(self.prompts, said, answers, bits, _nearness(list(heard)))

    def _read(self, asking: Asking, heard: Heard, advance: Callable[[], None]) -> Bits:
        """Have each model read answers, the one that was asked last first: it is still there."""
        authors = list(heard)[: None if self.is_thorough else -1]
        bits: dict[str, dict[str, float | None]] = {each.name: {} for each in heard}
        for reader in reversed(list(heard)):
            for author in authors:
                found = asking.bits_per_byte(reader, heard[author])
                bits[reader.name][author.name] = found
            advance()
        return bits


def _nearness(speakers: Sequence[Speaker]) -> list[str]:
    """Say which of the models that it was made of the last one can hardly be told from."""
    *others, tested = speakers
    if not others:
        return []
    base = others[0].pool.base
    experts = {other.name: other.weights for other in others if other.weights is not base}
    is_base_readable = len(experts) < len(others)
    return nearness(tested.weights, base, experts) if is_base_readable or base is None else []


@contextmanager
def _without_advice() -> Iterator[None]:
    """Keep transformers from telling users what only we could do."""
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity(ERROR)
    try:
        yield
    finally:
        logging.set_verbosity(before)


def _answered(
    asking: Asking, speakers: Sequence[Speaker], advance: Callable[[], None]
) -> Iterator[tuple[Speaker, list[Answer]]]:
    """Yield the models that can be asked, with their answers; the last has to be."""
    for speaker in speakers:
        try:
            yield speaker, asking.answers(speaker)
        except FusionError as error:
            if speaker is speakers[-1]:
                raise
            _LOG.warning("%s is not asked: %s", speaker.name, error.message)
        advance()
