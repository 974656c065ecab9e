"""Options of the CLIP pools; free of torch, so that listing them costs nothing."""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from fusion_core import ComponentConfig, InputPath, ModelPath, ModelPaths


def _with_place(template: str) -> str:
    try:
        filled = template.format("cat")
    except (IndexError, KeyError, ValueError) as error:
        raise ValueError("its only braces may be {}, the place of the class name") from error
    if filled == template:
        raise ValueError("it has no {}, the place of the class name")
    return template


Template = Annotated[str, AfterValidator(_with_place)]
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

#: The tasks of a family unless others are named.
DEFAULT_SET = "ta8"
#: CLIP's own prompt
PHOTO = "a photo of a {}."


class ClipConfig(ComponentConfig):
    """A base and experts: directories that `save_pretrained` wrote, or names on the hub."""

    base: ModelPath
    """The model that the experts were fine-tuned from, a CLIPModel or CLIPVisionModel: a directory,
    or org/name@revision on the hub."""
    models: ModelPaths
    """The experts: a mapping of names to any of these, or a list."""


class FamilyConfig(ComponentConfig):
    """CLIP's base and the published experts of some tasks, from the hub."""

    tasks: TaskNames = Field(default=[DEFAULT_SET])
    """The tasks whose experts are fused, in this order; ta8, tall14 and tall20 stand for sets."""


class Dataset(ComponentConfig):
    """One task's images, in parquet files as the `datasets` library writes them."""

    classnames: Annotated[list[str], Field(min_length=1)]
    """What the labels 0, 1, ... mean, in words that the text tower reads."""
    test: InputPath
    """The images that accuracy is measured on."""
    unlabeled: InputPath | None = None
    """The images that adaptive algorithms see; their labels are never read."""
    train: InputPath | None = None
    """Labeled images for algorithms that need some."""
    templates: Templates | None = None
    """This task's prompts, in place of the pool's."""


class ClipClassificationConfig(ComponentConfig):
    """Image classification with the zero-shot heads of a CLIP model."""

    clip: ModelPath
    """A CLIPModel, a directory or org/name@revision on the hub: its text tower and projections make
    the heads, its preprocessor the pixels."""
    datasets: dict[str, Dataset] = Field(default={})
    """Tasks of your own by name: classnames, and the files test, unlabeled and train."""
    tasks: TaskNames | None = None
    """Which tasks, in this order: your own, or data sets on the hub (mnist, ...; ta8, tall14 and
    tall20 stand for sets); default: all of your own, without any ta8."""
    templates: Templates = Field(default=[PHOTO])
    """Prompts with {} for the class name, of your own tasks; a class is the mean over them."""
    corruption: Corruption | None = None
    """Measure on corrupted test images, of the data sets on the hub that have some."""
    transductive: bool = True
    """Where a task has no unlabeled file, adapt on its test images, without their labels."""
    limit: Count | None = None
    """A quick look: only the first test images of each task, and the files that hold them."""
    batch_size: Count = 50
    """At most so many images a step when measuring accuracy."""


class FamilyTasksConfig(ComponentConfig):
    """Image classification on data sets from the hub, with the heads of a family's base."""

    tasks: TaskNames = Field(default=[DEFAULT_SET])
    """Which tasks, in this order, whether or not their experts are fused; ta8, tall14 and tall20
    stand for sets; default: those whose experts the model pool of this name fuses."""
    corruption: Corruption | None = None
    """Measure on corrupted test images; stanford-cars, eurosat, resisc45 and gtsrb have some."""
    transductive: bool = True
    """Adapt on the test images, without their labels; there are no others."""
    limit: Count | None = None
    """A quick look: only the first test images of each task, and the files that hold them."""
    batch_size: Count = 50
    """At most so many images a step when measuring accuracy."""
