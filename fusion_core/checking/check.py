"""What a run would do, said beforehand: from headers alone, and nothing is written.

Serves `fuse check` and `fuse run --dry-run`. Only `scan` reads weights.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from fusion_core import hub
from fusion_core.checking.memory import Memory, estimate
from fusion_core.errors import DiskError, WeightsError
from fusion_core.planning.dtypes import dtype_of, stored_infos
from fusion_core.planning.trust import needs_of
from fusion_core.weights import AlignedSource, RenamedSource, WeightSource
from fusion_core.weights.merging.execution import Threads
from fusion_core.weights.merging.finite import BadTensor, bad_tensors
from fusion_core.weights.reading.format import build_header
from fusion_core.weights.writing.disk import free_bytes

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from fusion_core.planning.fallbacks import Fallback
    from fusion_core.planning.holdings import Holding
    from fusion_core.planning.planned import Plan

SCHEMA = 1


@dataclass(frozen=True, slots=True)
class Model:
    """One model of the run, and how it fits."""

    name: str
    source: str
    tensors: int
    bytes: int
    dtypes: tuple[str, ...]
    #: tensors that it lacks and the base gives, and that only it has: as the policies allow
    missing: int
    extra: int
    licence: str | None
    #: whether it is what a nested recipe merges, whose models follow
    nested: bool = False


@dataclass(frozen=True, slots=True)
class Disk:
    """What the output takes, and what is free where it goes; None without an output."""

    path: str | None
    needed: int
    free: int | None

    @property
    def fits(self) -> bool:
        """Whether there is room."""
        return self.free is None or self.needed <= self.free


@dataclass(frozen=True, slots=True)
class Check:
    """What a run would read, make and need."""

    algorithm: str
    models: tuple[Model, ...]
    tensors: Mapping[str, int]
    disk: Disk
    memory: Memory
    #: tensors that are merged matrix by matrix
    matrices: tuple[Holding, ...]
    #: tensors that a stage treats otherwise than its name says
    fallbacks: tuple[Fallback, ...]
    warnings: tuple[str, ...]
    #: what the recipe asks for that can run code: reasons by the name that allows it
    needs_trust: Mapping[str, tuple[str, ...]]
    #: what only the run will learn, because it needs trust
    not_checked: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """Return it as JSON's data."""
        return {"schema": SCHEMA, **asdict(self)}

    def raise_unless_it_fits(self) -> None:
        """Raise `DiskError` if the output has no room."""
        if not self.disk.fits:
            raise DiskError(
                f"{self.disk.path}: the output takes {self.disk.needed:,} bytes, "
                f"{self.disk.free:,} are free there",
                hint="Make room, or write elsewhere with -o.",
            )


def check(plan: Plan) -> Check:
    """Say what a plan would do.

    Raises `AlignmentError` with a table of every difference if the models do not fit together, and
    what `Plan.check_data` raises. What needs trust is not started, even if it has that.
    """
    models = tuple(_models(plan))
    plan.check_data(untrusted=True)
    return Check(
        plan.algorithm_name,
        models,
        plan.counts,
        _disk(plan),
        estimate(plan),
        plan.holdings,
        plan.fallbacks,
        tuple(plan.warnings),
        plan.needs_trust,
        tuple(_not_checked(plan)),
    )


def _not_checked(plan: Plan, prefix: str = "") -> Iterator[str]:
    """Name the task pools that a check leaves alone because looking at them needs trust."""
    if plan.tasks_read is not None and plan.tasks_to_look_at is None:
        assert plan.resolved.task_pool is not None  # noqa: S101 - it is what needs trust
        yield f"{prefix}{plan.resolved.task_pool.name}: whether its tasks and data are there"
    for name, nested in plan.nested.items():
        yield from _not_checked(nested, f"{prefix}{name}/")


def scan(plan: Plan) -> list[BadTensor]:
    """Read everything that the run would read, and return what holds NaN or infinity.

    On the run's executor or, where that needs trust, on threads of this process.
    """
    own = plan.resolved.executor
    made = Threads(torch.get_num_threads()) if needs_of([own]) else own.create()
    with hub.session(plan.options.progress), made as executor:
        return bad_tensors(dict(_read(plan)), executor, progress=plan.options.progress)


def raise_if_bad(found: list[BadTensor], plan: Plan) -> None:
    """Raise `WeightsError` if weights are not finite, unless the recipe allows it."""
    if found and plan.resolved.recipe.alignment.nan == "error":
        raise WeightsError(
            f"weights are NaN or infinite in tensors: {len(found)}, among them "
            f"{found[0].tensor!r} of {found[0].model}",
            hint="Mend the models, or set alignment.nan to 'allow' to let them through.",
        )


def _models(plan: Plan, prefix: str = "") -> Iterator[Model]:
    licences, fitted, nested = plan.pool.licences(), plan.aligned.by_name, plan.nested
    for name, source in plan.pool.by_name.items():
        infos, seen = source.infos.values(), fitted[name]
        yield Model(
            prefix + name,
            source.describe(),
            len(infos),
            sum(info.nbytes for info in infos),
            tuple(dict.fromkeys(str(info.dtype).removeprefix("torch.") for info in infos)),
            len(seen.missing) if isinstance(seen, AlignedSource) else 0,
            len(seen.extra) if isinstance(seen, AlignedSource) else 0,
            licences.get(name) or plan.licence,
            name in nested,
        )
        if name in nested:
            yield from _models(nested[name], f"{prefix}{name}/")


def _read(plan: Plan, prefix: str = "") -> Iterator[tuple[str, WeightSource]]:
    """Name what is read: of the reference everything, of experts what they have and is merged."""
    models, nested = plan.pool.by_name, plan.nested
    pool = plan.pool.with_sources({name: _Zeros(models[name]) for name in nested})
    for name, source in pool.aligned(plan.resolved.recipe.alignment).by_name.items():
        if name in nested:
            yield from _read(nested[name], f"{prefix}{name}/")
        elif models[name] is plan.pool.reference:
            yield prefix + name, models[name]
        else:
            absent = source.missing if isinstance(source, AlignedSource) else frozenset()
            wanted = [each for each in source.infos if each not in absent | plan.skipped]
            yield prefix + name, RenamedSource(source, dict(zip(wanted, wanted, strict=True)))


class _Zeros(WeightSource):
    """Stands for a merge that a scan does not make: what differs from it is seen as it is."""

    def __init__(self, place: WeightSource) -> None:
        self.infos = place.infos

    def read(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Return zeros."""
        return torch.zeros(stop - start, dtype=self.infos[name].dtype)


def _disk(plan: Plan) -> Disk:
    dtype = dtype_of(plan.resolved.recipe.output.dtype)
    header, data = build_header(list(stored_infos(plan.outline, dtype).values()), {"format": "pt"})
    beside = sum(
        asset.stat().st_size if isinstance(asset, Path) else len(asset)
        for asset in plan.assets(dtype).values()
    )
    needed = len(header) + data + beside
    if plan.path is None:
        return Disk(None, needed, None)
    return Disk(str(plan.path), needed, free_bytes(plan.path))
