"""How texts are put to models: their own tokenizer, chat template and length."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from fusion_core.errors import CheckpointError, FusionError, RecipeError
from pools_lm.beside import content_in
from pools_lm.confined.tokenizer import ConfinedTokenizer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fusion_core import ModelPool
    from fusion_core.weights import Files

#: Tokens that a model reads at most unless a recipe says so.
_LONGEST = 2048
_CONFIG, _GENERATION = "config.json", "generation_config.json"
#: What stands between a question and its answer, and between examples, without a chat template.
_SPACE, _BLANK = " ", "\n\n"


@dataclass(frozen=True)
class Turn:
    """A question, and its answer where that is known."""

    prompt: str
    answer: str | None = None


@dataclass(frozen=True)
class Pair:
    """Tokens that a model is given, and those that are to follow; seldom none of either."""

    context: Sequence[int]
    continuation: Sequence[int] = ()

    def __len__(self) -> int:
        return len(self.context) + len(self.continuation)

    def within(self, length: int) -> Pair:
        """Return this pair without the beginning of a context that is too long."""
        room = max(1, length - len(self.continuation))
        return Pair(self.context[-room:], self.continuation)


@dataclass(frozen=True)
class Prompts:
    """A tokenizer, and what is known of the models that it belongs to."""

    tokenizer: ConfinedTokenizer
    #: whether an encoder reads the question, and a decoder answers
    is_seq2seq: bool
    is_chat: bool
    #: tokens that a model reads at most
    length: int
    #: the tokens that end an answer
    ends: tuple[int, ...]
    #: tells the files of tokenizer and configuration apart
    digest: str

    @classmethod
    def of(
        cls, files: Files, model: str, *, chat: bool | None = None, length: int | None = None
    ) -> Prompts:
        """Read what lies beside a model, which errors call `model`.

        Raises `RecipeError` for files that do not suffice, `CheckpointError` for bad ones.
        """
        tokenizer = ConfinedTokenizer.of(files, model)
        config, generation = _configuration(files)
        about = tokenizer.about
        if chat and not about.has_template:
            raise RecipeError(
                "task_pool.chat: the models' tokenizer has no chat template",
                hint="Leave it out, or save a chat_template.jinja beside the base's weights.",
            )
        return cls(
            tokenizer,
            bool(config.is_encoder_decoder),
            about.has_template if chat is None else chat,
            length or _length(about.length, config),
            _ends(about.eos, config, generation),
            tokenizer.held.digest,
        )

    @classmethod
    def of_pool(
        cls, pool: ModelPool[Any], *, chat: bool | None = None, length: int | None = None
    ) -> Prompts:
        """Read what lies beside a pool's models; raises as `of` does."""
        return cls.of(pool.assets(), described(pool), chat=chat, length=length)

    @property
    def first(self) -> int:
        """The token before a text; raises `RecipeError` for a tokenizer that has none."""
        known = (self.tokenizer.about.bos, self.tokenizer.about.eos)
        found = next((each for each in known if each is not None), None)
        if found is None:
            raise RecipeError(
                "the models' tokenizer has no token that texts begin or end with",
                hint="Set bos_token in tokenizer_config.json beside the base's weights.",
            )
        return int(found)

    def windows(self, text: str) -> list[Pair]:
        """Cut a text into windows in which every token of it is to follow once.

        The token that texts begin with, or end with where there is none, stands before the first.
        """
        (plain,) = self.tokenizer.encode([text], special=False)
        tokens = [self.first, *plain]
        starts = range(1, len(tokens), self.length)
        return [Pair(tokens[n - 1 : n], tokens[n : n + self.length]) for n in starts]

    def questions(
        self, conversations: Sequence[Sequence[Turn]], system: str | None = None
    ) -> list[str]:
        """Return the texts that a model answers: earlier questions and answers, and the last one.

        Raises `RecipeError` or `CheckpointError` for a chat template that fails, or hits a limit.
        """
        if self.is_chat:
            return self.tokenizer.render([_messages(turns, system) for turns in conversations])
        before = [system] if system else []
        return [_BLANK.join([*before, *_as_text(turns)]) for turns in conversations]

    def check_template(self) -> None:
        """Raise an error if the chat template fails on a short question, before any work."""
        if self.is_chat:
            self.questions([[Turn("Hello")]])

    def pairs(self, asked: Sequence[tuple[str, str]]) -> list[Pair]:
        """Return the tokens of questions and of an answer to each.

        Both are cut into tokens together, as they are in training; apart where a token would be of
        both. Raises `FusionError` for an answer without tokens.
        """
        if self.is_seq2seq:
            contexts = self.contexts([question for question, _ in asked])
            follows = self.tokenizer.encode([answer for _, answer in asked], special=False)
            return list(map(self._paired, contexts, follows))
        cut = [self._cut(question, answer) for question, answer in asked]
        contexts = self.contexts([head for head, _ in cut])
        wholes = self.contexts([head + tail for head, tail in cut])
        follows = list(map(_after, contexts, wholes))
        alone = [tail for (_, tail), found in zip(cut, follows, strict=True) if not found]
        apart = iter(self.tokenizer.encode(alone, special=False))
        return [
            self._paired(context, found or next(apart))
            for context, found in zip(contexts, follows, strict=True)
        ]

    def contexts(self, questions: Sequence[str]) -> list[list[int]]:
        """Return questions' tokens; of conversations, those that their template writes."""
        return self.tokenizer.encode(questions, special=not self.is_chat)

    def said(self, rows: Sequence[Sequence[int]]) -> list[str]:
        """Return what rows of tokens say, without special ones."""
        return self.tokenizer.decode(rows)

    def _cut(self, question: str, answer: str) -> tuple[str, str]:
        """Return a question without the space at its end, and that space with the answer."""
        head = question if self.is_chat else question.rstrip()
        gap = "" if self.is_chat else question[len(head) :] or _SPACE
        return head, gap + answer

    def _paired(self, context: Sequence[int], continuation: Sequence[int]) -> Pair:
        if not continuation:
            raise FusionError("an answer comes to no tokens", hint="Give one that says something.")
        return Pair(context, continuation).within(self.length)


