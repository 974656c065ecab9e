"""Options of AdaMerging, and of what descends from it."""

from abc import abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BeforeValidator, ByteSize, Field

from fusion_core import ComponentConfig, InputPath

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


#: What shares a coefficient, by granularity: `model` sums over what `layer` has.
_GRAINS: "Mapping[str, Grain]" = {
    "layer": "tensor",
    "model": "tensor",
    "row": "row",
    "column": "column",
    "row+column": "row+column",
    "rank": "rank",
}


def _once_each(names: list[str]) -> list[str]:
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"named more than once: {', '.join(twice)}")
    return names


class UnlabeledConfig(ComponentConfig):
    """On which examples something is learned."""

    batch_size: Annotated[int, Field(ge=1)] = 16
    """Unlabeled examples of each task in a step."""
    tasks: Annotated[list[str], Field(min_length=1), AfterValidator(_once_each)] | None = None
    """The tasks to adapt on; default: the experts' own or, where none bears their names, all."""
    adapt_split: Literal["unlabeled", "test", "holdout"] = "unlabeled"
    """Adapt on the tasks' unlabeled examples (of some pools, the test examples without labels), on
    the test examples themselves, or on one half of these, with the other to measure on."""
    examples: Annotated[int, Field(ge=1)] | None = None
    """Adapt on so many examples of each task, again and again; default: all there are."""


class SearchConfig(UnlabeledConfig):
    """How a search goes, and on which examples."""

    steps: Annotated[int, Field(ge=0)] = 100
    """Updates of what is learned."""
    lr: Annotated[float, Field(gt=0)] = 0.01
    """Adam's learning rate: about how far a coefficient moves in a step."""
    schedule: Literal["cosine", "constant"] = "constant"
    """How the learning rate goes on: not at all, or down to zero along a cosine."""
    objective: Literal["entropy", "teacher"] = "entropy"
    """What is minimised: the predictions' entropy, or their distance from each task's expert's."""
    temperature: Annotated[float, Field(gt=0)] = 1.0
    """With `teacher`: both predictions are softened by it before they are compared."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """The model's passes in fp32, or under bf16 autocast; coefficients and sums stay in fp32."""
    shared_pass: ByteSize = ByteSize(512_000_000)
    """Tasks share a pass through the model while its activations take no more than this."""
    save_every: Annotated[int, Field(ge=1)] = 10
    """Steps between two states that `--resume` goes on from."""


class CoefficientsConfig(SearchConfig):
    """How coefficients of a linear merge are searched for."""

    init: float = 0.2
    """Every coefficient's first value."""
    task_vectors: Literal["fp32", "bf16", "disk"] = "fp32"
    """Where the search keeps them: in memory, in half of it, or read anew in every step."""

    @property
    @abstractmethod
    def grain(self) -> "Grain":
        """What shares a coefficient."""


class GrainedConfig(CoefficientsConfig):
    """What has a coefficient."""

    granularity: Annotated[
        Literal["layer", "model", "row", "column", "row+column", "rank"],
        BeforeValidator(lambda given: "model" if given == "task" else given),
    ] = "layer"
    """What has a coefficient for each expert: a parameter tensor, the whole model (which AdaMerging
    calls task-wise: `task` is the same), an output row or input column of each matrix, both (an
    entry has their mean), or a singular component of its task vector. Tensors without such parts
    have one."""
    clamp: bool = False
    """Keep coefficients within [0, 1]."""

    @property
    def grain(self) -> "Grain":
        """That of the granularity."""
        return _GRAINS[self.granularity]


class KeptConfig(CoefficientsConfig):
    """Coefficients that are all that is found, so that they can be given."""

    coefficients: InputPath | None = None
    """A coefficients.json of an earlier run: use it and skip the search."""


class AdaMergingConfig(GrainedConfig, KeptConfig):
    """What is learned, and how the search goes."""

    presets: ClassVar[_Presets] = {
        "paper": {**_PAPER, "steps": 1000, "clamp": False},
        "strong": {
            "granularity": "row+column",
            "objective": "teacher",
            "temperature": 4.0,
            "lr": 0.2,
            "init": 0.3,
        },
    }

    preset: Literal["default", "paper", "strong"] = "default"
    """What options that are not given are: the defaults, the paper's 1000 small steps, or what came
    nearest to the experts (docs/explanation/finer-coefficients.md)."""
    trim: bool = False
    """AdaMerging++: keep each task vector's largest entries, those of the elected sign."""
    density: Annotated[float, Field(gt=0, le=1)] = 0.2
    """With `trim`: the fraction of each task vector's entries that is kept before the election."""


class AdaRankConfig(KeptConfig):
    """Which singular components are on at first, and how the search goes."""

    presets: ClassVar[_Presets] = {"paper": {**_PAPER, "steps": 10_000, "rank": 1.0}}

    preset: Literal["default", "paper"] = "default"
    """What options that are not given are: the defaults, or the paper's 10,000 small steps."""
    rank: Annotated[float, Field(ge=0, le=1)] = 1.0
    """The share of every matrix's singular components, the largest, that are on at first. All may
    be switched on or off by the search: none before it has taken 0.1 / lr steps."""

    @property
    def grain(self) -> "Grain":
        """Every singular component."""
        return "component"


class SyMergeConfig(GrainedConfig):
    """What is learned, and how the search goes."""

    lr: Annotated[float, Field(gt=0)] = 0.02
    """Adam's learning rate: about how far a coefficient moves in a step."""
    objective: Literal["entropy", "teacher"] = "teacher"
    """What is minimised: the predictions' entropy, or their distance from each task's expert's."""
    own: Annotated[list[str], Field(min_length=1)] | None = None
    """Patterns of the tensors that every task has for itself; default: weight and bias of the
    linear layer that the model calls last, of those that experts changed."""
    own_lr: Annotated[float, Field(gt=0)] = 0.001
    """Adam's learning rate for these: about how far an entry moves in a step."""


class SurgeryConfig(UnlabeledConfig):
    """How adapters are trained. Defaults are the paper's, but for `examples`."""

    rank: Annotated[int, Field(ge=1)] = 16
    """How many directions of the features an adapter changes."""
    steps: Annotated[int, Field(ge=0)] = 1000
    """Updates of each task's adapter."""
    lr: Annotated[float, Field(gt=0)] = 0.001
    """Adam's learning rate."""
    examples: Annotated[int, Field(ge=1)] = 512
    """Unlabeled examples of each task; their features are computed once."""
