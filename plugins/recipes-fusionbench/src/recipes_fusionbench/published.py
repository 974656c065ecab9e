"""The published models and tasks that both FusionBench and fusion-core know by name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

#: The twenty tasks, with the repositories of their images, and the sets TA8 to TALL20.
TASKS: dict[str, tuple[str, ...]] = {
    "sun397": ("tanganke/sun397",),
    "stanford-cars": ("tanganke/stanford_cars",),
    "resisc45": ("tanganke/resisc45",),
    "eurosat": ("tanganke/eurosat",),
    "svhn": ("svhn", "ufldl-stanford/svhn"),
    "gtsrb": ("tanganke/gtsrb",),
    "mnist": ("mnist", "ylecun/mnist"),
    "dtd": ("tanganke/dtd",),
    "oxford_flowers102": ("dpdl-benchmark/oxford_flowers102",),
    "pcam": ("1aurent/PatchCamelyon",),
    "fer2013": ("clip-benchmark/wds_fer2013",),
    "oxford-iiit-pet": ("timm/oxford-iiit-pet",),
    "stl10": ("tanganke/stl10",),
    "cifar100": ("tanganke/cifar100",),
    "cifar10": ("tanganke/cifar10",),
    "food101": ("ethz/food101",),
    "fashion_mnist": ("zalando-datasets/fashion_mnist",),
    "emnist_letters": ("tanganke/emnist_letters",),
    "kmnist": ("tanganke/kmnist",),
    "rendered-sst2": ("nateraw/rendered-sst2",),
}
#: The function that loads the one data set that is no plain repository.
FER2013 = "fusion_bench.dataset.fer2013.load_fer2013"
#: Splits of test images with a corruption, and the tasks whose data sets have them.
CORRUPTIONS = frozenset(
    {
        *("contrast", "gaussian_noise", "impulse_noise", "jpeg_compression", "motion_blur"),
        *("pixelate", "spatter"),
    }
)
CORRUPTED_TASKS = frozenset({"stanford-cars", "eurosat", "resisc45", "gtsrb"})
GLUE = ("cola", "mnli", "mrpc", "qnli", "qqp", "rte", "sst2", "stsb")


@dataclass(frozen=True)
class Family:
    """A published base with one expert per task, and the pool that has them."""

    kind: str
    pool: str
    bases: tuple[str, ...]
    #: the experts' repositories, with {task} for the task
    expert: str
    tasks: Sequence[str]
    variant: str | None = None

    def tasks_of(self, base: str | None, experts: Mapping[str, str]) -> list[str] | None:
        """Return the tasks of experts, by their names; None unless all are published ones."""
        repositories = {self.expert.format(task=task): task for task in self.tasks}
        tasks = [repositories.get(path, "") for path in experts.values() if base in self.bases]
        named = [name.removeprefix("glue-") for name in experts]
        return tasks if experts and tasks == named else None


#: Variants of Flan-T5 and the endings of their experts' names.
_VARIANTS = {"base": "", "base-lora": "_lora-16", "large-lora": "_lora-16"}
FAMILIES = (
    *(
        Family(
            "clip",
            f"clip-vit-{short}",
            (f"openai/clip-vit-{size}",),
            f"tanganke/clip-vit-{size}_{{task}}",
            tuple(TASKS),
        )
        for short, size in {
            "b32": "base-patch32",
            "b16": "base-patch16",
            "l14": "large-patch14",
        }.items()
    ),
    Family(
        "gpt2",
        "gpt2-glue",
        ("gpt2", "openai-community/gpt2"),
        "tanganke/gpt2_{task}",
        tuple(task for task in GLUE if task != "stsb"),
    ),
    *(
        Family(
            "seq2seq-lm",
            "flan-t5-glue",
            (f"google/flan-t5-{variant.partition('-')[0]}",),
            f"tanganke/flan-t5-{variant.partition('-')[0]}_glue-{{task}}{suffix}",
            GLUE,
            variant,
        )
        for variant, suffix in _VARIANTS.items()
    ),
)


def test_split(task: str) -> str:
    """Return the name of the split of a task that is tested."""
    return "validation" if task == "food101" else "test"


_SETS = {"ta8": 8, "tall14": 14, "tall20": 20}


def expand(names: Sequence[str]) -> list[str]:
    """Return tasks, with the name of a set replaced by its tasks."""
    return [task for name in names for task in [*TASKS][: _SETS.get(name, 0)] or [name]]


def shorten(tasks: Sequence[str]) -> list[str]:
    """Return tasks by the name of their set, if they are one in its order."""
    names = [name for name, count in _SETS.items() if [*tasks] == [*TASKS][:count]]
    return names or [*tasks]
