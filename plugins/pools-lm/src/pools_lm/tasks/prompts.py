"""From texts to model inputs: the models' tokenizer, chat template and context length."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from fusion_core.errors import CheckpointError, FusionError, RecipeError
from pools_lm.confined.tokenizer import ConfinedTokenizer
from pools_lm.side_files import read_content

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fusion_core import ModelPool
    from fusion_core.weights import Files

#: Default maximum number of tokens in a context.
_MAX_LENGTH = 2048
_CONFIG, _GENERATION = "config.json", "generation_config.json"
#: Separators without a chat template: between a question and its answer, and between examples.
_SPACE, _BLANK_LINE = " ", "\n\n"
#: A private character that stands for what a user says.
_MARK = "\ue000"


@dataclass(frozen=True)
class Turn:
    """A question, with its answer if that is known."""

    prompt: str
    answer: str | None = None


@dataclass(frozen=True)
class Pair:
    """The tokens that a model reads, and the tokens that should follow."""

    context: Sequence[int]
    continuation: Sequence[int] = ()

    def __len__(self) -> int:
        return len(self.context) + len(self.continuation)

    def within(self, length: int) -> Pair:
        """Return this pair with the start of a long context cut off, to fit into `length`."""
        room = max(1, length - len(self.continuation))
        return Pair(self.context[-room:], self.continuation)


@dataclass(frozen=True)
class Prompts:
    """A tokenizer, with the facts about its models that shape their inputs."""

    tokenizer: ConfinedTokenizer
    #: whether an encoder reads the question and a decoder writes the answer
    is_seq2seq: bool
    is_chat: bool
    #: maximum number of tokens of a question or a text
    length: int
    #: how many tokens of question and answer the models can read, if they state it
    positions: int | None
    #: the tokens that end an answer
    ends: tuple[int, ...]
    #: digest of the tokenizer and configuration files
    digest: str

    @classmethod
    def of(
        cls, files: Files, model: str, *, chat: bool | None = None, length: int | None = None
    ) -> Prompts:
        """Read a model's side files; errors name it as `model`.

        Raises `RecipeError` if a file is missing, `CheckpointError` for an invalid one.
        """
        tokenizer = ConfinedTokenizer.of(files, model)
        config, generation = _read_config(files)
        facts = tokenizer.facts
        if config.is_encoder_decoder and not _has_start(config, generation):
            raise CheckpointError(
                f"{model}: neither config.json nor generation_config.json has a "
                "decoder_start_token_id",
                hint="Add the token that an answer begins after, such as that of padding for T5.",
            )
        if chat and not facts.has_template:
            raise RecipeError(
                "task_pool.chat: the models' tokenizer has no chat template",
                hint="Remove the option, or save a chat_template.jinja next to the base's weights.",
            )
        positions = _find_positions(config, files)
        if length and positions and length > positions:
            raise RecipeError(
                f"task_pool.length: {length} tokens, but {model} has only {positions} positions",
                hint=f"Give at most {positions}.",
            )
        lengths = [limit for limit in (_MAX_LENGTH, positions, facts.length) if limit]
        return cls(
            tokenizer,
            bool(config.is_encoder_decoder),
            facts.has_template if chat is None else chat,
            length or int(min(lengths)),
            positions,
            _find_ends(facts.eos, config, generation),
            tokenizer.client.digest,
        )

    @classmethod
    def of_pool(
        cls, pool: ModelPool[Any], *, chat: bool | None = None, length: int | None = None
    ) -> Prompts:
        """Read the side files of a pool's models; raise as `of` does."""
        return cls.of(pool.assets(), name_tokenizer_model(pool), chat=chat, length=length)

    @property
    def start_token(self) -> int:
        """The token before a text; raises `RecipeError` if the tokenizer has none."""
        for token in (self.tokenizer.facts.bos, self.tokenizer.facts.eos):
            if token is not None:
                return token
        raise RecipeError(
            "the models' tokenizer has neither a bos_token nor an eos_token",
            hint="Set bos_token in tokenizer_config.json next to the base's weights.",
        )

    def room_for_question(self, answer: int, option: str) -> int:
        """Return how many tokens of a question fit before an answer of `answer` tokens.

        Raises `RecipeError` that names the option if the models cannot hold the answer.
        """
        if not self._can_hold(answer):
            raise RecipeError(
                f"{option}: an answer of {answer} tokens, with what goes before it, does not fit "
                f"into the models' {self.positions} positions",
                hint="Give fewer.",
            )
        if self.is_seq2seq or self.positions is None:
            return self.length
        return min(self.length, self.positions - answer)  # the decoder reads both

    def _can_hold(self, answer: int) -> bool:
        """Tell whether an answer fits after one token: of its question, or one that it begins with.

        An encoder-decoder may have to write a token first (`scoring.answer_start`).
        """
        return self.positions is None or answer < self.positions

    def windows(self, texts: Sequence[str]) -> list[list[Pair]]:
        """Split each text into windows that together predict each of its tokens once.

        The start token comes before the first window of a text.
        """
        rows = [[self.start_token, *ids] for ids in self.tokenizer.encode(texts, special=False)]
        size = self.length
        if self.is_seq2seq and self.positions is not None:
            size = min(size, self.positions - 1)  # the decoder may read one token more
        return [
            [Pair(tokens[n - 1 : n], tokens[n : n + size]) for n in range(1, len(tokens), size)]
            for tokens in rows
        ]

    def questions(
        self, conversations: Sequence[Sequence[Turn]], system: str | None = None
    ) -> list[str]:
        """Return the texts that a model answers: earlier turns, and the last question.

        Raises `RecipeError` for a chat template that fails, `CheckpointError` for one that exceeds
        a limit.
        """
        if self.is_chat:
            return self.tokenizer.render([_as_messages(turns, system) for turns in conversations])
        start = [system] if system else []
        return [
            _BLANK_LINE.join(
                [
                    *start,
                    *("".join(self._move_space(turn.prompt, turn.answer or "")) for turn in shots),
                    question.prompt,
                ]
            )
            for *shots, question in conversations
        ]

    def user_start(self, system: str | None = None) -> list[int]:
        """Return the tokens after which a model writes what a user says.

        Without a chat template, that is the start token. Raises `RecipeError` for a template that
        omits what users say.
        """
        if not self.is_chat:
            return [self.start_token]
        (text,) = self.tokenizer.render([_as_messages([Turn(_MARK)], system)])
        before, mark, _ = text.partition(_MARK)
        if not mark:
            raise RecipeError(
                "the models' chat template omits what users say, so no model can write prompts",
                hint="Use no chat template: --set task_pool.chat=false",
            )
        (tokens,) = self.contexts([before])
        return tokens

    def pairs(self, answered: Sequence[tuple[str, str]]) -> list[Pair]:
        """Return the tokens of questions and their answers.

        Question and answer are tokenized together, as in training. They are tokenized separately if
        one token would span both. Raises `FusionError` for an answer without tokens.
        """
        if self.is_seq2seq:
            contexts = self.contexts([question for question, _ in answered])
            answers = self.tokenizer.encode([answer for _, answer in answered], special=False)
            return list(map(self._pair, contexts, answers))
        parts = [self._move_space(question, answer) for question, answer in answered]
        contexts = self.contexts([head for head, _ in parts])
        wholes = self.contexts([head + tail for head, tail in parts])
        answers = [
            whole[len(context) :] if whole[: len(context)] == context else []
            for context, whole in zip(contexts, wholes, strict=True)
        ]
        separate = [tail for (_, tail), answer in zip(parts, answers, strict=True) if not answer]
        separate_answers = iter(self.tokenizer.encode(separate, special=False))
        return [
            self._pair(context, answer or next(separate_answers))
            for context, answer in zip(contexts, answers, strict=True)
        ]

    def contexts(self, questions: Sequence[str]) -> list[list[int]]:
        """Return the tokens of questions; a chat template has added its special tokens already.

        A decoder continues them, so they lose the end token that some tokenizers append. An empty
        question is the start token. Raises `RecipeError` for one if the tokenizer has none.
        """
        rows = self.tokenizer.encode(questions, special=not self.is_chat)
        if self.is_seq2seq or self.is_chat:
            return rows
        rows = [row[: len(row) - self._appended] for row in rows]
        return [row or [self.start_token] for row in rows]

    @cached_property
    def _appended(self) -> int:
        """How many special tokens the tokenizer appends to a text."""
        (plain,) = self.tokenizer.encode(["a"], special=False)
        (whole,) = self.tokenizer.encode(["a"], special=True)
        starts = range(len(whole) - len(plain) + 1)
        ends = [start + len(plain) for start in starts if whole[start:][: len(plain)] == plain]
        return len(whole) - max(ends, default=len(whole))

    def decode(self, rows: Sequence[Sequence[int]]) -> list[str]:
        """Return the text of each row of tokens, without special tokens."""
        return self.tokenizer.decode(rows)

    def ending_at(self, stops: Sequence[str], option: str) -> Prompts:
        """Return these prompts with the stop texts that are special tokens among the end tokens.

        Decoded texts contain no special tokens, so only their ids can end an answer. Raises
        `RecipeError` naming the option for a special token with other text.
        """
        if not stops:
            return self
        rows = self.tokenizer.encode(stops, special=False)
        ends = dict.fromkeys(self.ends)
        for stop, row, text in zip(stops, rows, self.decode(rows), strict=True):
            special = [token for token in row if token in self.tokenizer.facts.special]
            if special and (text or special[1:]):
                raise RecipeError(
                    f"{option}: {stop!r} has other text than one special token",
                    hint="Name the special token alone: it ends an answer by its id.",
                )
            ends |= dict.fromkeys(special)
        return replace(self, ends=tuple(ends))

    def _move_space(self, question: str, answer: str) -> tuple[str, str]:
        """Move the space at the end of a question to its answer, where tokenizers expect it."""
        if self.is_chat:
            return question, answer
        head = question.rstrip()
        return head, (question[len(head) :] or _SPACE) + answer

    def _pair(self, context: Sequence[int], continuation: Sequence[int]) -> Pair:
        if not continuation:
            raise FusionError("an answer has no tokens", hint="Give an answer with some text.")
        if not self._can_hold(len(continuation)):
            raise FusionError(
                f"an answer has {len(continuation)} tokens, more than fit into the models' "
                f"{self.positions} positions",
                hint="Shorten the answers, or take models that read longer texts.",
            )
        if self.is_seq2seq:
            return Pair(context[-self.length :], continuation)
        return Pair(context, continuation).within(self.length)


