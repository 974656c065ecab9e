"""Check that models fit together, and give them the same keys and shapes.

The checks read headers and report all differences in one table. Weights are read only of tensors
that one model has and another lacks, to see whether they are tied copies. Tensors that are spelled
differently are renamed, and differences that a policy allows are resolved here, so that everything
downstream sees operands with the same keys and shapes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from fusion_core.errors import AlignmentError
from fusion_core.formatting import format_names
from fusion_core.weights.aligning.difference import DROP_EXTRA, Difference, misfit
from fusion_core.weights.aligning.vocabulary import (
    MeanSource,
    PaddedSource,
    count_tokens,
    differs_in_vocabulary,
    find_twin,
)
from fusion_core.weights.joined import RenamedSource
from fusion_core.weights.reading.name_matching import match_names
from fusion_core.weights.source import LowRank, WeightSource, are_equal, reference_model

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence
    from concurrent.futures import Executor

    from fusion_core.recipe.config import AlignmentPolicy
    from fusion_core.weights.source import Contradiction, TensorInfo

#: A model has few tied matrices. If it lacks more tensors, it is another model, and is not read.
_MOST_TIED = 8
#: Elements that are compared before whole tensors are.
_PROBE = 256


@dataclass(frozen=True, slots=True)
class Alignment:
    """Models with the same keys and shapes."""

    base: WeightSource | None
    experts: Mapping[str, WeightSource]
    #: tensors of experts that the result lacks
    dropped: frozenset[str]
    #: tensors of the base that no expert has
    untouched: frozenset[str]

    @property
    def warnings(self) -> tuple[str, ...]:
        """Say which tensors no expert has: experts may have them under other names."""
        if not self.untouched:
            return ()
        untouched = f"no expert has {_count(self.untouched)}, so the merge takes the base's"
        dropped = f"; experts alone have {_count(self.dropped)}, which the merge leaves out"
        return (f"{untouched}{dropped if self.dropped else ''}",)


class AlignedSource(WeightSource):
    """A model with exactly the reference's keys; tensors that it lacks change nothing."""

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
        """Read from the model; a missing tensor equals the reference's, or differs by zero."""
        if name in self._source.infos:
            return self._source.read(name, start, stop)
        if self.is_delta and not self._reference.is_delta:
            return torch.zeros(stop - start, dtype=self.infos[name].dtype)
        return self._reference.read(name, start, stop)

    def file_range(self, name: str, start: int) -> tuple[int, int] | None:
        """Return the range in a file of the model."""
        return self._source.file_range(name, start) if name in self._source.infos else None

    def ranges(self, name: str) -> Iterator[tuple[int, int]]:
        """Yield the ranges of the model or, for a tensor that it lacks, of the reference."""
        return (self._source if name in self._source.infos else self._reference).ranges(name)

    def low_rank(self, name: str) -> LowRank | None:
        """Return the factors of the model or, for a tensor that it lacks, of the reference."""
        if name in self._source.infos:
            return self._source.low_rank(name)
        if self.is_delta and not self._reference.is_delta:
            return LowRank.unchanged(self.infos[name].shape)
        return self._reference.low_rank(name)

    def contradictions(self, base_config: Mapping[str, Any]) -> Iterator[Contradiction]:
        """Yield the contradictions of the model; the reference reports its own."""
        return self._source.contradictions(base_config)

    @property
    def sources(self) -> tuple[WeightSource, ...]:
        """The model and the reference."""
        return self._source, self._reference

    def prepare(self, executor: Executor, name: str | None = None) -> None:
        """Prepare the model and the reference, as far as they have the tensor."""
        for source in self.sources:
            if name is None or name in source.infos:
                source.prepare(executor, name)


def align(
    base: WeightSource | None,
    experts: Mapping[str, WeightSource],
    policy: AlignmentPolicy,
    side_file_differences: Sequence[Difference] = (),
) -> Alignment:
    """Return the models with the keys of the base or, without a base, of the first expert.

    They also get its shapes, except that embeddings may have more rows under the policy
    `vocab: pad`. Raises `AlignmentError` with a table of every difference that the policy does not
    allow; `side_file_differences` are added to them.
    """
    reference = reference_model(base, experts)
    label = "the base" if base is not None else next(iter(experts))
    respelled = {
        name: expert if expert is reference else _respell(expert, reference)
        for name, expert in experts.items()
    }
    for name, expert in respelled.items():
        if expert.infos and reference.infos and expert.infos.keys().isdisjoint(reference.infos):
            raise AlignmentError(
                f"the models do not fit together: {name} ({expert.describe()}) has no tensor of "
                f"{label}, but {_count(expert.infos)}",
                hint="Name models of one architecture, or leave this one out.",
            )
    differences = [
        Difference(key, name, problem, remedy)
        for name, expert in respelled.items()
        if expert is not reference
        for key, problem, remedy in _differences(
            reference, expert, policy, label, has_base=base is not None
        )
    ]
    if differences or side_file_differences:
        raise misfit(side_file_differences, differences)
    padded_reference, padded = _pad(reference, respelled, has_base=base is not None)
    keys = padded_reference.infos.keys()
    aligned = {
        name: expert if expert.infos.keys() == keys else AlignedSource(expert, padded_reference)
        for name, expert in padded.items()
    }
    of_experts = frozenset(key for expert in padded.values() for key in expert.infos)
    aligned_base = None if base is None else padded_reference
    return Alignment(aligned_base, aligned, of_experts - keys, frozenset(keys - of_experts))


