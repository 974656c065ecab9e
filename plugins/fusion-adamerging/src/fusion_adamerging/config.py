"""Options of AdaMerging and of the methods related to it."""

from abc import abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field

from fusion_adapting import LearningRate, SearchConfig, UnlabeledConfig
from fusion_core import InputPath, PerExpert

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
