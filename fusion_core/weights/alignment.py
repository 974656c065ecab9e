"""Do the models fit together? Keys, shapes and dtypes, from headers alone, in one table.

Works on descriptions; no weight is read. What a policy allows to differ is resolved here, so that
everything downstream sees operands with the same keys and shapes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from fusion_core.errors import AlignmentError
from fusion_core.weights.source import WeightSource

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from concurrent.futures import Executor

    from fusion_core.config import AlignmentPolicy

_LONGEST_TABLE = 20
_EIGHT_BITS = {torch.float8_e4m3fn, torch.float8_e5m2}


@dataclass(frozen=True, slots=True)
class Difference:
    """One way in which an expert does not fit the reference."""

    tensor: str
    expert: str
    problem: str

    def __str__(self) -> str:
        return f"  {self.tensor}  {self.expert}: {self.problem}"


class AlignedSource(WeightSource):
    """An expert seen with exactly the reference's keys; what it lacks is the reference's."""

    def __init__(self, source: WeightSource, reference: WeightSource) -> None:
        self._source = source
        self._reference = reference
        self.cut = source.cut.coarser(reference.cut)
        self.infos = {name: source.infos.get(name, info) for name, info in reference.infos.items()}

    def read(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Read from the expert, or from the reference what the expert lacks."""
        home = self._source if name in self._source.infos else self._reference
        return home.read(name, start, stop)

    def prepare(self, executor: Executor) -> None:
        """Prepare the expert."""
        self._source.prepare(executor)

    def describe(self) -> str:
        """Name the expert."""
        return self._source.describe()


def align(
    base: WeightSource | None, experts: Mapping[str, WeightSource], policy: AlignmentPolicy
) -> dict[str, WeightSource]:
    """Return the experts with the keys of the base (or of the first expert, without one).

    Raises `AlignmentError` with a table of every difference that the policy does not allow.
    """
    reference = base if base is not None else next(iter(experts.values()))
    differences = [
        difference
        for name, expert in experts.items()
        if expert is not reference
        for difference in _differences(reference, name, expert, policy)
    ]
    differences += _refused(reference)
    if differences:
        raise AlignmentError(_table(differences), hint=_hint(differences))
    return {
        name: expert
        if expert.infos.keys() == reference.infos.keys()
        else AlignedSource(expert, reference)
        for name, expert in experts.items()
    }


def _differences(
    reference: WeightSource, name: str, expert: WeightSource, policy: AlignmentPolicy
) -> Iterator[Difference]:
    for key, theirs in expert.infos.items():
        ours = reference.infos.get(key)
        if ours is None:
            if policy.extra == "error":
                yield Difference(key, name, "extra: not in the base")
        elif ours.shape != theirs.shape:
            shapes = f"{list(theirs.shape)}, the base's is {list(ours.shape)}"
            yield Difference(key, name, f"shape {shapes}")
        elif ours.dtype != theirs.dtype:
            both_float = ours.dtype.is_floating_point and theirs.dtype.is_floating_point
            if policy.dtype == "error" or not both_float:
                yield Difference(key, name, f"dtype {theirs.dtype}, the base's is {ours.dtype}")
    if policy.missing == "error":
        for key in reference.infos.keys() - expert.infos.keys():
            yield Difference(key, name, "missing")


def _refused(reference: WeightSource) -> Iterator[Difference]:
    for key, info in reference.infos.items():
        if info.dtype in _EIGHT_BITS:
            yield Difference(key, "base", f"{info.dtype}: scaled 8-bit weights are not merged")


def _table(differences: list[Difference]) -> str:
    ordered = sorted(differences, key=lambda each: (each.tensor, each.expert))
    rows = [str(each) for each in ordered[:_LONGEST_TABLE]]
    if len(ordered) > _LONGEST_TABLE:
        rows.append(f"  ... and {len(ordered) - _LONGEST_TABLE} more")
    plural = "difference" if len(ordered) == 1 else "differences"
    return "\n".join([f"the models do not fit together: {len(ordered)} {plural}", *rows])


def _hint(differences: list[Difference]) -> str:
    problems = " ".join(each.problem for each in differences)
    allowed = [
        f"alignment.{policy}={value}"
        for policy, value, sign in (
            ("missing", "base", "missing"),
            ("extra", "drop", "extra"),
            ("dtype", "promote", "dtype"),
        )
        if sign in problems
    ]
    advice = f"; to allow some of this: {', '.join(allowed)}" if allowed else ""
    return f"Check that every expert was fine-tuned from this base{advice}."
