"""Merging coefficients by expert and canonical tensor name, and the files that hold them."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load, save
from torch import Tensor

from fusion_core.errors import RecipeError
from fusion_core.weights import is_matrix

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

SCHEMA = 1
#: The search options that give coefficients their meaning. A coefficients file records them.
LEARNED_WITH = {
    *("granularity", "shrinkage", "rank", "objective"),
    *("trim", "density", "adapt_split"),
}
_UNREADABLE = (
    OSError,
    ValueError,
    KeyError,
    TypeError,
    AttributeError,
    OverflowError,
    RecursionError,
)


@dataclass(frozen=True)
class Coefficients:
    """One coefficient per expert and tensor, or several and their mean.

    Keys are names and not positions, so that a file still fits after a pool's order has changed.
    """

    #: expert -> tensor -> coefficient
    values: Mapping[str, Mapping[str, float]]
    #: the options and tasks of the search; empty if they are unknown
    learned: Mapping[str, Any] = field(default_factory=dict)
    #: expert -> tensor -> coefficients as `Linear` takes them, for tensors that have several
    finer: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)

    @classmethod
    def of(
        cls, rows: Mapping[str, Mapping[str, Tensor | float]], learned: Mapping[str, Any]
    ) -> Coefficients:
        """Make coefficients from one number or one tensor of numbers per expert and tensor."""
        finer = {
            expert: {name: value for name, value in row.items() if isinstance(value, Tensor)}
            for expert, row in rows.items()
        }
        values = {
            expert: {name: _mean(value) for name, value in row.items()}
            for expert, row in rows.items()
        }
        return cls(values, learned, finer if any(finer.values()) else {})

    def by_tensor(self, experts: Sequence[str]) -> dict[str, tuple[float, ...] | Tensor]:
        """Return each tensor's coefficients in the order of `experts`, as `Linear` takes them."""
        rows = [self.values[expert] for expert in experts]
        finer = [self.finer.get(expert, {}) for expert in experts]
        return {
            name: torch.stack([row[name] for row in finer])
            if name in finer[0]
            else tuple(row[name] for row in rows)
            for name in rows[0]
        }

    def files(self, name: str) -> dict[str, bytes]:
        """Return the files to write by name: the JSON file `name`, and exact tensors if needed."""
        exact = {finer_path(name): self._exact} if self.finer else {}
        return {**exact, name: self.as_bytes()}

    def as_bytes(self) -> bytes:
        """Return the content of `coefficients.json`."""
        exact = {"finer": {"sha256": sha256(self._exact).hexdigest()}} if self.finer else {}
        head = {"schema": SCHEMA, "learned": self.learned, **exact}
        return json.dumps({**head, "coefficients": self.values}, indent=1).encode() + b"\n"

    @cached_property
    def _exact(self) -> bytes:
        """The content of `coefficients.safetensors`, with the keys expert/tensor."""
        return save(
            {
                f"{expert}/{name}": value.cpu().clone()
                for expert, row in self.finer.items()
                for name, value in row.items()
            }
        )

    @classmethod
    def load(
        cls, path: str, *, experts: Sequence[str], shapes: Mapping[str, Sequence[int]]
    ) -> Coefficients:
        """Read a `coefficients.json`, and the exact coefficients next to it if it names them.

        `shapes` are the shapes of the merged tensors. Raises `RecipeError` if the file is not a
        coefficients file, or if its experts, tensors or shapes are not those of this pool.
        """
        try:
            content = json.loads(Path(path).read_text(encoding="utf-8"))
            values = {
                expert: {name: _number(value, expert, name) for name, value in row.items()}
                for expert, row in content["coefficients"].items()
            }
            learned = dict(content.get("learned", {}))
            digest = content["finer"]["sha256"] if "finer" in content else None
        except _UNREADABLE as error:
            raise RecipeError(
                f"algorithm.coefficients: {path!r} is not a coefficients file: {error}",
                hint="Give the coefficients.json of an earlier run of this method.",
            ) from error
        differing = values.keys() ^ set(experts)
        for row in values.values():
            differing |= row.keys() ^ shapes.keys()
        if differing:
            raise RecipeError(
                f"algorithm.coefficients: {path!r} is for other models: unknown or missing "
                f"{', '.join(sorted(differing)[:5])}",
                hint=f"The experts of this pool are: {', '.join(sorted(experts))}.",
            )
        if digest is None:
            return cls(values, learned)
        rows: dict[str, dict[str, Any]] = {expert: {**row} for expert, row in values.items()}
        for expert, name, exact in _read_finer(path, digest, values, shapes):
            rows[expert][name] = exact
        coefficients = cls.of(rows, learned)
        if coefficients.values != values:
            raise _mismatch(path, "a number in the JSON file is not the mean of the exact ones")
        return coefficients

    def check_fits(self, path: str, options: Mapping[str, Any], *, saw_tests: bool) -> None:
        """Raise `RecipeError` if the options give these coefficients another meaning.

        Coefficients of trimmed or transformed task vectors do not fit whole ones. Coefficients that
        saw test examples must not be measured as if they had not. `saw_tests` says whether the
        report will tell that they did.
        """
        decisive = ["trim", *(["density"] if options.get("trim") else []), "adapt_split"]
        for name in decisive:
            current = options.get(name, False)
            learned = self.learned.get(name, current)
            is_told = name == "adapt_split" and learned == "test" and saw_tests
            if learned != current and not is_told:
                add = f"Add: --set algorithm.{name}={json.dumps(learned)}"
                raise RecipeError(
                    f"algorithm.coefficients: {path!r} was learned with {name}: {learned}, not "
                    f"with {current}",
                    hint=add if name in options else "Give it to the method that learned it.",
                )
        before, now = self.learned.get("transforms", []), options.get("transforms", [])
        if self.learned and before != now:
            raise RecipeError(
                f"algorithm.coefficients: {path!r} was learned with the transforms "
                f"{json.dumps(before)}, but this pipeline has {json.dumps(now)}",
                hint="Give the pipeline the same transforms.",
            )


