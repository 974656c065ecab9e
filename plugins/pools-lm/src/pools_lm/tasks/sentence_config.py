"""Options of sentence tasks. Importing them does not import torch."""

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field

from fusion_core import ModelPath
from pools_lm.tasks.config import Count, Examples, LinesTasksConfig, MeasuredLines, Template


class ClassLines(MeasuredLines):
    """One task's texts, or pairs of texts, with their classes: JSON lines (.jsonl) or parquet."""

    unlabeled: Examples | None = None
    """Adapt on these examples. Classes in them are never read."""
    train: Examples | None = None
    """Provide labeled examples, which a probe is fitted to."""
    text: Template = "{text}"
    """Build the text from a line's fields."""
    pair: Template | None = None
    """Build the second text of a pair from a line's fields. The tokenizer joins both texts."""
    label: str = "label"
    """Name the field with the class: its number, from 0, or its name."""
    names: Annotated[list[str], Field(min_length=2)] | None = None
    """Name the classes 0, 1, ... Default: the names in the config.json of the head."""
    head: ModelPath | None = None
    """Classify these texts with the head of this classifier on the evaluated encoder: a directory,
    or org/name@revision on the hub. Default: the pool's `head`."""


class SimilarityLines(MeasuredLines):
    """Pairs of sentences with a similarity score: JSON lines or parquet."""

    first: Template = "{sentence1}"
    """Build the first sentence from a line's fields."""
    second: Template = "{sentence2}"
    """Build the second sentence from a line's fields."""
    score: str = "score"
    """Name the field with the score. Higher means more similar, on any scale."""


class SentenceTasksConfig(LinesTasksConfig):
    """Tasks on sentences."""

    length: Count | None = None
    """Truncate texts to this number of tokens. Default: the limit in the model's directory, or the
    model's positions, at most 2048."""
    prompt: str | None = None
    """Put this prompt of config_sentence_transformers.json before every text; '' for none. Default:
    the default prompt in that file, if any."""


class ClassificationConfig(SentenceTasksConfig):
    """Classification of texts."""

    datasets: Annotated[Mapping[str, ClassLines], Field(min_length=1)]
    """Define the tasks by name: files (JSON lines, parquet) and how to read them."""
    head: Literal["model", "expert", "probe", "names"] | None = None
    """Classify with this head. `model`: the model's own head. `expert`: the head of the task's
    expert on the evaluated encoder. `probe`: a logistic regression on embeddings of the train
    lines. `names`: the nearest embedding of a class name. Default: model in the pool
    sequence-classification, otherwise probe."""
    transductive: bool = True
    """Adapt on the test examples, without labels, if a task has no unlabeled file."""


class SimilarityConfig(SentenceTasksConfig):
    """Pairs of sentences whose similarity is measured."""

    datasets: Annotated[Mapping[str, SimilarityLines], Field(min_length=1)]
    """Define the tasks by name: files (JSON lines, parquet) and how to read them."""
