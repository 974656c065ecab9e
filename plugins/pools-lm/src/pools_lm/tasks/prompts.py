"""How texts are put to models: their own tokenizer, chat template and length."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from fusion_core.errors import CheckpointError, FusionError, RecipeError
from pools_lm.beside import content_in

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fusion_core.weights import Files

#: Tokens that a model reads at most unless a recipe says so.
_LONGEST = 2048
_GENERATION = "generation_config.json"
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
    """A tokenizer as transformers has it, and what is known of the models that it belongs to."""

    tokenizer: Any
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
    def of(cls, files: Files, *, chat: bool | None = None, length: int | None = None) -> Prompts:
        """Read what lies beside a model; raises `RecipeError` for files that do not suffice."""
        tokenizer, config, generation = _loaded(files)
        template = getattr(tokenizer, "chat_template", None)
        if chat and template is None:
            raise RecipeError(
                "task_pool.chat: the models' tokenizer has no chat template",
                hint="Leave it out, or save a chat_template.jinja beside the base's weights.",
            )
        return cls(
            tokenizer,
            bool(config.is_encoder_decoder),
            template is not None if chat is None else chat,
            length or _length(tokenizer, config),
            _ends(tokenizer, config, generation),
            _digest(files),
        )

    @property
    def first(self) -> int:
        """The token before a text; raises `RecipeError` for a tokenizer that has none."""
        known = (self.tokenizer.bos_token_id, self.tokenizer.eos_token_id)
        found = next((each for each in known if each is not None), None)
        if found is None:
            raise RecipeError(
                "the models' tokenizer has no token that texts begin or end with",
                hint="Set bos_token in tokenizer_config.json beside the base's weights.",
            )
        return int(found)

    def text(self, text: str) -> list[int]:
        """Return a text's tokens, with what the models expect around it."""
        return list(self.tokenizer(text).input_ids)

    def windows(self, text: str) -> list[Pair]:
        """Cut a text into windows in which every token of it is to follow once.

        The token that texts begin with, or end with where there is none, stands before the first.
        """
        tokens = [self.first, *self._plain(text)]
        starts = range(1, len(tokens), self.length)
        return [Pair(tokens[n - 1 : n], tokens[n : n + self.length]) for n in starts]

    def question(self, turns: Sequence[Turn], system: str | None = None) -> str:
        """Return the text that a model answers: earlier questions and answers, and the last one."""
        if not self.is_chat:
            said = [f"{each.prompt}{_SPACE}{each.answer}" for each in turns[:-1]]
            return _BLANK.join([*([system] if system else []), *said, turns[-1].prompt])
        messages = [{"role": "system", "content": system}] if system else []
        for each in turns:
            messages.append({"role": "user", "content": each.prompt})
            if each.answer is not None and each is not turns[-1]:
                messages.append({"role": "assistant", "content": each.answer})
        return self._rendered(messages)

    def pair(self, question: str, answer: str) -> Pair:
        """Return the tokens of a question and of an answer to it.

        Both are cut into tokens together, as they are in training; apart where a token would be of
        both. Raises `FusionError` for an answer without tokens.
        """
        if self.is_seq2seq:
            return self._paired(self.context(question), self._plain(answer))
        head = question if self.is_chat else question.rstrip()
        gap = "" if self.is_chat else question[len(head) :] or _SPACE
        context, whole = self.context(head), self.context(head + gap + answer)
        is_whole = whole[: len(context)] == context and len(whole) > len(context)
        follows = whole[len(context) :] if is_whole else self._plain(gap + answer)
        return self._paired(context, follows)

    def context(self, question: str) -> list[int]:
        """Return a question's tokens; of a conversation, those that its template writes."""
        return self._plain(question) if self.is_chat else self.text(question)

    def said(self, tokens: Sequence[int]) -> str:
        """Return what tokens say, without special ones."""
        return str(self.tokenizer.decode(tokens, skip_special_tokens=True))

    def _paired(self, context: Sequence[int], continuation: Sequence[int]) -> Pair:
        if not continuation:
            raise FusionError("an answer comes to no tokens", hint="Give one that says something.")
        return Pair(context, continuation).within(self.length)

    def _plain(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False).input_ids)

    def _rendered(self, messages: Sequence[dict[str, str]]) -> str:
        try:
            found = self.tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=True
            )
        except Exception as error:  # a template raises what it wants
            raise RecipeError(
                f"the chat template refuses the conversation: {error}",
                hint="Ask without it: --set task_pool.chat=false",
            ) from error
        return str(found)


def _loaded(files: Files) -> tuple[Any, Any, Any]:
    """Return the tokenizer, the configuration and, of the files for generation, what they say."""
    from transformers import AutoConfig, AutoTokenizer, GenerationConfig  # seconds

    with TemporaryDirectory() as folder:
        for name in files:
            place = Path(folder, name)
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(content_in(files, name))
        local = {"trust_remote_code": False, "local_files_only": True}
        try:
            return (
                AutoTokenizer.from_pretrained(folder, **local),
                AutoConfig.from_pretrained(folder, **local),
                GenerationConfig.from_pretrained(folder) if _GENERATION in files else None,
            )
        except Exception as error:  # tokenizers raises plain ones, transformers any
            raise CheckpointError(
                f"the models' tokenizer or configuration cannot be read: {error}",
                hint="Save both with transformers beside the base's weights.",
            ) from error


def _length(tokenizer: Any, config: Any) -> int:  # noqa: ANN401 - transformers' many classes
    positions = getattr(config.get_text_config(), "max_position_embeddings", None)
    known = (positions, getattr(tokenizer, "model_max_length", None))
    return min(_LONGEST, *(int(each) for each in known if each))


def _ends(tokenizer: Any, config: Any, generation: Any) -> tuple[int, ...]:  # noqa: ANN401
    """Return the tokens that any of them says an answer ends by."""
    said = [getattr(each, "eos_token_id", None) for each in (generation, config, tokenizer)]
    numbers = [each if isinstance(each, list) else [each] for each in said if each is not None]
    return tuple(dict.fromkeys(number for each in numbers for number in each))


def _digest(files: Files) -> str:
    found = hashlib.sha256()
    for name in sorted(files):
        data = content_in(files, name)
        found.update(name.encode() + b"\0" + hashlib.sha256(data).digest())
    return found.hexdigest()
