"""A model's transformers tokenizer and chat template, used under limits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pydantic import BaseModel, TypeAdapter

from fusion_core.errors import CheckpointError, RecipeError
from pools_checkpoints import WorkFailed
from pools_lm.confined.client import RENDERING, SETTINGS, TokenizerClient, split_batches

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from fusion_core.weights import Files

    Message = Mapping[str, str]

_WITHOUT_TEMPLATE = "Use no chat template: --set task_pool.chat=false"


class _Facts(BaseModel):
    """The facts about a tokenizer that its files state."""

    bos: int | None
    eos: int | None
    has_template: bool
    length: int
    #: the ids that decoded texts leave out
    special: set[int]


_FACTS = TypeAdapter(_Facts)
_TEXTS = TypeAdapter[list[str] | None](list[str] | None)
_ROWS = TypeAdapter[list[list[int]] | None](list[list[int]] | None)
_NAMED_ROWS = TypeAdapter[list[dict[str, list[int]]] | None](list[dict[str, list[int]]] | None)


@dataclass(frozen=True)
class ConfinedTokenizer:
    """A tokenizer in a child process, which turns batches of texts into token ids and back.

    Each method raises `CheckpointError` if it exceeds a limit of time, memory or size.
    """

    client: TokenizerClient
    facts: _Facts

    @classmethod
    def of(cls, files: Files, model: str) -> ConfinedTokenizer:
        """Read a tokenizer; raise `CheckpointError` for files that transformers cannot read."""
        client = TokenizerClient.of(files, model, "read_tokenizer")
        try:
            return cls(client, client.read(_FACTS))
        except WorkFailed as error:
            raise CheckpointError(
                f"unreadable tokenizer or configuration of the models: {error}",
                hint="Save both with transformers next to the base's weights.",
            ) from error

    def render(self, conversations: Sequence[Sequence[Message]]) -> list[str]:
        """Render conversations with the chat template, up to the start of the model's answer.

        Raises `RecipeError` for a template that fails.
        """
        file = next((name for name in self.client.files if name.endswith(".jinja")), SETTINGS)
        action = f"rendering its chat template ({file})"
        hint = (
            "The template came with the model, and may be hostile: look at it.\n"
            f"{_WITHOUT_TEMPLATE}"
        )
        sizes = [sum(len(message["content"]) for message in messages) for messages in conversations]
        rendered: list[str] = []
        for part in split_batches(sizes):
            options = {"conversations": conversations[part]}
            try:
                texts = self.client.ask(
                    "render", options, _TEXTS, RENDERING, action=action, hint=hint
                )
            except WorkFailed as error:
                raise RecipeError(
                    f"{self.client.model}: its chat template ({file}) refuses the conversation: "
                    f"{error}",
                    hint=_WITHOUT_TEMPLATE,
                ) from error
            if len(texts) != len(conversations[part]):
                raise CheckpointError(
                    f"{self.client.model}: {action} gave {len(texts)} texts for "
                    f"{len(conversations[part])} conversations",
                    hint=hint,
                )
            rendered += texts
        return rendered

    def encode(self, texts: Sequence[str], *, special: bool) -> list[list[int]]:
        """Return the token ids of texts, with special tokens around them if `special`."""
        return self.client.map_texts("encode", texts, _ROWS, special=special)

    def encode_rows(
        self, texts: Sequence[str], pairs: Sequence[str] | None, length: int
    ) -> list[dict[str, list[int]]]:
        """Return an encoder's named inputs for texts, or for pairs of texts.

        Inputs are truncated to `length` tokens.
        """
        rows: list[dict[str, list[int]]] = []
        for part in split_batches(list(map(len, texts))):
            options = {"texts": texts[part], "pairs": pairs and pairs[part], "length": length}
            rows += self.client.ask_batch("encode_rows", options, _NAMED_ROWS, len(texts[part]))
        return rows

    def decode(self, rows: Sequence[Sequence[int]]) -> list[str]:
        """Return the text of each row of token ids, without special tokens."""
        options = {"rows": list(map(list, rows))}
        return self.client.ask_batch("decode", options, _TEXTS, len(rows))
