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
#: The options of a search that what it found depends on, and that a file of coefficients names.
LEARNED_WITH = {"granularity", "rank", "objective", "trim", "density", "adapt_split"}


@dataclass(frozen=True)
class Coefficients:
    """One coefficient an expert and tensor, or several: then the one is their mean.

    Keys are names, never positions, so a file still fits when a pool's order changes.
    """

    #: expert -> tensor -> coefficient
    values: Mapping[str, Mapping[str, float]]
    #: options and tasks that they were learned with; empty where that is not known
    learned: Mapping[str, Any] = field(default_factory=dict)
    #: expert -> tensor -> coefficients as `Linear` takes them; only of tensors that have several
    finer: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)

    @classmethod
    def of(
        cls, found: Mapping[str, Mapping[str, Tensor | float]], learned: Mapping[str, Any]
    ) -> Coefficients:
        """Take coefficients by expert and tensor, of which some are tensors of several."""
        finer = {
            expert: {name: each for name, each in row.items() if isinstance(each, Tensor)}
            for expert, row in found.items()
        }
        values = {
            expert: {name: _mean(each) for name, each in row.items()}
            for expert, row in found.items()
        }
        return cls(values, learned, finer if any(finer.values()) else {})

    def by_tensor(self, experts: Sequence[str]) -> dict[str, tuple[float, ...] | Tensor]:
        """Return each tensor's coefficients in the experts' order, as `Linear` takes them."""
        rows = [self.values[expert] for expert in experts]
        finer = [self.finer.get(expert, {}) for expert in experts]
        return {
            name: torch.stack([row[name] for row in finer])
            if name in finer[0]
            else tuple(row[name] for row in rows)
            for name in rows[0]
        }

    def files(self, name: str) -> dict[str, bytes]:
        """Return what is written: `name`, which ends in .json, and what lies beside it."""
        beside = {finer_beside(name): self._exact} if self.finer else {}
        return {**beside, name: self.as_bytes()}

    def as_bytes(self) -> bytes:
        """Return the content of `coefficients.json`."""
        exact = {"finer": {"sha256": sha256(self._exact).hexdigest()}} if self.finer else {}
        head = {"schema": SCHEMA, "learned": self.learned, **exact}
        return json.dumps({**head, "coefficients": self.values}, indent=1).encode() + b"\n"

    @cached_property
    def _exact(self) -> bytes:
        """Return the content of `coefficients.safetensors`: keys are expert/tensor."""
        named = {f"{k}/{name}": each for k, row in self.finer.items() for name, each in row.items()}
        return save({key: each.cpu().clone() for key, each in named.items()})

    @classmethod
    def load(
        cls, path: str, *, experts: Sequence[str], shapes: Mapping[str, Sequence[int]]
    ) -> Coefficients:
        """Read a `coefficients.json`, and the finer ones beside it where it says so.

        `shapes` are those of the tensors that are merged. Raises `RecipeError` for another kind of
        file, and for one of other experts or tensors.
        """
        try:
            content = json.loads(Path(path).read_text(encoding="utf-8"))
            values = {
                expert: {name: _number(value, expert, name) for name, value in row.items()}
                for expert, row in content["coefficients"].items()
            }
            learned = dict(content.get("learned", {}))
            digest = content["finer"]["sha256"] if "finer" in content else None
        except _NO_COEFFICIENTS as error:
            raise RecipeError(
                f"algorithm.coefficients: {path!r} is not a coefficients file: {error}",
                hint="Give the coefficients.json of an earlier run of this method.",
            ) from error
        _check_names(values, path, experts=set(experts), names=set(shapes))
        if digest is None:
            return cls(values, learned)
        found: dict[str, dict[str, Any]] = {expert: {**row} for expert, row in values.items()}
        for expert, name, exact in _finer(path, digest, values, shapes):
            found[expert][name] = exact
        again = cls.of(found, learned)
        if again.values != values:
            raise _not_beside(path, "a number in the JSON is not the mean of those in it")
        return again

    def check_fits(self, path: str, options: Mapping[str, Any]) -> None:
        """Raise `RecipeError` for options that give these coefficients another meaning.

        Of transformed task vectors they are not coefficients of whole ones, and a model whose
        coefficients saw test examples cannot be measured as if they had not.
        """
        decisive = ["trim", *(["density"] if options.get("trim") else []), "adapt_split"]
        for name in decisive:
            here = options.get(name, False)
            if self.learned.get(name, here) != here:
                add = f"Add: --set algorithm.{name}={json.dumps(self.learned[name])}"
                raise RecipeError(
                    f"algorithm.coefficients: {path!r} was learned with {name}: "
                    f"{self.learned[name]}, not with {here}",
                    hint=add if name in options else "Give it to the method that learned it.",
                )
        before, now = self.learned.get("transforms", []), options.get("transforms", [])
        if self.learned and before != now:
            raise RecipeError(
                f"algorithm.coefficients: {path!r} was learned after the transforms "
                f"{json.dumps(before)}, and here are {json.dumps(now)}",
                hint="Give the pipeline the same transforms.",
            )


