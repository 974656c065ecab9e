"""What a run gives an algorithm: tasks, a seed, a device, and places for what it says and saves."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from fusion_core.contracts.metrics import MetricsLog
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
from fusion_core.weights.merging.transformed import Origin, Restored, transformed_experts
from fusion_core.weights.reading.task_files import ADAPTED, ADAPTERS, TENSORS, keyed
from fusion_core.weights.reading.task_masks import MASKS, SCALES, PackedMasks
from fusion_core.weights.writing.disk import write_durably

if TYPE_CHECKING:
    from collections.abc import Sequence
    from concurrent.futures import Executor

    from fusion_core.contracts.model_pool import ModelPool
    from fusion_core.contracts.task_pool import TaskPool
    from fusion_core.weights import WeightSource
    from fusion_core.weights.merging.applied import PieceKernel
    from fusion_core.weights.packing import Layout


@dataclass
class RunContext:
    """What a run gives an algorithm; every field has a default, so that tests can make one."""

    #: for stages that look at tasks: `AlgorithmSpec.needs_tasks`, or `Stage.sees_tasks`
    tasks: TaskPool[Any] | None = None
    #: everything random derives from it
    seed: int = 0
    #: where live models belong, and matrices are merged
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    executor: Executor = field(default_factory=SerialExecutor)
    progress: Progress = field(default_factory=Progress)
    #: refuse NaN and infinity in weights
    finite: bool = True
    #: whose task vectors bound how far merged values may be away
    bound: Bound = Bound.TENSOR
    #: receives what `log` is given
    on_metrics: Callable[[int, Mapping[str, float]], None] | None = None
    #: files to be committed with the model
    side_files: dict[str, bytes | WeightSource] = field(default_factory=dict)
    #: what was logged
    metrics: MetricsLog = field(default_factory=MetricsLog)
    #: a directory for what `run` needs to go on where it was stopped: written by `write_durably`,
    #: there again with `--resume`, never part of the output; None if nothing is written
    state: Path | None = None
    #: the directory that is being written; None if nothing is
    output: Path | None = None
    #: what the task vectors went through before: the sections of the transforms
    transforms: tuple[Mapping[str, Any], ...] = ()
    #: what a run learned that a user should know: see `warn`
    warnings: list[str] = field(default_factory=list)
    #: the stage's name, for errors
    stage: str = ""
    #: the stage's place in the pipeline: each draws random numbers of its own
    place: int = 0
    #: where a run that writes nothing rescues what it has
    _shelter: Path | None = field(default=None, init=False)

    def merged(
        self,
        pool: ModelPool[Any],
        kernel: Kernel,
        *,
        weights: Sequence[float] = (),
        extras: Mapping[str, WeightSource] | None = None,
    ) -> WeightSource:
        """Return the lazy merge of a pool's models by a kernel.

        `extras` are what it needs beside the models, read by `Piece.extra`. The kernel sees one
        matrix after the other: `ModelPool.matrices` says which a tensor holds.
        """
        layout = pool.layout
        operands = self._operands(pool, layout, kernel, weights, extras or {})
        return layout.packed(MergedSource(kernel, operands))

    def merged_matrices(
        self,
        pool: ModelPool[Any],
        kernel: Kernel,
        *,
        weights: Sequence[float] = (),
        extras: Mapping[str, WeightSource] | None = None,
    ) -> MergedSource:
        """Return what `merged` does with every matrix as a tensor of its own, by its name."""
        layout = pool.layout
        return MergedSource(kernel, self._operands(pool, layout, kernel, weights, extras or {}))

    def transformed(
        self, pool: ModelPool[Any], kernel: RowsKernel, *, weights: Sequence[float] = ()
    ) -> ModelPool[Any]:
        """Return a pool whose experts have the task vectors that a kernel makes of theirs.

        Where these are coordinates, the base is zero: what is merged is `restored` afterwards.
        """
        layout = pool.layout
        operands = self._operands(pool, layout, kernel, weights, {})
        experts = transformed_experts(operands, kernel)
        found = pool.transformed({name: layout.packed(each) for name, each in experts.items()})
        if isinstance(kernel, CoordinatesKernel):
            found = found.with_sources({"base": layout.packed(MergedSource(Origin(), operands))})
        return found

    def restored(
        self,
        merged: WeightSource,
        pool: ModelPool[Any],
        kernel: CoordinatesKernel,
        *,
        weights: Sequence[float] = (),
    ) -> WeightSource:
        """Return the lazy model that a merge of coordinates stands for.

        `pool`, `kernel` and `weights` are what `transformed` was given.
        """
        layout = pool.layout
        operands = self._operands(pool, layout, kernel, weights, {MERGED: merged})
        return layout.packed(MergedSource(Restored(kernel), operands))

    def _operands(
        self,
        pool: ModelPool[Any],
        layout: Layout,
        kernel: PieceKernel,
        weights: Sequence[float],
        extras: Mapping[str, WeightSource],
    ) -> Operands:
        place = f"\0{self.place}" if self.place else ""
        key = f"{self.seed}\0{type(kernel).__name__}{place}"
        unpacked = layout.unpacked
        return Operands(
            None if pool.base is None else unpacked(pool.base),
            {name: unpacked(expert) for name, expert in pool.experts.items()},
            tuple(weights),
            key,
            self.stage,
            finite=self.finite,
            bound=self.bound,
            device=self.device,
            extras={name: unpacked(extra) for name, extra in extras.items()},
        )

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Record what was measured at a step, and tell whoever listens (`fusion_metrics_logged`).

        All of it is committed with the model as `metrics.jsonl`.
        """
        self.metrics.add(step, metrics)
        if self.on_metrics is not None:
            self.on_metrics(step, metrics)

    def warn(self, message: str) -> None:
        """Warn the user of something that only the run could learn; the provenance records it.

        Above all, a tensor that a method turns out not to apply to. `Stage.fallback` names tensors
        of which headers already tell it.
        """
        self.warnings.append(message)

    def save(self, name: str, data: bytes | Mapping[str, Any] | WeightSource) -> None:
        """Add a file to the output directory.

        Bytes, a mapping to be written as JSON, or tensors to be written as safetensors: those are
        computed when the weights are written, range by range.
        """
        if isinstance(data, Mapping):
            data = json.dumps(data, indent=2).encode() + b"\n"
        self.side_files[name] = data

    def save_task_masks(
        self, masks: Mapping[str, WeightSource], scales: Mapping[str, float]
    ) -> None:
        """Save what makes an expert's weights of the merge: `load_for_task` reads it.

        They are base + scale * mask * (merge - base). `masks` have the models' tensors and shapes,
        by expert; what is not zero is in the mask.
        """
        self.save(MASKS, PackedMasks(masks))
        self.save(SCALES, {"schema": 1, "scales": {name: scales[name] for name in masks}})

    def save_task_tensors(self, tensors: Mapping[str, Mapping[str, torch.Tensor]]) -> None:
        """Save tensors that stand in the merge's places for a task: `load_for_task` reads them.

        By task and name, of the shapes that the merge's tensors of these names have.
        """
        if any(tensors.values()):
            self.save(TENSORS, keyed(tensors))

    def save_task_adapters(
        self,
        adapters: Mapping[str, tuple[torch.Tensor, torch.Tensor]],
        modules: Mapping[str, str],
    ) -> None:
        """Save what changes the features that a live model has for a task: `build_for_task` does.

        By task: `down` and `up` of `fusion_adapting.through_adapter`, and the name of the
        module whose output goes through them.
        """
        self.save(ADAPTERS, keyed({t: {"down": d, "up": u} for t, (d, u) in adapters.items()}))
        self.save(ADAPTED, {"schema": 1, "modules": dict(modules)})

    def rescue(self, name: str, data: bytes) -> Path:
        """Save the last good result where it stays although the run fails; returns the path.

        It is written durably beside the output, as `<output>.<name>`; for a run that writes
        nothing, into a temporary directory of the run's own.
        """
        if self.output is None:
            self._shelter = self._shelter or Path(tempfile.mkdtemp(prefix="fusion-"))
            path = self._shelter / name
        else:
            path = self.output.with_name(f"{self.output.name}.{name}")
        write_durably(path, data)
        return path
