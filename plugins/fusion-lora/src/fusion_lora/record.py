"""The record of an extraction: the error of each module and of the whole, as a file and a table."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

REPORT = "adapter_report.json"
HEADINGS = ("modules", "count", "rank", "relative error", "largest")
_SCHEMA = 1


@dataclass(frozen=True, slots=True)
class Treatment:
    """The treatment of a tensor that differs from the base."""

    tensor: str
    #: `factors`, `whole`, or the kind of a tensor that the adapter leaves out
    kind: str
    rank: int
    squared_norm: float
    squared_error: float

    @property
    def relative_error(self) -> float:
        """The Frobenius norm of the error, relative to that of the difference."""
        return relative_error(self.squared_error, self.squared_norm)


@dataclass
class Record:
    """The treatments of all tensors that differ from the base."""

    treatments: list[Treatment] = field(default_factory=list)

    def add(
        self, tensor: str, kind: str, squared_norm: float, squared_error: float, rank: int = 0
    ) -> None:
        """Add a tensor that differs from the base."""
        self.treatments.append(Treatment(tensor, kind, rank, squared_norm, squared_error))

    @property
    def relative_error(self) -> float:
        """The error of the whole model, relative to its difference from the base."""
        return relative_error(
            math.fsum(treatment.squared_error for treatment in self.treatments),
            math.fsum(treatment.squared_norm for treatment in self.treatments),
        )

    @property
    def left_out(self) -> dict[str, list[Treatment]]:
        """The tensors that change in the model but not in the adapter, by kind."""
        kinds: dict[str, list[Treatment]] = defaultdict(list)
        for treatment in self.treatments:
            if treatment.kind not in {"factors", "whole"}:
                kinds[treatment.kind].append(treatment)
        return dict(kinds)

    def as_data(self) -> dict[str, Any]:
        """Return the record as JSON data."""
        tensors = {
            treatment.tensor: {
                "kind": treatment.kind,
                "rank": treatment.rank,
                "norm": math.sqrt(treatment.squared_norm),
                "relative_error": treatment.relative_error,
            }
            for treatment in self.treatments
        }
        return {"schema": _SCHEMA, "relative_error": self.relative_error, "tensors": tensors}

    def as_json(self) -> bytes:
        """Return the content of `adapter_report.json`."""
        return json.dumps(self.as_data(), indent=2).encode() + b"\n"

    def describe_left_out(self) -> list[str]:
        """Return one line per kind of tensor that changes but is not in the adapter."""
        lines = []
        for kind, treatments in self.left_out.items():
            first = max(treatments, key=lambda treatment: treatment.squared_norm).tensor
            lines.append(
                f"not in the adapter: {len(treatments)} tensors that change ({kind}), for example "
                f"{first}"
            )
        return lines

    def rows(self) -> Iterator[tuple[str, ...]]:
        """Yield the rows of a table: one per last name of a module, one per kind left out."""
        groups: dict[str, list[Treatment]] = defaultdict(list)
        for treatment in self.treatments:
            module = treatment.tensor.rpartition(".")[0].rpartition(".")[2]
            label = module if treatment.kind == "factors" else f"{treatment.kind}: {module}"
            groups[label].append(treatment)
        for label, treatments in groups.items():
            ranks = sorted({treatment.rank for treatment in treatments if treatment.rank})
            span = f"{ranks[0]}-{ranks[-1]}" if len(ranks) > 1 else "".join(map(str, ranks))
            error = relative_error(
                math.fsum(treatment.squared_error for treatment in treatments),
                math.fsum(treatment.squared_norm for treatment in treatments),
            )
            largest = max(treatment.relative_error for treatment in treatments)
            yield label, str(len(treatments)), span, f"{error:.2e}", f"{largest:.2e}"

    def describe(self) -> str:
        """Return one line about the error of the whole."""
        return (
            f"relative error {self.relative_error:.3g} of the difference from the base (Frobenius)"
        )


def relative_error(squared_error: float, squared_norm: float) -> float:
    """Return the ratio of two norms, 0 if there is nothing to represent."""
    return math.sqrt(squared_error / squared_norm) if squared_norm else 0.0
