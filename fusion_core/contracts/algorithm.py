"""How models are fused: the class that methods subclass, and what a run gives them.

An algorithm decides; the engine moves bytes. `run` returns a lazy `WeightSource` (or a live module,
where that is what a method makes), and whoever called it reads, writes or evaluates that.
"""

from __future__ import annotations

import json
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Self, TypeVar, cast, overload

import torch

from fusion_core.contracts.metrics import MetricsLog
from fusion_core.contracts.specs import load_target
from fusion_core.errors import RecipeError
from fusion_core.progress import Progress
from fusion_core.recipe.config import ComponentConfig, ExpertWeights
from fusion_core.recipe.text import dump_yaml, load_recipe
from fusion_core.recipe.validation import validated
from fusion_core.weights import Kernel, MergedSource, Operands, SerialExecutor, WeightSource
from fusion_core.weights.writing.disk import write_durably

if TYPE_CHECKING:
    from collections.abc import Sequence
    from concurrent.futures import Executor

    from torch import nn

    from fusion_core.contracts.model_pool import ModelPool
    from fusion_core.contracts.task_pool import TaskPool

ConfigT = TypeVar("ConfigT", bound=ComponentConfig)

#: What a call without a context does; text, as a spec's target is: planning stands floors above.
_BY_HAND = "fusion_core.running.by_hand:merge"


class _Noticed:
    """The field `tasks` of a context: that an algorithm asked for them is remembered."""

    def __get__(self, context: RunContext | None, owner: type[RunContext]) -> TaskPool[Any] | None:
        if context is None:  # the field's default
            return None
        context.saw_tasks = True
        tasks: TaskPool[Any] | None = context.__dict__["tasks"]
        return tasks

    def __set__(self, context: RunContext, tasks: TaskPool[Any] | None) -> None:
        context.__dict__["tasks"] = tasks
        context.saw_tasks = False