def _count(names: Collection[str]) -> str:
    """Return how many tensors there are, and the first names."""
    plural = "" if len(names) == 1 else "s"
    return f"{len(names)} tensor{plural} ({format_names(sorted(names))})"


def _respell(expert: WeightSource, reference: WeightSource) -> WeightSource:
    """Return an expert with the reference's names, as far as it has the same tensors.

    Some savers write tied weights once, others twice. So a tensor that only one of the two models
    has is left out if it copies a tensor that both have.
    """
    try:
        shared = match_names(reference.infos, expert.infos)
    except AlignmentError as error:
        raise AlignmentError(f"{expert.describe()}: {error.message}", hint=error.hint) from error
    names = dict(shared)
    missing = [key for key in reference.infos if key not in shared]
    if len(missing) <= _MOST_TIED:
        for key in missing:
            tied = next((copy for copy in _copies(reference, key) if copy in shared), None)
            if tied is not None:
                names[key] = shared[tied]
    used = set(names.values())
    extra = [key for key in expert.infos if key not in used and key not in names]
    if len(extra) <= _MOST_TIED:
        extra = [key for key in extra if used.isdisjoint(_copies(expert, key))]
    names |= {key: key for key in extra}
    is_same = len(names) == len(expert.infos) and all(
        key == spelling for key, spelling in names.items()
    )
    return expert if is_same else RenamedSource(expert, names)


def _copies(source: WeightSource, name: str) -> list[str]:
    """Return the tensors that are exact copies of one; none for lazy or delta sources.

    Neither a name such as `lm_head.weight` nor a configuration proves that a matrix is tied, so the
    content decides. A constant tensor has no copies.
    """
    if source.sources or source.is_delta:
        return []
    info = source.infos[name]
    candidates = [
        other
        for other, candidate in source.infos.items()
        if other != name and (candidate.shape, candidate.dtype) == (info.shape, info.dtype)
    ]
    if not candidates:
        return []
    probe = source.read(name, 0, min(_PROBE, info.numel))
    if not (probe != probe[:1]).any():
        return []
    return [
        other
        for other in candidates
        if torch.equal(source.read(other, 0, len(probe)), probe) and are_equal(source, name, other)
    ]


def _pad(
    reference: WeightSource, experts: Mapping[str, WeightSource], *, has_base: bool
) -> tuple[WeightSource, Mapping[str, WeightSource]]:
    """Pad embeddings to the largest vocabulary, if there are several sizes.

    Rows that an expert lacks are the base's or, without a base, the mean of those that have them.
    """
    rows: dict[str, int] = {}
    for name, info in reference.infos.items():
        others = [expert.infos[name] for expert in experts.values() if name in expert.infos]
        if any(differs_in_vocabulary(info, other) for other in others):
            rows[name] = max(map(count_tokens, (info, *others)))
    if not rows:
        return reference, experts
    models = [expert for expert in experts.values() if not expert.is_delta]
    mean = MeanSource(models, rows, reference)
    padded = PaddedSource(reference, rows, mean)
    filler = padded if has_base else mean
    return padded, {
        name: padded
        if expert is reference
        else PaddedSource(expert, rows, None if expert.is_delta else filler)
        for name, expert in experts.items()
    }


def _differences(
    reference: WeightSource,
    expert: WeightSource,
    policy: AlignmentPolicy,
    label: str,
    *,
    has_base: bool,
) -> Iterator[tuple[str, str, str]]:
    """Yield the tensor, problem and remedy of every difference that the policy does not allow."""
    for key, info in expert.infos.items():
        expected = reference.infos.get(key)
        if expected is None:
            if policy.extra == "error":
                lost = ", so to drop it loses this change" if expert.is_delta else ""
                yield key, f"extra: not in {label}{lost}{_explain_tie(info, reference)}", DROP_EXTRA
        elif expected.shape != info.shape:
            can_pad = differs_in_vocabulary(expected, info) and not expert.is_delta
            if not can_pad or policy.vocab == "error":
                problem = f"shape {list(info.shape)}, {label}'s is {list(expected.shape)}"
                yield key, problem, "alignment.vocab=pad" if can_pad else ""
        elif expected.dtype != info.dtype and not expert.is_delta:
            can_promote = expected.dtype.is_floating_point and info.dtype.is_floating_point
            if not can_promote or policy.dtype == "error":
                problem = f"dtype {info.dtype}, {label}'s is {expected.dtype}"
                yield key, problem, "alignment.dtype=promote" if can_promote else ""
    if policy.missing == "error" or not has_base:
        remedy = "alignment.missing=base" if has_base else ""
        for key in reference.infos.keys() - expert.infos.keys():
            yield key, f"missing{_explain_tie(reference.infos[key], expert)}", remedy


def _explain_tie(head: TensorInfo, model: WeightSource) -> str:
    """Say how to untie a head that a model lacks and may have tied to its embeddings."""
    twin = find_twin(head, model)
    return "" if twin is None else f"; if tied to {twin} there, save that model with a copy of it"
