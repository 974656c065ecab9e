"""The check of a plan, for `fuse check` and `fuse run --dry-run`.

It reads headers only and writes nothing. Only `scan` reads weights.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from fusion_core import hub
from fusion_core.checking.memory import Memory, estimate
from fusion_core.errors import DiskError, WeightsError
from fusion_core.planning.trust import collect_needs
from fusion_core.weights import AlignedSource, RenamedSource, WeightSource
from fusion_core.weights.merging.execution import Threads
from fusion_core.weights.merging.finite import BadTensor, find_bad_tensors
from fusion_core.weights.reading.format import build_header
from fusion_core.weights.reading.task_masks import describe_packed
from fusion_core.weights.writing.disk import free_bytes

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from fusion_core.planning.fallbacks import Fallback
    from fusion_core.planning.packed_tensors import PackedTensors
    from fusion_core.planning.run_plan import Plan
    from fusion_core.planning.tensor_groups import TensorGroup

SCHEMA = 1


@dataclass(frozen=True, slots=True)
class Model:
    """One model of the run, and its alignment with the base."""

    name: str
    source: str
    tensors: int
    bytes: int
    dtypes: tuple[str, ...]
    #: tensors taken from the base because the model lacks them, and tensors that only it has
    missing: int
    extra: int
    licence: str | None
    #: whether it is the merge of a nested recipe, whose models follow
    nested: bool = False
    #: how its files encode the values, if a format decodes them
    decoded_from: str = ""


@dataclass(frozen=True, slots=True)
class Disk:
    """The size of the output, and the free space at its path.

    Path and space are None for no output. Size and space are None for an output in another form
    than a full model, whose size only the run knows.
    """

    path: str | None
    needed: int | None
    free: int | None

    @property
    def fits(self) -> bool:
        """Whether there is enough space."""
        return self.free is None or self.needed is None or self.needed <= self.free


@dataclass(frozen=True, slots=True)
class Check:
    """The inputs, results and needs of a run."""

    algorithm: str
    models: tuple[Model, ...]
    tensors: Mapping[str, int]
    disk: Disk
    memory: Memory
    #: tensors that are merged matrix by matrix
    matrices: tuple[PackedTensors, ...]
    #: every tensor of the result in one group; empty if a method makes other tensors
    groups: tuple[TensorGroup, ...]
    #: tensors that a stage treats differently from what its name says
    fallbacks: tuple[Fallback, ...]
    warnings: tuple[str, ...]
    #: the reasons why the recipe can run code, by the name that allows each
    needs_trust: Mapping[str, tuple[str, ...]]
    #: what only the run itself can check, because it needs trust
    not_checked: tuple[str, ...]

    @property
    def outside_matrices(self) -> float | None:
        """The share of the parameters that the method does not merge as matrices."""
        if not self.groups:
            return None
        return max(1 - sum(group.in_matrices for group in self.groups), 0.0)  # shares are rounded

    def as_json(self) -> dict[str, Any]:
        """Return the check as JSON data."""
        return {"schema": SCHEMA, **asdict(self), "outside_matrices": self.outside_matrices}

    def check_disk_space(self) -> None:
        """Raise `DiskError` if the output needs more space than is free."""
        if not self.disk.fits:
            raise DiskError(
                f"{self.disk.path}: the output takes {self.disk.needed:,} bytes, "
                f"{self.disk.free:,} are free there",
                hint="Free some space, or write elsewhere with -o.",
            )


def check(plan: Plan) -> Check:
    """Predict what a plan will do.

    Raises `AlignmentError` with a table of every difference if the models do not match, the errors
    of `Plan.check_data`, and those by which a plugin refuses the run. The check never starts what
    needs trust, even if it is trusted.
    """
    plan.plugins.check_run(plan.info)
    models = tuple(_models(plan))
    plan.check_data(untrusted=True)
    return Check(
        plan.algorithm_name,
        models,
        plan.counts,
        _disk(plan),
        estimate(plan),
        plan.holdings,
        plan.groups,
        plan.fallbacks,
        tuple(plan.warnings),
        plan.needs_trust,
        tuple(_not_checked(plan)),
    )


def _not_checked(plan: Plan, prefix: str = "") -> Iterator[str]:
    """Name what only the run can check: tasks that need trust, and the size of another form."""
    form = plan.resolved.form
    if form is not None and plan.path is not None:  # a nested recipe writes nothing
        yield f"output.{form.name}: whether the output fits on its disk"
    if plan.used_tasks is not None and plan.trusted_tasks is None:
        assert plan.resolved.task_pool is not None  # noqa: S101 - it is the one that needs trust
        yield f"{prefix}{plan.resolved.task_pool.name}: whether its tasks and data are there"
    for name, nested in plan.nested.items():
        yield from _not_checked(nested, f"{prefix}{name}/")


def scan(plan: Plan) -> list[BadTensor]:
    """Read every weight that the run would read, and return the tensors with NaN or infinity.

    The scan uses the run's executor, or threads of this process if that executor needs trust.
    """
    executor = plan.resolved.executor
    workers = Threads(torch.get_num_threads()) if collect_needs([executor]) else executor.create()
    with hub.session(plan.options.progress), workers:
        return find_bad_tensors(dict(_scanned(plan)), workers, progress=plan.options.progress)


def raise_if_bad(bad: list[BadTensor], plan: Plan) -> None:
    """Raise `WeightsError` for weights that are not finite, unless the recipe allows them."""
    if bad and plan.resolved.recipe.alignment.nan == "error":
        raise WeightsError(
            f"weights are NaN or infinite in tensors: {len(bad)}, among them "
            f"{bad[0].tensor!r} of {bad[0].model}",
            hint="Repair the models, or allow such weights with --set alignment.nan=allow.",
        )


def _models(plan: Plan, prefix: str = "") -> Iterator[Model]:
    cards = plan.cards
    for name, source in plan.pool.by_name.items():
        infos, aligned = source.infos.values(), plan.aligned.by_name[name]
        yield Model(
            prefix + name,
            source.describe(),
            len(infos),
            sum(info.nbytes for info in infos),
            tuple(dict.fromkeys(str(info.dtype).removeprefix("torch.") for info in infos)),
            len(aligned.missing) if isinstance(aligned, AlignedSource) else 0,
            len(aligned.extra) if isinstance(aligned, AlignedSource) else 0,
            cards.get(name, {}).get("licence"),
            name in plan.nested,
            "" if source.origin is None else source.origin.decoded_from,
        )
        if name in plan.nested:
            yield from _models(plan.nested[name], f"{prefix}{name}/")


def _scanned(plan: Plan, prefix: str = "") -> Iterator[tuple[str, WeightSource]]:
    """Yield the weights to scan: the whole reference, and of experts the merged tensors."""
    models = plan.pool.by_name
    pool = plan.pool.with_sources({name: _Zeros(models[name]) for name in plan.nested})
    for name, source in pool.aligned(plan.resolved.recipe.alignment).by_name.items():
        if name in plan.nested:
            yield from _scanned(plan.nested[name], f"{prefix}{name}/")
        elif models[name] is plan.pool.reference:
            yield prefix + name, models[name]
        else:
            missing = source.missing if isinstance(source, AlignedSource) else frozenset()
            wanted = [tensor for tensor in source.infos if tensor not in missing | plan.skipped]
            yield prefix + name, RenamedSource(source, dict(zip(wanted, wanted, strict=True)))


class _Zeros(WeightSource):
    """A stand-in for a nested merge, which a scan does not make, so that its pool can align."""

    def __init__(self, merge: WeightSource) -> None:
        self.infos = merge.infos

    def read(self, name: str, start: int, stop: int) -> torch.Tensor:
        return torch.zeros(stop - start, dtype=self.infos[name].dtype)


def _size_of_masks(plan: Plan) -> int:
    """Return the size of the file with the tasks' masks of the merged tensors."""
    if not plan.saves_task_masks:
        return 0
    copied = plan.skipped | plan.aligned.treatments.keys()
    infos = {n: info for n, info in plan.aligned.reference.infos.items() if n not in copied}
    packed = describe_packed(infos, len(plan.aligned.experts))
    header, data = build_header(packed.values(), {})
    return len(header) + data


def _disk(plan: Plan) -> Disk:
    if plan.path is not None and (plan.resolved.form is not None or plan.modules_file is not None):
        return Disk(str(plan.path), None, None)
    header, data = build_header([*plan.stored_infos.values()], {"format": "pt"})
    side_files = sum(
        asset.stat().st_size if isinstance(asset, Path) else len(asset)
        for asset in plan.assets(plan.dtype).values()
    )
    needed = len(header) + data + side_files + _size_of_masks(plan)
    if plan.path is None:
        return Disk(None, needed, None)
    return Disk(str(plan.path), needed, free_bytes(plan.path))