def described(pool: ModelPool[Any]) -> str:
    """Say which of a pool's models its tokenizer is of."""
    chosen: str = getattr(pool.config, "tokenizer", "base")
    return pool.experts.get(chosen, pool.reference).describe()


def _messages(turns: Sequence[Turn], system: str | None) -> list[dict[str, str]]:
    """Return a conversation as chat templates take it."""
    messages = [{"role": "system", "content": system}] if system else []
    for turn in turns:
        messages.append({"role": "user", "content": turn.prompt})
        if turn.answer is not None and turn is not turns[-1]:
            messages.append({"role": "assistant", "content": turn.answer})
    return messages


def _as_text(turns: Sequence[Turn]) -> list[str]:
    """Return a conversation as paragraphs."""
    earlier = [f"{turn.prompt}{_SPACE}{turn.answer}" for turn in turns[:-1]]
    return [*earlier, turns[-1].prompt]


def _after(context: list[int], whole: list[int]) -> list[int]:
    """Return what follows a context; nothing where a token is of both."""
    return whole[len(context) :] if whole[: len(context)] == context else []


def _configuration(files: Files) -> tuple[Any, Any]:
    """Return the configuration and, of the files for generation, what they say."""
    from transformers import AutoConfig, GenerationConfig  # seconds

    with TemporaryDirectory() as folder:
        for name in files.keys() & {_CONFIG, _GENERATION}:
            Path(folder, name).write_bytes(content_in(files, name))
        try:
            return (
                AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True),
                GenerationConfig.from_pretrained(folder) if _GENERATION in files else None,
            )
        except Exception as error:  # transformers raises any
            raise CheckpointError(
                f"the models' tokenizer or configuration cannot be read: {error}",
                hint="Save both with transformers beside the base's weights.",
            ) from error


def _length(own: int, config: Any) -> int:  # noqa: ANN401 - transformers' many classes
    positions = getattr(config.get_text_config(), "max_position_embeddings", None)
    known = (positions, own)
    return min(_LONGEST, *(int(each) for each in known if each))


def _ends(own: int | None, config: Any, generation: Any) -> tuple[int, ...]:  # noqa: ANN401
    """Return the tokens that the files, or the tokenizer's `own`, say an answer ends by."""
    said = [*(getattr(each, "eos_token_id", None) for each in (generation, config)), own]
    numbers = [each if isinstance(each, list) else [each] for each in said if each is not None]
    return tuple(dict.fromkeys(number for each in numbers for number in each))
