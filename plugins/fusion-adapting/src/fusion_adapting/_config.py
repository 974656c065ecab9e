"""Options of methods that search on unlabeled examples. Imports nothing heavy."""

from typing import Annotated, Literal, Self

from pydantic import AfterValidator, ByteSize, Field, model_validator

from fusion_core import ComponentConfig

#: Adam divides a rate by 1 - 0.9 in fp32, so one near the largest fp32 number fails.
LearningRate = Annotated[float, Field(gt=0, le=1e30)]


def _check_unique(names: list[str]) -> list[str]:
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"named more than once: {', '.join(repeated)}")
    return names


class UnlabeledConfig(ComponentConfig):
    """The examples to learn from."""

    batch_size: Annotated[int, Field(ge=1)] = 16
    """Unlabeled examples per task and step. A task with fewer gives all of them."""
    tasks: Annotated[list[str], Field(min_length=1), AfterValidator(_check_unique)] | None = None
    """Tasks to adapt on; default: the tasks of the experts, or all tasks if none matches."""
    adapt_split: Literal["unlabeled", "test", "holdout"] = "unlabeled"
    """Adapt on these examples. `unlabeled`: the unlabeled split; in some pools, these are the test
    examples without labels. `test`: the test examples without labels. `holdout`: one half of the
    test examples, while only the other half is measured."""
    examples: Annotated[int, Field(ge=1)] | None = None
    """Number of examples per task to adapt on, repeatedly; default: all."""


class SearchConfig(UnlabeledConfig):
    """How to search, and on which examples."""

    steps: Annotated[int, Field(ge=0)] = 100
    """Number of search steps."""
    lr: LearningRate = 0.01
    """Learning rate of Adam: about how far a coefficient moves per step."""
    schedule: Literal["cosine", "constant"] = "constant"
    """Schedule of the learning rate: constant, or down to zero along a cosine."""
    objective: Literal["entropy", "teacher"] = "entropy"
    """Minimise the entropy of the predictions (entropy), or their divergence from the predictions
    of each task's expert (teacher)."""
    retain: Annotated[list[str], AfterValidator(_check_unique)] = Field(default=[])
    """With `teacher`: further tasks, on which the base teaches, such as general prompts. They need
    no expert. The merge then forgets less of the base."""
    temperature: Annotated[float, Field(gt=0)] = 1.0
    """With `teacher`: temperature that softens both predictions before they are compared."""
    standardise: bool | None = None
    """With `teacher`, for classifiers: scale the logits of each batch and task to the same size
    instead of softening them. The merge then learns the order of the classes, however sure the
    expert is. The option does not change how answers of language models are compared. Default: true
    after a transform that made the task vectors isotropic, because their logits are small."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Precision of the passes: fp32, or bf16 autocast. Coefficients and sums stay in fp32."""
    shared_pass: ByteSize = ByteSize(512_000_000)
    """Let tasks share a pass while its activations take at most this many bytes."""
    gradient_checkpointing: bool = False
    """Keep only the inputs of each layer, and run the layer again in the backward pass. Activations
    then take the memory of one layer, and a step takes about a third more time. Tasks do not share
    passes."""
    save_every: Annotated[int, Field(ge=1)] = 10
    """Steps between two saved states, from which `--resume` continues."""

    @model_validator(mode="after")
    def _check_retain(self) -> Self:
        if self.retain and self.objective != "teacher":
            raise ValueError("retain needs a teacher: set objective to teacher")
        return self
