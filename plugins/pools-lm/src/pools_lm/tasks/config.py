"""Options of tasks on texts; free of torch, so that listing them costs nothing."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from string import Formatter
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Discriminator, Field, Tag, WrapValidator

from fusion_core import ComponentConfig, InputPath

#: A split of a data set on the hub begins with this, where a file's path may stand, too.
HUB = "hub:"


def _or_on_hub(value: Any, path: Callable[[Any], str]) -> str:  # noqa: ANN401 - as it is given
    is_on_hub = isinstance(value, str) and value.startswith(HUB)
    return str(value) if is_on_hub else path(value)


Examples = Annotated[InputPath, WrapValidator(_or_on_hub)]
Count = Annotated[int, Field(ge=1)]
TaskNames = Annotated[list[str], Field(min_length=1)]


def _compiled(pattern: str) -> str:
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"it is not a regular expression: {error}") from error
    return pattern


def _template(text: str) -> str:
    try:
        parts = [part[1:] for part in Formatter().parse(text) if part[1] is not None]
    except ValueError as error:
        raise ValueError(f"{error}; a brace that is meant is written twice") from error
    for name, form, conversion in parts:
        if conversion or "{" in str(form) or not str(name).isidentifier():
            raise ValueError("between braces is the name of a field, or {name:.1f} with a format")
    return text


#: A text with the names of a line's fields in braces.
Template = Annotated[str, AfterValidator(_template)]


class MeasuredLines(ComponentConfig):
    """One task's test examples: a file of JSON lines (.jsonl) or parquet, a field a column.

    In a file's place may stand a split of a data set on the hub, hub:org/name/configuration/split.
    """

    test: Examples
    """What is measured on."""


class Lines(MeasuredLines):
    """One task's examples: files of JSON lines (.jsonl) or parquet, a field a column.

    In a file's place may stand a split of a data set on the hub, hub:org/name/configuration/split.
    """

    kind: str
    """How a model is measured."""
    unlabeled: Examples | None = None
    """What adaptive algorithms see; an answer in it is part of the text, and no label."""
    train: Examples | None = None
    """Labeled examples, for algorithms that need some and for `shots`."""


class TextLines(Lines):
    """Texts whose likelihood is measured: JSON lines, parquet, or plain text (.txt), one a file."""

    kind: Literal["perplexity"] = "perplexity"
    """How a model is measured."""
    text: Template = "{text}"
    """The text, of the line's fields."""


class QuestionLines(Lines):
    """Examples with a prompt and an answer."""

    prompt: Template
    """The question, of the line's fields."""
    shots: Annotated[int, Field(ge=0)] = 0
    """So many of the first training examples stand before each question, with their answers."""
    system: str | None = None
    """A message of the system before the conversation."""
    answer: str = "answer"
    """The field that holds the answer."""


class ChoiceLines(QuestionLines):
    """Questions with a few answers, one of which is right."""

    kind: Literal["choice"] = "choice"
    """How a model is measured."""
    prompt: Template = "{question}"
    """The question, of the line's fields."""
    choices: str | list[Template] = "choices"
    """The field that lists the answers, or the answers themselves where they are always the
    same. The right one is given by its place, from 0, or as it stands there."""
    normalise: Literal["bytes", "tokens", "none"] = "bytes"
    """What the log-likelihood of an answer is divided by."""


class GenerateLines(QuestionLines):
    """Questions that a model answers in its own words."""

    kind: Literal["generate"] = "generate"
    """How a model is measured."""
    prompt: Template = "{prompt}"
    """The question, of the line's fields."""
    answer: Template = "answer"
    """The field that holds the answer, or a list of right ones; or the answer itself, of the line's
    fields in braces."""
    names: list[str] | None = None
    """What answers 0, 1, ... are called, where lines have numbers of classes."""
    pattern: Annotated[str, AfterValidator(_compiled)] | None = None
    """A regular expression: its first group, or all that it finds, is the answer; without one, all
    that is said. Where it finds nothing, the answer is invalid."""
    metric: Literal["exact_match", "spearman"] = "exact_match"
    """The fraction of right answers, without regard to outer spaces; or, for numbers, the rank
    correlation with those that are right."""
    max_tokens: Count = 64
    """An answer that has not ended by then is cut."""
    stop: list[str] = Field(default=[])
    """Texts that end an answer, besides the tokens that the model ends by."""


_KINDS = {"perplexity": TextLines, "choice": ChoiceLines, "generate": GenerateLines}


def _kind(value: Any) -> str | None:  # noqa: ANN401 - whatever a recipe holds
    kind = value.get("kind") if isinstance(value, Mapping) else getattr(value, "kind", None)
    known = _KINDS.get(kind) if isinstance(kind, str) else None
    return None if known is None else f"[{known.__name__}]"


#: A task of any kind; in brackets what errors do not mention.
AnyLines = Annotated[
    Annotated[TextLines, Tag("[TextLines]")]
    | Annotated[ChoiceLines, Tag("[ChoiceLines]")]
    | Annotated[GenerateLines, Tag("[GenerateLines]")],
    Discriminator(
        _kind,
        custom_error_type="kind",
        custom_error_message=f"its kind is none of: {', '.join(_KINDS)}",
    ),
]


class MeasuringConfig(ComponentConfig):
    """Which tasks, and how they are measured."""

    tasks: TaskNames | None = None
    """Which tasks, in this order; default: those whose experts the model pool of this name fuses,
    or all."""
    limit: Count | None = None
    """A quick look: only the first test examples of each task."""
    batch_size: Count = 16
    """Examples at once when measuring."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """What models are measured in."""


class LinesTasksConfig(MeasuringConfig):
    """Tasks of your own, each with its files."""

    datasets: Annotated[Mapping[str, MeasuredLines], Field(min_length=1)]
    """The tasks by name: files (JSON lines, parquet), and how to read them."""


class LanguageTasksConfig(LinesTasksConfig):
    """Tasks of your own, of any kind."""

    datasets: Annotated[Mapping[str, AnyLines], Field(min_length=1)]
    """The tasks by name: `kind` is perplexity, choice or generate; files, and how to read them."""
    chat: bool | None = None
    """Whether questions go through the tokenizer's chat template; default: if it has one."""
    length: Count | None = None
    """Tokens that a model reads at most; longer prompts lose their beginning, longer texts are cut
    into windows. Default: as many as the model has positions, 2048 at most."""
    transductive: bool = True
    """Where a task has no unlabeled file, adapt on its test examples, without their answers."""


class PerplexityTasksConfig(LanguageTasksConfig):
    """Texts whose likelihood is measured, in bits per byte."""

    datasets: Annotated[Mapping[str, TextLines], Field(min_length=1)]
    """The texts by name: files (JSON lines, parquet, plain text), and how to read them."""


class ChoiceTasksConfig(LanguageTasksConfig):
    """Questions with a few answers, of which a model finds one the likeliest."""

    datasets: Annotated[Mapping[str, ChoiceLines], Field(min_length=1)]
    """The tasks by name: files (JSON lines, parquet), and how to read them."""


class GenerateTasksConfig(LanguageTasksConfig):
    """Questions that a model answers in its own words."""

    datasets: Annotated[Mapping[str, GenerateLines], Field(min_length=1)]
    """The tasks by name: files (JSON lines, parquet), and how to read them."""
