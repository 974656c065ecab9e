"""Stages of a pipeline: what all have in common, and the kinds before and after the merge.

A transform turns task vectors into task vectors, a merge (`fusion_core.contracts.algorithm`) turns
models into one model, a calibration improves the merge. Each kind implements one verb:
`apply(flow, context) -> flow`. The kinds and their order are the table
`fusion_core.contracts.specs.STAGES`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Self, TypeVar, cast

from fusion_core.contracts.outline import Outline
from fusion_core.contracts.result import checked_source
from fusion_core.errors import RecipeError
from fusion_core.recipe.config import ComponentConfig, ExpertWeights
from fusion_core.recipe.text import dump_yaml, load_recipe
from fusion_core.recipe.validation import validated
from fusion_core.weights import CoordinatesKernel, Kernel, RowsKernel, WeightSource
from fusion_core.weights.merging.piece import MERGED

if TYPE_CHECKING:
    from fusion_core.contracts.context import RunContext
    from fusion_core.contracts.flow import Flow
    from fusion_core.contracts.model_pool import ModelPool
    from fusion_core.contracts.task_pool import TaskPool
    from fusion_core.weights import TensorInfo

ConfigT = TypeVar("ConfigT", bound=ComponentConfig)


class Stage(ABC, Generic[ConfigT]):
    """A step of a pipeline: a configuration, or its options as keywords."""

    config_class: ClassVar[type[ComponentConfig]]
    #: the name of this kind of stage in the table `STAGES`
    kind: ClassVar[str]
    #: whether it looks at `context.tasks`; the spec says it for a class that a plugin registers
    sees_tasks: ClassVar[bool] = False
    #: whether the method knows tensors as layers have them, and not the matrices inside of them
    sees_stored_tensors: ClassVar[bool] = False

    def __init__(self, config: ConfigT | None = None, /, **options: Any) -> None:  # noqa: ANN401
        if config is not None and options:
            raise TypeError("give a configuration or its options, not both")
        if config is None:
            config = cast("ConfigT", validated(self.config_class, options, prefix="algorithm"))
        self.config = config

    @abstractmethod
    def apply(self, flow: Flow, context: RunContext) -> Flow:
        """Return the flow after this stage, lazily where that is possible.

        Runs call it, and `run(pool)` does through a run's plan. Each kind of stage implements it;
        a method writes what its kind asks for.
        """

    def fallback(self, info: TensorInfo) -> str | None:
        """Say what happens to a tensor that this method does not apply to, e.g. "averaged".

        None, the default, says that the method applies. A plan, a run and the provenance name the
        tensors that a method treats otherwise, by count and by their share of the parameters.
        Asked of each matrix where a tensor holds several (`ModelPool.matrices`), or of the tensor
        itself where `sees_stored_tensors`.
        """
        del info
        return None

    def tasks(self, pool: TaskPool[Any]) -> TaskPool[Any]:
        """Return the tasks as this method sees them, and as its result is measured on them."""
        return pool

    def held_memory(self, model: int, experts: int) -> int:
        """Return the bytes that the method holds while it looks at tasks, at least.

        `model` is the bytes of one live model, in fp32 or wider. What grows with the tasks'
        examples, such as activations, is left out. `fuse check` shows the sum as a lower bound.
        Default: one live model.
        """
        del experts
        return model

    @classmethod
    def from_yaml(cls, path: str | Path) -> Self:
        """Make one from a YAML file of its options, as `to_yaml` writes it."""
        config: Any = validated(cls.config_class, load_recipe(path), prefix=str(path))
        return cls(config)

    def to_yaml(self, path: str | Path) -> None:
        """Write the options, defaults included, as YAML."""
        text = dump_yaml(self.config.model_dump(mode="json", context=Path(path).parent))
        Path(path).write_text(text, encoding="utf-8")


class Transform(Stage[ConfigT], RowsKernel):
    """Task vectors in, task vectors out, piece by piece: write `rows`, and `survey` if needed.

    class Halve(Transform[ComponentConfig]):
        config_class = ComponentConfig

        def rows(self, piece):
            return piece.task_vectors / 2

    `rows` returns a tensor of the shape of `piece.task_vectors`. `cut`, `scope` and an option
    `weights` mean what they mean for a `TensorwiseAlgorithm`. Whatever comes after, a search in
    memory included, sees these task vectors and no others.
    """

    kind = "transform"

    def apply(self, flow: Flow, context: RunContext) -> Flow:
        """Return the flow with models that have the transformed task vectors."""
        weights = weights_of(self, flow.models)
        return replace(flow, models=context.transformed(flow.models, self, weights=weights))


class Coordinates(Transform[ConfigT], CoordinatesKernel):
    """A transform into other coordinates: write `rows`, and `restore`, which leads back.

    class Turned(Coordinates[ComponentConfig]):
        config_class = ComponentConfig

        def rows(self, piece):
            return -piece.task_vectors

        def restore(self, piece):
            return -piece.merged

    `piece.merged` is the task vector that the merge made of the coordinates, `piece.task_vectors`
    are those that `rows` was given. What stands between is not a model, so a merge that looks at
    tasks cannot follow.
    """

    def apply(self, flow: Flow, context: RunContext) -> Flow:
        """Return the flow with models in other coordinates, and the way back from there."""
        weights = weights_of(self, flow.models)

        def way_back(merged: WeightSource) -> WeightSource:
            return context.restored(merged, flow.models, self, weights=weights)

        return replace(super().apply(flow, context), ways_back=(*flow.ways_back, way_back))


class Calibration(Stage[ConfigT]):
    """A merge in, a better one out: write `calibrate`."""

    kind = "calibrate"

    def apply(self, flow: Flow, context: RunContext) -> Flow:
        """Return the flow with the calibrated merge, checked as the engine's results are."""
        pool = flow.originals
        calibrated = self.calibrate(flow.merged, pool, context)
        outline = Outline(pool.reference.infos)
        return replace(flow, merged=checked_source(calibrated, outline, pool, context))

    @abstractmethod
    def calibrate(
        self, merged: WeightSource, pool: ModelPool[Any], context: RunContext
    ) -> WeightSource:
        """Return the calibrated weights, lazily if that can be.

        `pool` holds the models that were merged, as they were before any transform. Raise a
        `FusionError` for what the user can mend.
        """


