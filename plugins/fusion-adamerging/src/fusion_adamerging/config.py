"""Options of AdaMerging and of the methods related to it."""

from abc import abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

from pydantic import AfterValidator, BeforeValidator, ByteSize, Field, model_validator

from fusion_core import ComponentConfig, InputPath, PerExpert

if TYPE_CHECKING:
    from fusion_adapting import Grain

_Presets = Mapping[str, Mapping[str, Any]]
_PAPER: Mapping[str, Any] = {
    "lr": 1e-3,
    "schedule": "constant",
    "init": 0.3,
    "precision": "fp32",
    "objective": "entropy",
}


#: Which elements share a coefficient, by granularity. `model` sums the gradients of `layer`.
_GRAINS: "Mapping[str, Grain]" = {
    "layer": "tensor",
    "model": "tensor",
    "row": "row",
    "column": "column",
    "row+column": "row+column",
    "rank": "rank",
}


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


class CoefficientSearchConfig(SearchConfig):
    """How to search for the coefficients of a linear merge."""

    init: float = 0.2
    """Initial value of every coefficient."""
    task_vectors: Literal["auto", "fp32", "bf16", "disk"] = "auto"
    """Where to hold task vectors: in memory as fp32 or bf16, or on disk and read in every step.
    After a transform, `disk` writes them to a temporary file next to the output, in fp32.
    `auto` holds a task vector of low rank, such as an adapter's, as factors if the factors of all
    experts together are smaller than the matrix. It holds all others as fp32."""

    @property
    @abstractmethod
    def grain(self) -> "Grain":
        """Which elements share a coefficient."""


class GranularityConfig(CoefficientSearchConfig):
    """How many coefficients each expert has."""

    granularity: Annotated[
        Literal["layer", "model", "row", "column", "row+column", "rank"],
        BeforeValidator(lambda given: "model" if given == "task" else given),
    ] = "layer"
    """The parts of an expert that have one coefficient each. `layer`: parameter tensors. `model`,
    or `task` as in AdaMerging's task-wise variant: the whole model. `row`, `column`: output rows or
    input columns of matrices. `row+column`: both; an entry has the mean of the two. `rank`:
    singular components of the task vector. Tensors without such parts have one coefficient."""
    clamp: bool = False
    """Clamp coefficients to [0, 1]."""

    @property
    def grain(self) -> "Grain":
        """The grain of the granularity."""
        return _GRAINS[self.granularity]


class CoefficientMergeConfig(CoefficientSearchConfig):
    """Coefficients to search for, or to read from a file."""

    coefficients: InputPath | None = None
    """Path of a coefficients.json of an earlier run, to use instead of a search."""


class AdaMergingConfig(GranularityConfig, CoefficientMergeConfig):
    """The learned coefficients, and the options of the search."""

    presets: ClassVar[_Presets] = {
        "paper": {**_PAPER, "steps": 1000, "clamp": False},
        "strong": {
            "granularity": "row+column",
            "objective": "teacher",
            "temperature": 4.0,
            "lr": 0.2,
            "init": 0.3,
            "shrinkage": 30.0,
        },
    }

    preset: Literal["default", "paper", "strong"] = "default"
    """Values for the options that are not given: the defaults, the paper's 1000 small steps, or
    those that came closest to the experts (docs/explanation/finer-coefficients.md)."""
    shrinkage: Annotated[float, Field(ge=0)] = 0.0
    """Weight of a penalty that draws the coefficients of rows, columns or components towards one
    coefficient per tensor, which is learned too. The penalty is the mean squared deviation times
    this weight, divided by the number of examples per task. Default: no penalty."""
    trim: bool = False
    """Trim the task vectors and elect signs first, as TIES does (AdaMerging++)."""
    density: PerExpert[Annotated[float, Field(gt=0, le=1)]] = 0.2
    """With `trim`: fraction of each task vector's entries to keep before the election."""


class AdaRankConfig(CoefficientMergeConfig):
    """Which singular components are on initially, and how to search."""

    presets: ClassVar[_Presets] = {"paper": {**_PAPER, "steps": 10_000, "rank": 1.0}}

    preset: Literal["default", "paper"] = "default"
    """Values for the options that are not given: the defaults, or the paper's 10,000 small
    steps."""
    rank: Annotated[float, Field(ge=0, le=1)] = 1.0
    """Fraction of each matrix's singular components, the largest first, that are on initially. The
    search can switch any component on or off, which takes at least 0.1 / lr steps."""

    @property
    def grain(self) -> "Grain":
        """Every singular component."""
        return "component"


class SyMergeConfig(GranularityConfig):
    """The learned coefficients, and the options of the search."""

    lr: LearningRate = 0.02
    """Learning rate of Adam: about how far a coefficient moves per step."""
    objective: Literal["entropy", "teacher"] = "teacher"
    """Minimise the entropy of the predictions (entropy), or their divergence from the predictions
    of each task's expert (teacher)."""
    own: Annotated[list[str], Field(min_length=1)] | None = None
    """Patterns of the tensors to learn per task; default: weight and bias of the linear layer that
    the model calls last, among those that experts changed."""
    own_lr: LearningRate = 0.001
    """Learning rate of Adam for these tensors: about how far an entry moves per step."""


class SurgeryConfig(UnlabeledConfig):
    """How to train the adapters. All defaults but `examples` are the paper's."""

    rank: Annotated[int, Field(ge=1)] = 16
    """Rank of each adapter: the number of feature directions that it changes."""
    steps: Annotated[int, Field(ge=0)] = 1000
    """Number of training steps per adapter."""
    lr: LearningRate = 0.001
    """Learning rate of Adam."""
    examples: Annotated[int, Field(ge=1)] = 512
    """Unlabeled examples per task, whose features are computed once."""
