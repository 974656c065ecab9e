"""Options of the CLIP pools; free of torch, so that listing them costs nothing."""

import os
from typing import Annotated

from pydantic import AfterValidator, BeforeValidator, Field

from fusion_core.checkpoints_config import named_after_paths
from fusion_core.config import ComponentConfig


def _as_text(value: object) -> object:
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def _with_place(template: str) -> str:
    try:
        filled = template.format("cat")
    except (IndexError, KeyError, ValueError) as error:
        raise ValueError("its only braces may be {}, the place of the class name") from error
    if filled == template:
        raise ValueError("it has no {}, the place of the class name")
    return template


PathName = Annotated[str, BeforeValidator(_as_text), Field(min_length=1)]
Template = Annotated[str, AfterValidator(_with_place)]
Templates = Annotated[list[Template], Field(min_length=1)]
TaskNames = Annotated[list[str], Field(min_length=1)]
Count = Annotated[int, Field(ge=1)]

#: CLIP's own prompt
PHOTO = "a photo of a {}."


class ClipConfig(ComponentConfig):
    """A base and experts, each a directory that `save_pretrained` wrote."""

    base: PathName
    """The model that the experts were fine-tuned from: a CLIPModel or CLIPVisionModel directory."""
    models: Annotated[dict[str, PathName], BeforeValidator(named_after_paths)]
    """The experts: a mapping of names to directories, or a list of directories."""


class Dataset(ComponentConfig):
    """One task's images, in parquet files as the `datasets` library writes them."""

    classnames: Annotated[list[str], Field(min_length=1)]
    """What the labels 0, 1, ... mean, in words that the text tower reads."""
    test: PathName
    """The images that accuracy is measured on."""
    unlabeled: PathName | None = None
    """The images that adaptive algorithms see; their labels are never read."""
    train: PathName | None = None
    """Labeled images for algorithms that need some."""
    templates: Templates | None = None
    """This task's prompts, in place of the pool's."""


class ClipClassificationConfig(ComponentConfig):
    """Image classification with the zero-shot heads of a CLIP model."""

    clip: PathName
    """A CLIPModel directory: its text tower and projections make the heads, its preprocessor the
    pixels."""
    datasets: Annotated[dict[str, Dataset], Field(min_length=1)]
    """The tasks by name: classnames, and the files test, unlabeled and train."""
    tasks: TaskNames | None = None
    """Which of the datasets, in this order; default: all."""
    templates: Templates = Field(default=[PHOTO])
    """Prompts with {} for the class name; a class's embedding is the mean over them."""
    transductive: bool = True
    """Where a task has no unlabeled file, adapt on its test images, without their labels."""
    limit: Count | None = None
    """A quick look: only the first test images of each task."""
    batch_size: Count = 50
    """Images a step when measuring accuracy."""