_NO_COEFFICIENTS = (
    OSError,
    ValueError,
    KeyError,
    TypeError,
    AttributeError,
    OverflowError,
    RecursionError,
)


def _number(value: Any, expert: str, name: str) -> float:  # noqa: ANN401 - what a file holds
    if isinstance(value, bool) or not math.isfinite(value):
        raise ValueError(f"{value} is not a number, of {expert!r} for {name!r}")
    return float(value)


def _check_names(
    values: Mapping[str, Mapping[str, float]], path: str, *, experts: set[str], names: set[str]
) -> None:
    strange = values.keys() ^ experts
    for row in values.values():
        strange |= row.keys() ^ names
    if strange:
        listed = ", ".join(sorted(strange)[:5])
        raise RecipeError(
            f"algorithm.coefficients: {path!r} is for other models: {listed}",
            hint=f"The experts here are: {', '.join(sorted(experts))}.",
        )


def finer_beside(path: str) -> str:
    """Name the file of finer coefficients that lies beside a `coefficients.json`."""
    return str(Path(path).with_suffix(".safetensors"))


def _mean(found: Tensor | float) -> float:
    """Return the mean, the same bits whatever the number of threads."""
    if not isinstance(found, Tensor):
        return found
    return math.fsum(found.flatten().tolist()) / found.numel()


def _finer(
    path: str,
    digest: str,
    values: Mapping[str, Mapping[str, float]],
    shapes: Mapping[str, Sequence[int]],
) -> Iterator[tuple[str, str, Tensor]]:
    """Yield expert, tensor and coefficients of the file beside `path`."""
    try:
        content = Path(finer_beside(path)).read_bytes()
    except OSError as error:
        raise _not_beside(path, f"it cannot be read: {error.strerror}") from error
    if sha256(content).hexdigest() != digest:
        raise _not_beside(path, "its SHA-256 is another")
    owners = {f"{expert}/{name}": (expert, name) for expert, row in values.items() for name in row}
    for key, exact in load(content).items():
        expert, name = owners[key]
        if not _fits(exact.shape, shapes[name]):
            given = f"{list(exact.shape)} over {list(shapes[name])}"
            raise RecipeError(
                f"algorithm.coefficients: {path!r} is for other models: {name!r} has coefficients "
                f"of shape {given}",
                hint="Give the coefficients.json of a run on models of these shapes.",
            )
        yield expert, name, exact


def _fits(shape: Sequence[int], over: Sequence[int]) -> bool:
    """Tell whether coefficients broadcast over a tensor, or are listed as `Linear` takes them."""
    if len(shape) == 1 and is_matrix(over):
        return 1 < shape[0] <= min(over) + 1 or shape[0] == sum(over)
    return len(shape) == len(over) and all(
        n in {1, whole} for n, whole in zip(shape, over, strict=True)
    )


def _not_beside(path: str, why: str) -> RecipeError:
    beside = Path(finer_beside(path)).name
    return RecipeError(
        f"algorithm.coefficients: {beside!r} beside {path!r} does not belong to it: {why}",
        hint="Keep the two files of a run together, unchanged and under the same name.",
    )