@dataclass
class RunContext:
    """What a run gives an algorithm; every field has a default, so that tests can make one."""

    #: for algorithms that declare `needs_tasks`
    tasks: TaskPool[Any] | None = _Noticed()  # type: ignore[assignment]
    #: everything random derives from it
    seed: int = 0
    #: where live models belong, and matrices are merged
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    executor: Executor = field(default_factory=SerialExecutor)
    progress: Progress = field(default_factory=Progress)
    #: refuse NaN and infinity in weights
    finite: bool = True
    #: build another algorithm from a name, or a mapping of name and options
    algorithm: Callable[[Any], Algorithm[Any]] | None = None
    #: receives what `log` is given
    on_metrics: Callable[[int, Mapping[str, float]], None] | None = None
    #: files to be committed with the model
    side_files: dict[str, bytes] = field(default_factory=dict)
    #: what was logged
    metrics: MetricsLog = field(default_factory=MetricsLog)
    #: a directory for what `run` needs to go on where it was stopped: written by `write_durably`,
    #: there again with `--resume`, never part of the output; None if nothing is written
    state: Path | None = None
    #: the directory that is being written; None if nothing is
    output: Path | None = None
    #: whether the algorithm asked for the tasks
    saw_tasks: bool = field(default=False, init=False)

    def merged(
        self, pool: ModelPool[Any], kernel: Kernel, *, weights: Sequence[float] = ()
    ) -> MergedSource:
        """Return the lazy merge of a pool's models by a kernel."""
        key = f"{self.seed}\0{type(kernel).__name__}"
        operands = Operands(pool.base, pool.experts, tuple(weights), key, self.finite, self.device)
        return MergedSource(kernel, operands)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Record what was measured at a step, and tell whoever listens (`fusion_metrics_logged`).

        All of it is committed with the model as `metrics.jsonl`.
        """
        self.metrics.add(step, metrics)
        if self.on_metrics is not None:
            self.on_metrics(step, metrics)

    def save(self, name: str, data: bytes | Mapping[str, Any]) -> None:
        """Add a file to the output directory: bytes, or a mapping to be written as JSON."""
        if isinstance(data, Mapping):
            data = json.dumps(data, indent=2).encode() + b"\n"
        self.side_files[name] = data

    def rescue(self, name: str, data: bytes) -> Path:
        """Save the last good result where it stays although the run fails; returns the path.

        It is written durably beside the output, as `<output>.<name>`; for a run that writes
        nothing, into a temporary directory of its own.
        """
        if self.output is None:
            path = Path(tempfile.mkdtemp(prefix="fusion-")) / name
        else:
            path = self.output.with_name(f"{self.output.name}.{name}")
        write_durably(path, data)
        return path


class Algorithm(ABC, Generic[ConfigT]):
    """A way of fusing models: a configuration or its options as keywords, and `run`.

    class PickFirst(Algorithm[PickFirstConfig]):
        config_class = PickFirstConfig

        def run(self, pool, context):
            return next(iter(pool.experts.values()))

    A method that computes each tensor from the same tensor of every model, which is most methods,
    is a `TensorwiseAlgorithm` and writes `merge` instead.

    A run calls `run` with a context. Whoever calls `PickFirst().run(models)` without one gives a
    pool or `{"base": ..., "models": {...}}`, and gets the merge that a run would write: planned and
    checked alike, lazy, in the base's dtypes.
    """

    config_class: ClassVar[type[ComponentConfig]]

    def __init__(self, config: ConfigT | None = None, /, **options: Any) -> None:  # noqa: ANN401
        if config is not None and options:
            raise TypeError("give a configuration or its options, not both")
        if config is None:
            config = cast("ConfigT", validated(self.config_class, options, prefix="algorithm"))
        self.config = config

    def __init_subclass__(cls, **options: Any) -> None:  # noqa: ANN401 - the class statement's
        super().__init_subclass__(**options)
        if "run" in vars(cls):
            cls.run = _or_by_hand(cls.run)  # type: ignore[method-assign]

    @abstractmethod
    def run(self, pool: ModelPool[Any], context: RunContext) -> WeightSource | nn.Module:
        """Fuse the pool's models.

        The pool is aligned: every expert has the base's keys and shapes. Sources must not be
        modified. Raise a `FusionError` for what the user can mend.
        """

    def tasks(self, pool: TaskPool[Any]) -> TaskPool[Any]:
        """Return the tasks as this method sees them, and as its result is measured on them."""
        return pool

    @classmethod
    def from_yaml(cls, path: str | Path) -> Self:
        """Make an algorithm from a YAML file of its options, as `to_yaml` writes it."""
        config: Any = validated(cls.config_class, load_recipe(path), prefix=str(path))
        return cls(config)

    def to_yaml(self, path: str | Path) -> None:
        """Write the options, defaults included, as YAML."""
        text = dump_yaml(self.config.model_dump(mode="json", context=Path(path).parent))
        Path(path).write_text(text, encoding="utf-8")


def _or_by_hand(run: Callable[..., Any]) -> Callable[..., Any]:
    """Let a method's `run` be called without a context too."""

    @wraps(run)
    def run_or_merge(self: Algorithm[Any], pool: Any, context: RunContext | None = None) -> Any:  # noqa: ANN401
        if context is None:
            return load_target(_BY_HAND)(self, pool)
        return run(self, pool, context)

    return run_or_merge


class TensorwiseAlgorithm(Algorithm[ConfigT], Kernel):
    """A method that merges tensor by tensor, piece by piece: write `merge`, and `survey` if needed.

    class DropAndAverage(TensorwiseAlgorithm[DropConfig]):
        config_class = DropConfig

        def merge(self, piece):
            deltas = piece.task_vectors
            kept = deltas.where(deltas.abs() > self.config.floor, 0)
            return piece.base + in_order(kept) / len(kept)

    `cut` says how finely tensors may be cut for `merge` (default: between any two elements),
    `scope` what `survey` looks at first (default: nothing). Both are properties, and may depend on
    the options. A configuration with a field `weights: ExpertWeights` gives each expert its factor
    in `piece.weights`.
    """

    @overload
    def run(self, pool: ModelPool[Any], context: RunContext) -> WeightSource: ...
    @overload
    def run(self, pool: ModelPool[Any] | Mapping[str, Any]) -> WeightSource: ...
    def run(self, pool: Any, context: Any = None) -> WeightSource:
        """Return the lazy merge; the engine calls `survey` and `merge` when it is read."""
        weights = expert_weights(getattr(self.config, "weights", None), list(pool.experts))
        merged: WeightSource = context.merged(pool, self, weights=weights)
        return merged


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
