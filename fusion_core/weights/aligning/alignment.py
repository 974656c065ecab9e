"""Do the models fit together? Keys, shapes and dtypes, from headers alone, in one table.

Works on descriptions; no weight is merged, and read are only tensors that one model has and another
lacks, to see whether they are copies (`tied`). What is spelled differently is renamed, and what a
policy allows to differ is resolved here, so that everything downstream sees operands with the same
keys and shapes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from fusion_core.weights.aligning._difference import Difference, misfit
from fusion_core.weights.aligning._tied import Copies
from fusion_core.weights.aligning.vocabulary import MeanSource, PaddedSource, differs_in_vocabulary
from fusion_core.weights.reading.spelling import same_tensors
from fusion_core.weights.source import RenamedSource, WeightSource, base_or_first

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from concurrent.futures import Executor

    from fusion_core.recipe.config import AlignmentPolicy

#: A model has a few tied matrices; what lacks more tensors is another model, and is not read.
_MOST_TIED = 8


@dataclass(frozen=True, slots=True)
class Alignment:
    """Models with the same keys and shapes."""

    base: WeightSource | None
    experts: Mapping[str, WeightSource]
    #: tensors that some expert has and the result has not
    dropped: frozenset[str]


class AlignedSource(WeightSource):
    """A model seen with exactly the reference's keys; what it lacks changes nothing."""

    def __init__(self, source: WeightSource, reference: WeightSource) -> None:
        self._source = source
        self._reference = reference
        self.cut = source.cut.coarser(reference.cut)
        self.is_delta = source.is_delta
        self.infos = {name: source.infos.get(name, info) for name, info in reference.infos.items()}

    @property
    def missing(self) -> frozenset[str]:
        """The tensors that the model lacks."""
        return frozenset(self._reference.infos) - frozenset(self._source.infos)

    @property
    def extra(self) -> frozenset[str]:
        """The tensors that only the model has."""
        return frozenset(self._source.infos) - frozenset(self._reference.infos)

    def read(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Read from the model; what it lacks is the reference's, or differs by zero from it."""
        if name in self._source.infos:
            return self._source.read(name, start, stop)
        if self.is_delta and not self._reference.is_delta:
            return torch.zeros(stop - start, dtype=self.infos[name].dtype)
        return self._reference.read(name, start, stop)

    def ranges(self, name: str) -> Iterator[tuple[int, int]]:
        """Yield those of the model or, of what it lacks, the reference's."""
        return (self._source if name in self._source.infos else self._reference).ranges(name)

    @property
    def sources(self) -> tuple[WeightSource, ...]:
        """The model, and the reference that fills its gaps."""
        return self._source, self._reference

    def prepare(self, executor: Executor, name: str | None = None) -> None:
        """Prepare what is read."""
        for source in self.sources:
            if name is None or name in source.infos:
                source.prepare(executor, name)

    def describe(self) -> str:
        """Name the model."""
        return self._source.describe()


def align(
    base: WeightSource | None,
    experts: Mapping[str, WeightSource],
    policy: AlignmentPolicy,
    beside: Sequence[Difference] = (),
) -> Alignment:
    """Return the models with the keys of the base (or of the first expert, without one).

    Their shapes are the base's, too, except that embeddings may have more rows under the policy
    `vocab: pad`. Raises `AlignmentError` with a table of every difference that the policy does not
    allow, and of those `beside` the weights.
    """
    reference = base_or_first(base, experts)
    first = next(iter(experts)) if base is None else None
    copies = Copies(reference)
    seen = {
        name: expert if expert is reference else _respell(expert, reference, copies)
        for name, expert in experts.items()
    }
    differences = [
        difference
        for name, expert in seen.items()
        if expert is not reference
        for difference in _differences(reference, first, name, expert, policy)
    ]
    if differences or beside:
        raise misfit(beside, differences)
    padded, seen = _pad(reference, seen)
    fitted = {
        name: expert
        if expert.infos.keys() == padded.infos.keys()
        else AlignedSource(expert, padded)
        for name, expert in seen.items()
    }
    dropped = {key for each in seen.values() for key in each.infos} - padded.infos.keys()
    return Alignment(None if base is None else padded, fitted, frozenset(dropped))


def _respell(expert: WeightSource, reference: WeightSource, copies: Copies) -> WeightSource:
    """Return an expert with the reference's names, as far as it has the same tensors.

    A tensor that only one of them has does not count if it copies one that both have: tied weights
    are written once by some savers, twice by others.
    """
    names = same_tensors(reference.infos, expert.infos)
    missing = [key for key in reference.infos if key not in names]
    if len(missing) <= _MOST_TIED:
        twins = {key: [each for each in copies.of(key) if each in names] for key in missing}
        names |= {key: names[found[0]] for key, found in twins.items() if found}
    used, theirs = set(names.values()), Copies(expert)
    extra = [key for key in expert.infos if key not in used and key not in names]
    if len(extra) <= _MOST_TIED:
        extra = [key for key in extra if used.isdisjoint(theirs.of(key))]
    names |= {key: key for key in extra}
    same = len(names) == len(expert.infos) and all(here == there for here, there in names.items())
    return expert if same else RenamedSource(expert, names)


def _pad(
    reference: WeightSource, experts: Mapping[str, WeightSource]
) -> tuple[WeightSource, dict[str, WeightSource]]:
    """Bring embeddings to the largest vocabulary, where there are several."""
    rows = {
        name: max(
            info.shape[0],
            *(expert.infos[name].shape[0] for expert in experts.values() if name in expert.infos),
        )
        for name, info in reference.infos.items()
        if any(
            name in expert.infos and differs_in_vocabulary(info, expert.infos[name])
            for expert in experts.values()
        )
    }
    if not rows:
        return reference, dict(experts)
    models = [expert for expert in experts.values() if not expert.is_delta]
    padded = PaddedSource(reference, rows, MeanSource(models, rows))
    return padded, {
        name: padded
        if each is reference
        else PaddedSource(each, rows, None if each.is_delta else padded)
        for name, each in experts.items()
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
            words = differs_in_vocabulary(ours, theirs) and not expert.is_delta
            if not words or policy.vocab == "error":
                shapes = f"{list(theirs.shape)}, {measure}'s is {list(ours.shape)}"
                yield Difference(
                    key, name, f"shape {shapes}", "alignment.vocab=pad" if words else ""
                )
        elif ours.dtype != theirs.dtype and not expert.is_delta:
            both_float = ours.dtype.is_floating_point and theirs.dtype.is_floating_point
            if policy.dtype == "error" or not both_float:
                dtypes = f"{theirs.dtype}, {measure}'s is {ours.dtype}"
                remedy = "alignment.dtype=promote" if both_float else ""
                yield Difference(key, name, f"dtype {dtypes}", remedy)
    if policy.missing == "error" or first is not None:
        remedy = "alignment.missing=base" if first is None else ""
        for key in reference.infos.keys() - expert.infos.keys():
            yield Difference(key, name, "missing", remedy)
