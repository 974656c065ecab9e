"""Options of text tasks. Importing them does not import torch."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from string import Formatter
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Discriminator, Field, Tag, WrapValidator

from fusion_core import ComponentConfig, InputPath

#: Prefix of a data set's split on the hub, which can replace a file's path.
HUB = "hub:"


def _keep_hub_name(value: Any, validate_path: Callable[[Any], str]) -> str:  # noqa: ANN401 - any input
    if isinstance(value, str) and value.startswith(HUB):
        return value
    return validate_path(value)


Examples = Annotated[InputPath, WrapValidator(_keep_hub_name)]
Count = Annotated[int, Field(ge=1)]
TaskNames = Annotated[list[str], Field(min_length=1)]


def _check_pattern(pattern: str) -> str:
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"invalid regular expression: {error}") from error
    return pattern


#: A field, or a part of it by numbers and names. Attributes are refused: they lead out of the data.
_FIELD = re.compile(r"[^\W\d]\w*(\[[^][{}]+\])*")


def _check_template(text: str) -> str:
    try:
        parts = [part[1:] for part in Formatter().parse(text) if part[1] is not None]
    except ValueError as error:
        raise ValueError(f"{error}; write a literal brace twice") from error
    for name, form, conversion in parts:
        if conversion or "{" in str(form) or not _FIELD.fullmatch(str(name)):
            raise ValueError(
                "expected the name of a field between braces, a part of it such as "
                "{messages[0][content]}, or a format such as {name:.1f}"
            )
    return text


#: A text with a line's fields, or parts of them, in braces.
Template = Annotated[str, AfterValidator(_check_template)]


class MeasuredLines(ComponentConfig):
    """One task's test examples: a file of JSON lines (.jsonl) or parquet, one field per column.

    A split of a data set on the hub can replace the file: hub:org/name/configuration/split.
    """

    test: Examples
    """Evaluate on these examples."""


class Lines(MeasuredLines):
    """One task's examples: files of JSON lines (.jsonl) or parquet, one field per column.

    A split of a data set on the hub can replace a file: hub:org/name/configuration/split.
    """

    kind: str
    """Choose how the task is measured."""
    unlabeled: Examples | None = None
    """Adapt on these examples. An answer in them is part of the text, not a label."""
    train: Examples | None = None
    """Provide labeled examples, for algorithms that need them and for `shots`."""


class TextLines(Lines):
    """Texts whose likelihood is measured: JSON lines, parquet, or plain text (.txt)."""

    kind: Literal["perplexity"] = "perplexity"
    """Choose how the task is measured."""
    text: Template = "{text}"
    """Build the text from a line's fields."""


class PromptLines(Lines):
    """Prompts, of which the task's expert or the base says what follows."""

    kind: Literal["agreement"] = "agreement"
    """Choose how the task is measured."""
    prompt: Template = "{prompt}"
    """Build the prompt from a line's fields."""
    system: str | None = None
    """Start the conversation with this system message."""


class QuestionLines(Lines):
    """Examples with a prompt and an answer."""

    prompt: Template
    """Build the question from a line's fields."""
    shots: Annotated[int, Field(ge=0)] = 0
    """Put this number of training examples, with their answers, before each question."""
    system: str | None = None
    """Start the conversation with this system message."""
    answer: str = "answer"
    """Name the field with the answer."""


class ChoiceLines(QuestionLines):
    """Multiple-choice questions with one right answer."""

    kind: Literal["choice"] = "choice"
    """Choose how the task is measured."""
    prompt: Template = "{question}"
    """Build the question from a line's fields."""
    choices: str | list[Template] = "choices"
    """Name the field with the list of choices, or list the choices if they are the same for all
    lines. The answer is the index of the right choice, from 0, or its text."""
    normalise: Literal["bytes", "tokens", "none"] = "bytes"
    """Divide the log-likelihood of a choice by its length in these units."""


class GenerateLines(QuestionLines):
    """Questions that a model answers by generation."""

    kind: Literal["generate"] = "generate"
    """Choose how the task is measured."""
    prompt: Template = "{prompt}"
    """Build the question from a line's fields."""
    answer: Template = "answer"
    """Name the field with the answer or with a list of right answers, or build the answer from
    fields in braces."""
    names: list[str] | None = None
    """Name the answers 0, 1, ... that lines give by number or by name."""
    pattern: Annotated[str, AfterValidator(_check_pattern)] | None = None
    """Extract the answer with this regular expression: its first group, or the whole match. Without
    a match, the answer is invalid. Default: the whole text."""
    metric: Literal["exact_match", "spearman"] = "exact_match"
    """Measure the fraction of right answers, ignoring outer spaces, or for numbers their rank
    correlation with the right ones."""
    max_tokens: Count = 64
    """Stop an answer after this number of tokens."""
    stop: list[Annotated[str, Field(min_length=1)]] = Field(default=[])
    """Stop an answer at these texts too, not just at the model's end tokens."""