def finer_path(path: str) -> str:
    """Return the path of the exact coefficients that belong to a `coefficients.json`."""
    return str(Path(path).with_suffix(".safetensors"))


def _number(value: Any, expert: str, name: str) -> float:  # noqa: ANN401 - JSON
    if isinstance(value, bool) or not math.isfinite(value):
        raise ValueError(f"expected a finite number for {name!r} of {expert!r}, got {value}")
    return float(value)


def _mean(value: Tensor | float) -> float:
    """Return the mean, with the same bits for any number of threads."""
    if not isinstance(value, Tensor):
        return value
    return math.fsum(value.flatten().tolist()) / value.numel()


def _read_finer(
    path: str,
    digest: str,
    values: Mapping[str, Mapping[str, float]],
    shapes: Mapping[str, Sequence[int]],
) -> Iterator[tuple[str, str, Tensor]]:
    """Yield expert, tensor and exact coefficients from the file that belongs to `path`."""
    try:
        content = Path(finer_path(path)).read_bytes()
    except OSError as error:
        raise _mismatch(path, f"cannot read it: {error.strerror}") from error
    if (actual := sha256(content).hexdigest()) != digest:
        raise _mismatch(path, f"checksum mismatch: expected SHA-256 {digest}, got {actual}")
    owners = {f"{expert}/{name}": (expert, name) for expert, row in values.items() for name in row}
    for key, exact in load(content).items():
        expert, name = owners[key]
        if not _fits(exact.shape, shapes[name]):
            raise RecipeError(
                f"algorithm.coefficients: {path!r} is for other models: {name!r} has coefficients "
                f"of shape {list(exact.shape)}, which do not fit the shape {list(shapes[name])}",
                hint="Give the coefficients.json of a run on models of these shapes.",
            )
        yield expert, name, exact


def _fits(shape: Sequence[int], tensor: Sequence[int]) -> bool:
    """Tell whether coefficients of a shape broadcast over a tensor, or are one of its lists.

    The lists are those that `Linear` takes: of a matrix's components, or of its rows and columns.
    """
    if len(shape) == 1 and is_matrix(tensor):
        return 1 < shape[0] <= min(tensor) + 1 or shape[0] == sum(tensor)
    return len(shape) == len(tensor) and all(
        size in {1, whole} for size, whole in zip(shape, tensor, strict=True)
    )


def _mismatch(path: str, reason: str) -> RecipeError:
    return RecipeError(
        f"algorithm.coefficients: {Path(finer_path(path)).name!r} does not match {path!r}: "
        f"{reason}",
        hint="Keep both files of a run together, unchanged and under the same name.",
    )
