"""Options of tasks on sentences; free of torch, so that listing them costs nothing."""

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field

from fusion_core import ModelPath
from pools_lm.tasks.config import Count, Examples, LinesTasksConfig, MeasuredLines, Template


class ClassLines(MeasuredLines):
    """One task's texts, or pairs of texts, with their classes: JSON lines (.jsonl) or parquet."""

    unlabeled: Examples | None = None
    """What adaptive algorithms see; classes in it are never read."""
    train: Examples | None = None
    """Labeled examples, which a probe is fitted to."""
    text: Template = "{text}"
    """The text, of the line's fields."""
    pair: Template | None = None
    """The second of two texts, of the line's fields: both are read together, as the tokenizer puts
    pairs."""
    label: str = "label"
    """The field that holds the class: its number, from 0, or its name."""
    names: Annotated[list[str], Field(min_length=2)] | None = None
    """What classes 0, 1, ... are called; default: what config.json calls those of a head."""
    head: ModelPath | None = None
    """The classifier whose head puts these texts into classes, around the encoder that is measured:
    a directory, or org/name@revision on the hub. Default: as the pool's `head` says."""


class SimilarityLines(MeasuredLines):
    """Pairs of sentences with a number that says how alike they are: JSON lines or parquet."""

    first: Template = "{sentence1}"
    """One sentence, of the line's fields."""
    second: Template = "{sentence2}"
    """The other sentence, of the line's fields."""
    score: str = "score"
    """The field that holds the number; more is more alike, on any scale."""


class SentenceTasksConfig(LinesTasksConfig):
    """Tasks on sentences."""

    length: Count | None = None
    """Tokens that a model reads at most; longer texts lose their end. Default: as many as the
    directory says, or as the model has positions, 2048 at most."""
    prompt: str | None = None
    """Which of the prompts in config_sentence_transformers.json stands before every text; ''
    for none. Default: the one that is named there as the default, if any."""


class ClassificationConfig(SentenceTasksConfig):
    """Texts that are put into classes."""

    datasets: Annotated[Mapping[str, ClassLines], Field(min_length=1)]
    """The tasks by name: files (JSON lines, parquet), and how to read them."""
    head: Literal["model", "expert", "probe", "names"] | None = None
    """What puts a text into a class: the `model`'s own head; that of the task's own `expert`,
    around the encoder that is measured; a `probe`, a logistic regression on embeddings of the train
    lines; or `names`, the embedding of a class's name that is nearest. Default: model in the pool
    sequence-classification, elsewhere probe."""
    transductive: bool = True
    """Where a task has no unlabeled file, adapt on its test examples, without their labels."""


class SimilarityConfig(SentenceTasksConfig):
    """Pairs of sentences whose similarity is measured."""

    datasets: Annotated[Mapping[str, SimilarityLines], Field(min_length=1)]
    """The tasks by name: files (JSON lines, parquet), and how to read them."""