class TensorwiseCalibration(Calibration[ConfigT], Kernel):
    """A calibration that works piece by piece: write `merge`, and `survey` if needed.

    class Halfway(TensorwiseCalibration[ComponentConfig]):
        config_class = ComponentConfig

        def merge(self, piece):
            return piece.base + (piece.merged - piece.base) / 2

    `piece.merged` holds the merge, of the shape of `piece.base`; all else is as for a
    `TensorwiseAlgorithm`.
    """

    def calibrate(
        self, merged: WeightSource, pool: ModelPool[Any], context: RunContext
    ) -> WeightSource:
        """Return the lazy calibration; the engine calls `survey` and `merge` when it is read."""
        weights = weights_of(self, pool)
        return context.merged(pool, self, weights=weights, extras={MERGED: merged})


def weights_of(stage: Stage[Any], pool: ModelPool[Any]) -> list[float]:
    """Resolve the option `weights` of a stage that may have one; 1 an expert where it has none."""
    return expert_weights(getattr(stage.config, "weights", None), list(pool.experts))


def expert_weights(weights: ExpertWeights | None, experts: Sequence[str]) -> list[float]:
    """Resolve the option `weights`: one factor an expert, in pool order, 1 where none is given.

    Raises `RecipeError` for an unknown expert or a list of another length.
    """
    if weights is None:
        return [1.0] * len(experts)
    if isinstance(weights, Mapping):
        unknown = sorted(weights.keys() - set(experts))
        if unknown:
            raise RecipeError(
                f"weights names {', '.join(unknown)}",
                hint=f"The experts are: {', '.join(experts)}.",
            )
        return [float(weights.get(name, 1.0)) for name in experts]
    if len(weights) != len(experts):
        raise RecipeError(
            f"weights has {len(weights)} entries for {len(experts)} experts",
            hint=f"The experts, in order: {', '.join(experts)}.",
        )
    return [float(weight) for weight in weights]