def name_tokenizer_model(pool: ModelPool[Any]) -> str:
    """Return the name of the model whose tokenizer the pool uses."""
    chosen: str = getattr(pool.config, "tokenizer", "base")
    return pool.experts.get(chosen, pool.reference).describe()


def _as_messages(turns: Sequence[Turn], system: str | None) -> list[dict[str, str]]:
    """Return a conversation in the format of chat templates."""
    messages = [{"role": "system", "content": system}] if system else []
    for turn in turns:
        messages.append({"role": "user", "content": turn.prompt})
        if turn.answer is not None and turn is not turns[-1]:
            messages.append({"role": "assistant", "content": turn.answer})
    return messages


def _read_config(files: Files) -> tuple[Any, Any]:
    """Return the model's configuration, and its generation configuration or None."""
    from transformers import AutoConfig, GenerationConfig  # takes seconds to import

    with TemporaryDirectory() as directory:
        for name in files.keys() & {_CONFIG, _GENERATION}:
            Path(directory, name).write_bytes(read_content(files, name))
        try:
            return (
                AutoConfig.from_pretrained(
                    directory, trust_remote_code=False, local_files_only=True
                ),
                GenerationConfig.from_pretrained(directory) if _GENERATION in files else None,
            )
        except Exception as error:  # transformers raises anything
            raise CheckpointError(
                f"unreadable tokenizer or configuration of the models: {error}",
                hint="Save both with transformers next to the base's weights.",
            ) from error


