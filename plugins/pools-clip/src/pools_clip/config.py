"""Options of the CLIP pools. Importing them does not import torch."""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from fusion_core import ComponentConfig, InputPath, ModelPath, ModelPaths


def _check_template(template: str) -> str:
    try:
        filled = template.format("cat")
    except (IndexError, KeyError, ValueError) as error:
        raise ValueError("the only allowed braces are {}, for the class name") from error
    if filled == template:
        raise ValueError("missing {} for the class name")
    return template


Template = Annotated[str, AfterValidator(_check_template)]
Templates = Annotated[list[Template], Field(min_length=1)]
TaskNames = Annotated[list[str], Field(min_length=1)]
Count = Annotated[int, Field(ge=1)]

Corruption = Literal[
    "contrast",
    "gaussian_noise",
    "impulse_noise",
    "jpeg_compression",
    "motion_blur",
    "pixelate",
    "spatter",
]

#: The default tasks of a family.
DEFAULT_SET = "ta8"
#: CLIP's own prompt.
PHOTO = "a photo of a {}."


class ClipConfig(ComponentConfig):
    """A base and experts: directories written by `save_pretrained`, or names on the hub."""

    base: ModelPath
    """Name the model that was fine-tuned, a CLIPModel or CLIPVisionModel: a directory, or
    org/name@revision on the hub."""
    models: ModelPaths
    """Name the experts in the same way: a mapping from names, or a list."""


class FamilyConfig(ComponentConfig):
    """CLIP's base and its published experts, from the hub."""

    tasks: TaskNames = Field(default=[DEFAULT_SET])
    """Merge the experts of these tasks, in this order. ta8, tall14 and tall20 are sets of tasks."""


class Dataset(ComponentConfig):
    """One task's images, in parquet files of the `datasets` library."""

    classnames: Annotated[list[str], Field(min_length=1)]
    """Name the classes 0, 1, ... in words for the text tower."""
    test: InputPath
    """Measure the accuracy on these images."""
    unlabeled: InputPath | None = None
    """Adapt on these images. Their labels are never read."""
    train: InputPath | None = None
    """Provide labeled images, for algorithms that need them."""
    templates: Templates | None = None
    """Use these prompts for this task instead of the pool's."""


class ClipClassificationConfig(ComponentConfig):
    """Image classification with the zero-shot heads of a CLIP model."""

    clip: ModelPath
    """Name a CLIPModel: a directory, or org/name@revision on the hub. Its text tower and
    projections define the heads, its preprocessor the pixels."""
    datasets: dict[str, Dataset] = Field(default={})
    """Define your own tasks by name: classnames, and the files test, unlabeled and train."""
    tasks: TaskNames | None = None
    """Evaluate these tasks, in this order: your own, or data sets on the hub (mnist, ...). ta8,
    tall14 and tall20 name sets of tasks. Default: all of your own, or ta8 if there are none."""
    templates: Templates = Field(default=[PHOTO])
    """Use these prompts for your own tasks, with {} for the class name. A class is the mean over
    its prompts."""
    corruption: Corruption | None = None
    """Evaluate on test images with this corruption. Some data sets on the hub have them."""
    transductive: bool = True
    """Adapt on the test images, without labels, if a task has no unlabeled file."""
    limit: Count | None = None
    """Evaluate only the first test images of each task, and read only the files with them."""
    batch_size: Count = 50
    """Limit the number of images per batch in evaluation."""


class FamilyTasksConfig(ComponentConfig):
    """Image classification on data sets from the hub, with the heads of a family's base."""

    tasks: TaskNames = Field(default=[DEFAULT_SET])
    """Evaluate these tasks, in this order. ta8, tall14 and tall20 name sets of tasks. Default: the
    tasks whose experts the model pool of the same name merges."""
    corruption: Corruption | None = None
    """Evaluate on test images with this corruption: stanford-cars, eurosat, resisc45 and gtsrb."""
    transductive: bool = True
    """Adapt on the test images, without labels: the data sets have no other unlabeled images."""
    limit: Count | None = None
    """Evaluate only the first test images of each task, and read only the files with them."""
    batch_size: Count = 50
    """Limit the number of images per batch in evaluation."""
