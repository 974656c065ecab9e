"""The stages of a pipeline: transforms, one merge, calibrations.

A transform maps task vectors to task vectors. A merge (`fusion_core.contracts.algorithm`) combines
models into one. A calibration improves the merge. Every kind implements one method,
`apply(flow, context) -> flow`. The table `fusion_core.contracts.specs.STAGES` lists the kinds in
order.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Self, TypeVar, cast

from fusion_core.contracts.outline import Outline
from fusion_core.contracts.result import check_result
from fusion_core.recipe.config import ComponentConfig
from fusion_core.recipe.per_expert import expert_weights
from fusion_core.recipe.text import check_sections, dump_yaml, load_yaml, read_recipe_text
from fusion_core.recipe.validation import validate
from fusion_core.weights import CoordinatesKernel, Kernel, RowsKernel, WeightSource
from fusion_core.weights.merging.piece import MERGED

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fusion_core.contracts.context import RunContext
    from fusion_core.contracts.flow import Flow
    from fusion_core.contracts.model_pool import ModelPool
    from fusion_core.contracts.task_pool import TaskPool
    from fusion_core.weights import Layout, TensorInfo

ConfigT = TypeVar("ConfigT", bound=ComponentConfig)


class Stage(ABC, Generic[ConfigT]):
    """A stage of a pipeline, created from a configuration or from its options as keywords.

    Subclass `Transform`, `Coordinates`, `TensorwiseAlgorithm`, `Algorithm`, `TensorwiseCalibration`
    or `Calibration`, not this class.
    """

    config_class: ClassVar[type[ComponentConfig]] = ComponentConfig
    #: the kind of stage, a key of `STAGES`
    kind: ClassVar[str]
    #: whether it reads `context.tasks`; for a class that a plugin registers, the spec says so
    uses_tasks: ClassVar[bool] = False

    def __init_subclass__(cls, **options: Any) -> None:  # noqa: ANN401 - the class statement's
        """Raise `TypeError` for a method whose attribute `kind` means something else."""
        super().__init_subclass__(**options)
        kind, inherited = vars(cls).get("kind"), getattr(super(cls, cls), "kind", None)
        if kind is not None and inherited not in {None, kind}:
            raise TypeError(
                f"{cls.__name__}.kind is {kind!r}, but it is a stage of kind {inherited!r}: "
                "rename the attribute"
            )

    def __init__(self, config: ConfigT | None = None, /, **options: Any) -> None:  # noqa: ANN401
        if config is not None and options:
            raise TypeError("give a configuration or its options, not both")
        if config is None:
            config = cast("ConfigT", validate(self.config_class, options, prefix="algorithm"))
        self.config = config

    @abstractmethod
    def apply(self, flow: Flow, context: RunContext) -> Flow:
        """Return the flow after this stage, lazily if possible.

        Each kind of stage implements this; methods implement what their kind asks for.
        """

    def fallback(self, info: TensorInfo) -> str | None:
        """Return how a tensor is treated that the method does not apply to, e.g. "averaged".

        None, the default, means that the method applies. `fuse check`, the run and the provenance
        report these tensors with their count and share of the parameters. If a tensor holds
        several matrices (`ModelPool.matrices`), the engine asks for each that `matrices_of`
        returns.
        """
        del info
        return None

    def matrices_of(self, info: TensorInfo, layout: Layout) -> Sequence[TensorInfo]:
        """Return what the method treats as one matrix, by default every matrix of a tensor.

        A method that works on tensors as they are stored returns the tensor itself.
        """
        return layout.describe_matrices(info)

    def tasks(self, pool: TaskPool[Any]) -> TaskPool[Any]:
        """Return the tasks to adapt on, on which the result is measured as well."""
        return pool

    def held_memory(self, model: int, pool: ModelPool[Any]) -> int:
        """Return a lower bound of the bytes that the method holds while it uses live models.

        `model` is the size of one live model in bytes, in fp32 or wider. Of the pool's models,
        only headers may be read. Exclude memory that grows with the examples, such as activations.
        `fuse check` shows the sum. Default: one live model.
        """
        del pool
        return model

    @classmethod
    def from_yaml(cls, path: str | Path) -> Self:
        """Create a stage from a YAML file of options, as `to_yaml` writes it."""
        text = read_recipe_text(Path(path))
        options = check_sections([load_yaml(text, origin=str(path))], Path(path))
        config: Any = validate(cls.config_class, options, prefix=str(path))
        return cls(config)

    def to_yaml(self, path: str | Path) -> None:
        """Write all options, defaults included, as YAML."""
        text = dump_yaml(self.config.model_dump(mode="json", context=Path(path).parent))
        Path(path).write_text(text, encoding="utf-8")


class Transform(Stage[ConfigT], RowsKernel):
    """The base class of transforms: task vectors in, task vectors out, before the merge.

    A subclass sets `config_class` and implements `rows`, a pure function that the engine calls once
    per piece. It returns a tensor of the shape of `piece.task_vectors`, which is (experts, *shape
    of the piece). All later stages see the new task vectors. Zeros must stay zeros: the engine does
    not ask for tensors that no adapter changes. Example::

        from fusion_core import ComponentConfig, Transform

        class Halve(Transform[ComponentConfig]):
            config_class = ComponentConfig

            def rows(self, piece):
                return piece.task_vectors / 2

    `survey`, `cut`, `scope` and an option `weights` work as in a `TensorwiseAlgorithm`. A transform
    that looks at tasks overrides `fit`.
    """

    kind = "transform"

    def fit(self, pool: ModelPool[Any], context: RunContext) -> Self:
        """Return the transform to apply to a pool, by default this one.

        A transform that chooses its options by the tasks in `context` returns one with these.
        """
        del pool, context
        return self

    def apply(self, flow: Flow, context: RunContext) -> Flow:
        """Return the flow with transformed models."""
        fitted = self.fit(flow.models, context)
        chosen = {} if fitted is self else fitted.config.model_dump(mode="json")
        return replace(fitted.apply_fitted(flow, context), chosen=chosen)

    def apply_fitted(self, flow: Flow, context: RunContext) -> Flow:
        """Return the flow with transformed models, by the options as they are."""
        weights = weights_of(self, flow.models)
        return replace(flow, models=context.transform(flow.models, self, weights=weights))


class Coordinates(Transform[ConfigT], CoordinatesKernel):
    """The base class of transforms into other coordinates, which are undone after the merge.

    A subclass sets `config_class` and implements two pure functions of a piece. `rows` maps
    `piece.task_vectors` to coordinates. `restore` maps `piece.merged`, the merge of the
    coordinates, back to a task vector; `piece.task_vectors` are those that `rows` received.
    Example::

        from fusion_core import ComponentConfig, Coordinates

        class Negate(Coordinates[ComponentConfig]):
            config_class = ComponentConfig

            def rows(self, piece):
                return -piece.task_vectors

            def restore(self, piece):
                return -piece.merged

    Between both, the models are not weights, so the merge must be one that does not use tasks.
    """

    def apply_fitted(self, flow: Flow, context: RunContext) -> Flow:
        """Return the flow with models in other coordinates, and with the inverse."""
        weights = weights_of(self, flow.models)

        def restore(merged: WeightSource) -> WeightSource:
            return context.restore(merged, flow.models, self, weights=weights)

        transformed = super().apply_fitted(flow, context)
        return replace(transformed, restores=(*flow.restores, restore))


class Calibration(Stage[ConfigT]):
    """The base class of stages that improve a merge and compute the result themselves.

    A subclass sets `config_class` and implements `calibrate`. Subclass `TensorwiseCalibration`
    instead if each tensor depends only on the same tensor of the merge and the models. Example::

        from fusion_core import Calibration, ComponentConfig
        from fusion_core.weights import AlignedSource, StateDictSource

        class KeepBiases(Calibration[ComponentConfig]):
            config_class = ComponentConfig

            def calibrate(self, merged, pool, context):
                names = [name for name in merged.infos if name.endswith(".bias")]
                biases = {name: pool.reference.tensor(name) for name in names}
                return AlignedSource(StateDictSource(biases), merged)
    """

    kind = "calibrate"

    def apply(self, flow: Flow, context: RunContext) -> Flow:
        """Return the flow with the calibrated merge, checked as merges are."""
        pool = flow.originals
        calibrated = self.calibrate(flow.merged, pool, context)
        outline = Outline(pool.reference.infos)
        return replace(flow, merged=check_result(calibrated, outline, pool, context))

    @abstractmethod
    def calibrate(
        self, merged: WeightSource, pool: ModelPool[Any], context: RunContext
    ) -> WeightSource:
        """Return the calibrated weights, lazily if possible.

        `pool` holds the models before any transform. Raise a `FusionError` for problems that the
        user can fix.
        """


class TensorwiseCalibration(Calibration[ConfigT], Kernel):
    """The base class of calibrations that work tensor by tensor.

    A subclass sets `config_class` and implements `merge`, as in a `TensorwiseAlgorithm`.
    `piece.merged` is the merge so far, in the shape of `piece.base`. Example::

        from fusion_core import ComponentConfig, TensorwiseCalibration

        class Halfway(TensorwiseCalibration[ComponentConfig]):
            config_class = ComponentConfig

            def merge(self, piece):
                return piece.base + (piece.merged - piece.base) / 2
    """

    def calibrate(
        self, merged: WeightSource, pool: ModelPool[Any], context: RunContext
    ) -> WeightSource:
        """Return the lazy calibration; reading it calls `survey` and `merge`."""
        weights = weights_of(self, pool)
        return context.merge(pool, self, weights=weights, extras={MERGED: merged})


def weights_of(stage: Stage[Any], pool: ModelPool[Any]) -> list[float]:
    """Resolve a stage's option `weights`: one factor per expert, 1 if it has no such option."""
    return expert_weights(getattr(stage.config, "weights", None), list(pool.experts))