def _has_start(*configs: Any) -> bool:  # noqa: ANN401 - transformers' many classes
    values = (getattr(config, "decoder_start_token_id", None) for config in configs)
    return any(value is not None for value in values)


def _find_positions(config: Any, files: Files) -> int | None:  # noqa: ANN401 - transformers' many classes
    """Return how many tokens of a text the model can read; None if it states no number."""
    positions = getattr(config.get_text_config(), "max_position_embeddings", None)
    if not positions or positions < 0:  # XLNet's is -1
        return None
    if positions <= _MAX_LENGTH:
        positions -= _count_reserved_positions(files)
    return int(positions)


def _count_reserved_positions(files: Files) -> int:
    """Return how many rows of the position table texts cannot use; 0 for an unknown model."""
    from pools_lm.architecture import load_architecture  # transformers takes seconds to import

    architecture = load_architecture("AutoModel", read_content(files, _CONFIG).decode())
    try:
        return architecture.reserved_positions
    except CheckpointError:
        return 0


def _find_ends(eos: int | None, config: Any, generation: Any) -> tuple[int, ...]:  # noqa: ANN401
    """Return the end tokens in the configurations and the tokenizer, without duplicates."""
    ends: list[int] = []
    for value in (
        getattr(generation, "eos_token_id", None),
        getattr(config, "eos_token_id", None),
        eos,
    ):
        if value is not None:
            ends += value if isinstance(value, list) else [value]
    return tuple(dict.fromkeys(ends))