_KINDS = {
    "perplexity": TextLines,
    "choice": ChoiceLines,
    "generate": GenerateLines,
    "agreement": PromptLines,
}


def _tag_of(value: Any) -> str | None:  # noqa: ANN401 - any value of a recipe
    kind = value.get("kind") if isinstance(value, Mapping) else getattr(value, "kind", None)
    lines = _KINDS.get(kind) if isinstance(kind, str) else None
    return None if lines is None else f"[{lines.__name__}]"


#: A task of any kind. Errors omit the names in brackets.
AnyLines = Annotated[
    Annotated[TextLines, Tag("[TextLines]")]
    | Annotated[ChoiceLines, Tag("[ChoiceLines]")]
    | Annotated[GenerateLines, Tag("[GenerateLines]")]
    | Annotated[PromptLines, Tag("[PromptLines]")],
    Discriminator(
        _tag_of,
        custom_error_type="kind",
        custom_error_message=f"unknown kind, expected one of: {', '.join(_KINDS)}",
    ),
]


class MeasuringConfig(ComponentConfig):
    """The selection of tasks, and how they are evaluated."""

    tasks: TaskNames | None = None
    """Evaluate these tasks, in this order. Default: the tasks whose experts the model pool of the
    same name merges, or all."""
    limit: Count | None = None
    """Evaluate only this number of test examples per task: the first ones, always the same."""
    batch_size: Count = 16
    """Set the number of examples per batch in evaluation. Examples of similar length share a
    batch."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Evaluate models in this dtype. `auto`: bfloat16 if most of a model's values are stored in it,
    and float32 otherwise."""


class ReadingConfig(MeasuringConfig):
    """How models read texts."""

    chat: bool | None = None
    """Format questions with the tokenizer's chat template. Default: if there is one."""
    length: Count | None = None
    """Limit questions and texts to this number of tokens. Longer questions lose their start, longer
    texts are split into windows. Default: the model's positions, at most 2048."""


class SamplingConfig(MeasuringConfig):
    """How models write prompts, for tasks without data of their own."""

    prompts: Literal["own", "experts", "base"] = "own"
    """Adapt on the tasks' own unlabeled examples, or on prompts that each task's expert or the base
    writes."""
    sampled: Count = 64
    """Let models write this number of prompts per task."""
    prompt_tokens: Count = 48
    """Stop a prompt that a model writes after this number of tokens."""
    answer_tokens: Annotated[int, Field(ge=0)] = 24
    """Let the task's expert answer an unlabeled prompt in at most this number of tokens. With 0
    there is no answer, and methods see only the prediction of its first token."""
    sampling_seed: Annotated[int, Field(ge=0)] = 0
    """Draw prompts from this seed."""


class AgreementConfig(SamplingConfig, ReadingConfig):
    """One task per expert, on prompts that models write."""

    prompts: Literal["experts", "base"] = "experts"
    """Let each task's expert, or the base, write the prompts."""
    answer_tokens: Count = 24
    """Stop the expert's answer to such a prompt after this number of tokens."""


class LinesTasksConfig(MeasuringConfig):
    """Your own tasks, each with its files."""

    datasets: Annotated[Mapping[str, MeasuredLines], Field(min_length=1)]
    """Define the tasks by name: files (JSON lines, parquet) and how to read them."""


class LanguageTasksConfig(SamplingConfig, ReadingConfig, LinesTasksConfig):
    """Your own tasks, of any kind."""

    datasets: Annotated[Mapping[str, AnyLines], Field(min_length=1)]
    """Define the tasks by name: a `kind` (perplexity, choice, generate or agreement), files, and
    how to read them."""
    transductive: bool = True
    """Adapt on the test examples, without answers, if a task has no unlabeled file."""


class PerplexityTasksConfig(LanguageTasksConfig):
    """Texts whose likelihood is measured, in bits per byte."""

    datasets: Annotated[Mapping[str, TextLines], Field(min_length=1)]
    """Define the texts by name: files (JSON lines, parquet, plain text) and how to read them."""


class ChoiceTasksConfig(LanguageTasksConfig):
    """Multiple-choice questions, answered by the most likely choice."""

    datasets: Annotated[Mapping[str, ChoiceLines], Field(min_length=1)]
    """Define the tasks by name: files (JSON lines, parquet) and how to read them."""


class GenerateTasksConfig(LanguageTasksConfig):
    """Questions that a model answers by generation."""

    datasets: Annotated[Mapping[str, GenerateLines], Field(min_length=1)]
    """Define the tasks by name: files (JSON lines, parquet) and how to read them."""
