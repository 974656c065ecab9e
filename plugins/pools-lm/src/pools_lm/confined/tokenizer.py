"""A model's tokenizer and chat template as transformers has them, used under limits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pydantic import BaseModel, TypeAdapter

from fusion_core.errors import CheckpointError, RecipeError
from fusion_core.files import Refused
from pools_lm.confined.held import RENDERING, SETTINGS, Held, in_parts

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from fusion_core.weights import Files

    Message = Mapping[str, str]

_WITHOUT = "Ask without it: --set task_pool.chat=false"


class _About(BaseModel):
    """The facts about a tokenizer that its files state."""

    bos: int | None
    eos: int | None
    has_template: bool
    length: int


_ABOUT = TypeAdapter(_About)
_TEXTS = TypeAdapter[list[str] | None](list[str] | None)
_ROWS = TypeAdapter[list[list[int]] | None](list[list[int]] | None)
_NAMED_ROWS = TypeAdapter[list[dict[str, list[int]]] | None](list[dict[str, list[int]]] | None)


@dataclass(frozen=True)
class ConfinedTokenizer:
    """A tokenizer that works in a child process: batches of texts in, numbers out.

    Each method raises `CheckpointError` where a limit of time, memory or size is hit.
    """

    held: Held
    about: _About

    @classmethod
    def of(cls, files: Files, model: str) -> ConfinedTokenizer:
        """Read a tokenizer; raises `CheckpointError` for files that transformers cannot read."""
        held = Held.of(files, model, "read_tokenizer")
        try:
            return cls(held, held.read(_ABOUT))
        except Refused as error:
            raise CheckpointError(
                f"the models' tokenizer or configuration cannot be read: {error}",
                hint="Save both with transformers beside the base's weights.",
            ) from error

    def render(self, conversations: Sequence[Sequence[Message]]) -> list[str]:
        """Write conversations through the chat template, up to where a model answers.

        Raises `RecipeError` for a template that fails.
        """
        sizes = [
            sum(len(message["content"]) for message in conversation)
            for conversation in conversations
        ]
        return [text for part in in_parts(sizes) for text in self._rendered(conversations[part])]

    def _rendered(self, conversations: Sequence[Sequence[Message]]) -> list[str]:
        file = next((name for name in self.held.files if name.endswith(".jinja")), SETTINGS)
        what = f"rendering its chat template ({file})"
        hint = f"The template came with the model, and may be hostile: look at it.\n{_WITHOUT}"
        asked = {"conversations": conversations}
        try:
            texts = self.held.ask("render", asked, _TEXTS, RENDERING, what=what, hint=hint)
        except Refused as error:
            raise RecipeError(
                f"{self.held.model}: its chat template ({file}) refuses the conversation: {error}",
                hint=_WITHOUT,
            ) from error
        if len(texts) != len(conversations):
            raise CheckpointError(f"{self.held.model}: {what} left some out", hint=hint)
        return texts

    def encode(self, texts: Sequence[str], *, special: bool) -> list[list[int]]:
        """Return the tokens of texts, with those that models expect around them if `special`."""
        rows: list[list[int]] = []
        for part in in_parts(list(map(len, texts))):
            asked = {"texts": texts[part], "special": special}
            rows += self.held.work("encode", asked, _ROWS, len(texts[part]))
        return rows

    def encode_rows(
        self, texts: Sequence[str], pairs: Sequence[str] | None, length: int
    ) -> list[dict[str, list[int]]]:
        """Return what an encoder reads of texts, or of pairs of them: numbers by name.

        What is longer than `length` tokens loses its end.
        """
        rows: list[dict[str, list[int]]] = []
        for part in in_parts(list(map(len, texts))):
            own = {"texts": texts[part], "pairs": pairs and pairs[part], "length": length}
            rows += self.held.work("encode_rows", own, _NAMED_ROWS, len(texts[part]))
        return rows

    def decode(self, rows: Sequence[Sequence[int]]) -> list[str]:
        """Return what tokens say, without special ones."""
        return self.held.work("decode", {"rows": list(map(list, rows))}, _TEXTS, len(rows))
