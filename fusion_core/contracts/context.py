"""The context of a run: what an algorithm may use, report and save while it runs."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from fusion_core.contracts.metrics_log import MetricsLog
from fusion_core.progress import Progress
from fusion_core.weights import (
    CoordinatesKernel,
    Kernel,
    MergedSource,
    Operands,
    RowsKernel,
    SerialExecutor,
)
from fusion_core.weights.merging.piece import MERGED, Bound
from fusion_core.weights.merging.transforms import RestoreKernel, ZeroOrigin, transform_experts
from fusion_core.weights.packing import Layout
from fusion_core.weights.reading.task_files import ADAPTED, ADAPTERS, TENSORS, join_tasks
from fusion_core.weights.reading.task_masks import MASKS, SCALES, PackedMasks

if TYPE_CHECKING:
    from collections.abc import Sequence
    from concurrent.futures import Executor
    from pathlib import Path

    from fusion_core.contracts.model_pool import ModelPool
    from fusion_core.contracts.task_pool import TaskPool
    from fusion_core.weights import WeightSource
    from fusion_core.weights.merging.kernels import PieceKernel


@dataclass
class RunContext:
    """The context that a run passes to an algorithm: tasks, seed, device, log, files to save.

    Every field has a default, so tests can call `RunContext()`.
    """

    #: the tasks, for stages that declare `AlgorithmSpec.needs_tasks` or `Stage.uses_tasks`
    tasks: TaskPool[Any] | None = None
    #: the seed of the run; derive all random numbers from it
    seed: int = 0
    #: the device of live models, on which matrices are merged as well
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    executor: Executor = field(default_factory=SerialExecutor)
    progress: Progress = field(default_factory=Progress)
    #: whether NaN and infinity in weights are errors
    finite: bool = True
    #: which task vectors limit how far merged values may lie from the base
    bound: Bound = Bound.TENSOR
    #: compiled functions of plugins, as in `Operands`
    kernels: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    #: called by `log` with step and metrics
    on_metrics: Callable[[int, Mapping[str, float]], None] | None = None
    #: the files to commit with the model, by name
    side_files: dict[str, bytes | WeightSource] = field(default_factory=dict)
    #: everything that `log` has recorded
    metrics: MetricsLog = field(default_factory=MetricsLog)
    #: a directory for checkpoints of `run`, which `--resume` restores: write them by
    #: `write_durably`. It is not part of the output. None if the run writes nothing
    state: Path | None = None
    #: the directory that the run writes; None if it writes nothing
    output: Path | None = None
    #: the recipe sections of the transforms before this stage
    transforms: tuple[Mapping[str, Any], ...] = ()
    #: warnings of the stages so far
    warnings: list[str] = field(default_factory=list)
    #: the stage's name, for errors
    stage: str = ""
    #: the stage's index in the pipeline, so that every stage draws different random numbers
    stage_index: int = 0

    def merge(
        self,
        pool: ModelPool[Any],
        kernel: Kernel,
        *,
        weights: Sequence[float] = (),
        extras: Mapping[str, WeightSource] | None = None,
    ) -> WeightSource:
        """Return the lazy merge of a pool's models by a kernel.

        `weights` holds one factor per expert. `extras` are further operands, which the kernel reads
        by `Piece.extra`. The kernel sees one matrix at a time: `ModelPool.matrices` says which
        matrices a tensor holds. A kernel that is `as_stored` sees one tensor at a time.
        """
        layout = _layout_for(pool, kernel)
        operands = self._operands(pool, layout, kernel, weights, extras or {})
        return layout.pack(MergedSource(kernel, operands))

    def merge_matrices(
        self,
        pool: ModelPool[Any],
        kernel: Kernel,
        *,
        weights: Sequence[float] = (),
        extras: Mapping[str, WeightSource] | None = None,
    ) -> MergedSource:
        """Return the merge that `merge` returns, with every matrix as a separate tensor."""
        layout = _layout_for(pool, kernel)
        return MergedSource(kernel, self._operands(pool, layout, kernel, weights, extras or {}))

    def transform(
        self, pool: ModelPool[Any], kernel: RowsKernel, *, weights: Sequence[float] = ()
    ) -> ModelPool[Any]:
        """Return a pool whose experts have the kernel's task vectors.

        If the kernel maps to other coordinates, the base is zero, and `restore` maps the merge of
        the coordinates back to weights.
        """
        layout = _layout_for(pool, kernel)
        operands = self._operands(pool, layout, kernel, weights, {})
        experts = transform_experts(operands, kernel)
        transformed = pool.transformed(
            {name: layout.pack(expert) for name, expert in experts.items()}
        )
        if isinstance(kernel, CoordinatesKernel):
            origin = layout.pack(MergedSource(ZeroOrigin(), operands))
            return transformed.with_sources({"base": origin})
        return transformed

    def restore(
        self,
        merged: WeightSource,
        pool: ModelPool[Any],
        kernel: CoordinatesKernel,
        *,
        weights: Sequence[float] = (),
    ) -> WeightSource:
        """Map a merge of coordinates back to lazy weights.

        Pass the `pool`, `kernel` and `weights` that were passed to `transform`.
        """
        layout = _layout_for(pool, kernel)
        operands = self._operands(pool, layout, kernel, weights, {MERGED: merged})
        return layout.pack(MergedSource(RestoreKernel(kernel), operands))

    def _operands(
        self,
        pool: ModelPool[Any],
        layout: Layout,
        kernel: PieceKernel,
        weights: Sequence[float],
        extras: Mapping[str, WeightSource],
    ) -> Operands:
        stage_index = f"\0{self.stage_index}" if self.stage_index else ""
        unpack = layout.unpack
        return Operands(
            None if pool.base is None else unpack(pool.base),
            {name: unpack(expert) for name, expert in pool.experts.items()},
            tuple(weights),
            f"{self.seed}\0{type(kernel).__name__}{stage_index}",
            self.stage,
            finite=self.finite,
            bound=self.bound,
            device=self.device,
            extras={name: unpack(extra) for name, extra in extras.items()},
            kernels=self.kernels,
        )

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Record the metrics of a step and notify `fusion_metrics_logged` hooks.

        The run commits all of them with the model as `metrics.jsonl`.
        """
        self.metrics.add(step, metrics)
        if self.on_metrics is not None:
            self.on_metrics(step, metrics)

    def warn(self, message: str) -> None:
        """Warn the user of a problem found while merging; the provenance records it.

        Use it above all for tensors that the method turned out not to apply to. If headers already
        show that, implement `Stage.fallback` instead.
        """
        self.warnings.append(message)

    def save(self, name: str, data: bytes | Mapping[str, Any] | WeightSource) -> None:
        """Add a file to the output directory.

        Bytes are written as they are, a mapping as JSON, a source as safetensors. A source is
        computed range by range while the weights are written.
        """
        if isinstance(data, Mapping):
            data = json.dumps(data, indent=2).encode() + b"\n"
        self.side_files[name] = data

    def save_task_masks(
        self, masks: Mapping[str, WeightSource], scales: Mapping[str, float]
    ) -> None:
        """Save one mask and one scale per expert; `load_for_task` restores the expert's weights.

        These are base + scale * mask * (merge - base). `masks` maps experts to sources with the
        models' tensors and shapes, in which nonzero entries belong to the mask.
        """
        self.save(MASKS, PackedMasks(masks))
        self.save(SCALES, {"schema": 1, "scales": {name: scales[name] for name in masks}})

    def save_task_tensors(self, tensors: Mapping[str, Mapping[str, torch.Tensor]]) -> None:
        """Save tensors that replace the merge's for one task; `load_for_task` reads them.

        `tensors` maps tasks to tensors by name, each of the shape of the merge's tensor.
        """
        if any(tensors.values()):
            self.save(TENSORS, join_tasks(tensors))

    def save_task_adapters(
        self,
        adapters: Mapping[str, tuple[torch.Tensor, torch.Tensor]],
        modules: Mapping[str, str],
    ) -> None:
        """Save adapters of a live model's features; `build_for_task` attaches them.

        `adapters` maps tasks to `down` and `up` of `fusion_adapting.apply_adapter`, `modules` to
        the name of the module whose output the adapter changes.
        """
        self.save(ADAPTERS, join_tasks({t: {"down": d, "up": u} for t, (d, u) in adapters.items()}))
        self.save(ADAPTED, {"schema": 1, "modules": dict(modules)})


def _layout_for(pool: ModelPool[Any], kernel: PieceKernel) -> Layout:
    """Return where a kernel finds matrices: inside of tensors, or as they are stored."""
    return Layout({}, {}) if kernel.as_stored else pool.layout
