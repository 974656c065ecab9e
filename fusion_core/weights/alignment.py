"""Do the models fit together? Keys, shapes and dtypes, from headers alone, in one table.

Works on descriptions; no weight is read. What a policy allows to differ is resolved here, so that
everything downstream sees operands with the same keys and shapes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from fusion_core.errors import AlignmentError
from fusion_core.weights.source import WeightSource

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from concurrent.futures import Executor

    import torch

    from fusion_core.config import AlignmentPolicy
    from fusion_core.weights.source import Cut

_LONGEST_TABLE = 20


@dataclass(frozen=True, slots=True)
class Difference:
    """One way in which an expert does not fit the reference."""

    tensor: str
    expert: str
    problem: str
    #: the policy that would let it pass, if there is one
    remedy: str = ""

    def __str__(self) -> str:
        return f"  {self.tensor}  {self.expert}: {self.problem}"


class AlignedSource(WeightSource):
    """A model seen with exactly the reference's keys; what it lacks is the reference's."""

    def __init__(self, source: WeightSource, reference: WeightSource) -> None:
        self._source = source
        self._reference = reference
        self.infos = {name: source.infos.get(name, info) for name, info in reference.infos.items()}

    @property
    def cut(self) -> Cut:  # type: ignore[override]
        """The coarser of both cuts, which a merge may know only when it is made."""
        return self._source.cut.coarser(self._reference.cut)

    def read(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Read from the model, or from the reference what the model lacks."""
        return self._home(name).read(name, start, stop)

    def prepare(self, executor: Executor, name: str | None = None) -> None:
        """Prepare the one that a tensor is read from."""
        if name is None:
            super().prepare(executor)
        else:
            self._home(name).prepare(executor, name)

    def _home(self, name: str) -> WeightSource:
        return self._source if name in self._source.infos else self._reference

    @property
    def sources(self) -> tuple[WeightSource, ...]:
        """The model, and the reference that fills its gaps."""
        return self._source, self._reference

    def describe(self) -> str:
        """Name the model."""
        return self._source.describe()


def align(
    base: WeightSource | None, experts: Mapping[str, WeightSource], policy: AlignmentPolicy
) -> dict[str, WeightSource]:
    """Return the experts with the keys of the base (or of the first expert, without one).

    Raises `AlignmentError` with a table of every difference that the policy does not allow.
    """
    reference = base if base is not None else next(iter(experts.values()))
    first = next(iter(experts)) if base is None else None
    differences = [
        difference
        for name, expert in experts.items()
        if expert is not reference
        for difference in _differences(reference, first, name, expert, policy)
    ]
    everyone = experts if base is None else {"base": base, **experts}
    differences += [each for name, source in everyone.items() for each in _refused(name, source)]
    if differences:
        raise AlignmentError(_table(differences), hint=_hint(differences))
    return {
        name: expert
        if expert.infos.keys() == reference.infos.keys()
        else AlignedSource(expert, reference)
        for name, expert in experts.items()
    }


def _differences(
    reference: WeightSource,
    first: str | None,
    name: str,
    expert: WeightSource,
    policy: AlignmentPolicy,
) -> Iterator[Difference]:
    """Compare an expert with the base or, where there is none, with the `first` expert."""
    measure = "the base" if first is None else first
    for key, theirs in expert.infos.items():
        ours = reference.infos.get(key)
        if ours is None:
            if policy.extra == "error":
                yield Difference(key, name, f"extra: not in {measure}", "alignment.extra=drop")
        elif ours.shape != theirs.shape:
            shapes = f"{list(theirs.shape)}, {measure}'s is {list(ours.shape)}"
            yield Difference(key, name, f"shape {shapes}")
        elif ours.dtype != theirs.dtype:
            both_float = ours.dtype.is_floating_point and theirs.dtype.is_floating_point
            if policy.dtype == "error" or not both_float:
                dtypes = f"{theirs.dtype}, {measure}'s is {ours.dtype}"
                remedy = "alignment.dtype=promote" if both_float else ""
                yield Difference(key, name, f"dtype {dtypes}", remedy)
    if policy.missing == "error" or first is not None:
        remedy = "alignment.missing=base" if first is None else ""
        for key in reference.infos.keys() - expert.infos.keys():
            yield Difference(key, name, "missing", remedy)


def _refused(name: str, source: WeightSource) -> Iterator[Difference]:
    for key, info in source.infos.items():
        if info.dtype.is_floating_point and info.dtype.itemsize == 1:
            yield Difference(key, name, f"{info.dtype}: scaled 8-bit weights are not merged")


def _table(differences: list[Difference]) -> str:
    ordered = sorted(differences, key=lambda each: (each.tensor, each.expert))
    rows = [str(each) for each in ordered[:_LONGEST_TABLE]]
    if len(ordered) > _LONGEST_TABLE:
        rows.append(f"  ... and {len(ordered) - _LONGEST_TABLE} more")
    plural = "difference" if len(ordered) == 1 else "differences"
    return "\n".join([f"the models do not fit together: {len(ordered)} {plural}", *rows])


def _hint(differences: list[Difference]) -> str:
    allowed = sorted({each.remedy for each in differences if each.remedy})
    advice = f"; to allow some of this: {', '.join(allowed)}" if allowed else ""
    return f"Check that every expert was fine-tuned from this base{advice}."
