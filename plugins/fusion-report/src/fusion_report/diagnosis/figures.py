"""Measurements of a diagnosis: of each expert, between experts, and of predictions."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from itertools import combinations
from statistics import fmean, median
from typing import TYPE_CHECKING, Any

from fusion_report.diagnosis.kinds import Kind
from fusion_report.diagnosis.merges import AVERAGE, TRIED

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

#: Task vectors below this mean share of the full rank count as low-rank, as adapters do.
_LOW_RANK = 0.25


@dataclass(frozen=True)
class Expert:
    """Measurements of an expert's task vector; NaN if unknown."""

    #: the task that the expert was fine-tuned for
    task: str
    #: norm of the task vector, also relative to the base's norm
    norm: float
    relative_norm: float
    #: share of entries that differ from the base
    changed: float
    #: mean effective rank of the matrices, also as a share of the full rank
    rank: float
    rank_share: float
    #: share of the singular values that are at least 1 % of the largest
    numerical_rank_share: float = math.nan
    #: share of entries that differ from the base, within the tensors that the expert changed at all
    density: float = math.nan


@dataclass(frozen=True)
class Part:
    """Measurements of a part of the model, such as a layer."""

    #: root mean square of the experts' norms, relative to the base's norm
    relative_norm: float
    #: mean cosine between two task vectors
    cosine: float


@dataclass(frozen=True)
class Mixture:
    """Measurements of models that are mixtures of experts: each of their layers has experts."""

    #: share of the models' entries that the layers' experts hold
    share: float
    #: mean cosine between the routers' task vectors; NaN if at most one model changed its routers
    router_cosine: float
    #: whether the method merges routers, as the pool's option `router` says
    merges_routers: bool


@dataclass(frozen=True)
class Answers:
    """A model's predictions on a task's unlabeled examples."""

    #: mean over the examples, in nats
    entropy: float
    #: share of examples with the same prediction as the task's expert
    agreement: float


@dataclass(frozen=True)
class Path:
    """Agreement with the experts along a straight line between two models."""

    ends: tuple[str, str]
    tasks: Sequence[str]
    #: means over the tasks at evenly spaced points, including both ends
    agreement: Sequence[float]

    @property
    def barrier(self) -> float:
        """Largest drop of agreement below the straight line between the ends; at least 0.

        The error barrier of Frankle et al. (arXiv:1912.05671), where an error is a prediction that
        differs from the expert's.
        """
        steps = len(self.agreement) - 1
        first, last = self.agreement[0], self.agreement[-1]
        straight = [first + (last - first) * step / steps for step in range(steps + 1)]
        return max(line - actual for line, actual in zip(straight, self.agreement, strict=True))


@dataclass(frozen=True)
class Figures:
    """All measurements of a pool."""

    experts: Mapping[str, Expert]
    #: whether task vectors start from a base; otherwise from the experts' mean
    has_base: bool
    #: number of entries of the merged tensors
    numel: int
    #: cosines between task vectors, shape (experts, experts)
    cosines: Sequence[Sequence[float]]
    #: norm of the sum of all task vectors, relative to their mean norm
    length_of_sum: float
    #: among entries that several experts keep after trimming, the share with both signs
    conflict: float
    #: share of the kept magnitude whose sign is opposite to the majority of its entry
    opposed: float
    parts: Mapping[str, Part]
    #: number of decomposed matrices and of all matrices; whether only some columns were used
    matrices: tuple[int, int] = (0, 0)
    is_sampled: bool = False
    #: model (`base`, `experts`, or a merge) -> task -> answers
    answers: Mapping[str, Mapping[str, Answers]] = field(default_factory=dict)
    paths: Sequence[Path] = ()
    #: architecture in the base's `config.json`; empty without one
    architecture: str = ""
    #: None if the models have no routers
    mixture: Mixture | None = None

    @property
    def kind(self) -> Kind:
        """The kind of models, which decides the record that applies."""
        share = mean(expert.numerical_rank_share for expert in self.experts.values())
        return Kind(self.architecture, share < _LOW_RANK, self.count, self.numel)

    @property
    def count(self) -> int:
        """The number of experts."""
        return len(self.experts)

    @property
    def pairs(self) -> Mapping[tuple[str, str], float]:
        """The cosine of every pair of task vectors, by the experts' names."""
        return {
            (one, other): self.cosines[a][b]
            for (a, one), (b, other) in combinations(enumerate(self.experts), 2)
        }

    @property
    def cosine(self) -> float:
        """The mean cosine between two task vectors."""
        return mean(self.pairs.values())

    @property
    def relative_norm(self) -> float:
        """The mean norm of the task vectors relative to the base's norm."""
        return mean(expert.relative_norm for expert in self.experts.values())

    @property
    def norm_ratio(self) -> float:
        """The largest norm of a task vector relative to the median norm."""
        norms = [expert.norm for expert in self.experts.values()]
        middle = median(norms)
        return max(norms) / middle if middle else math.nan

    @property
    def rank_share(self) -> float:
        """The mean effective rank as a share of the full rank."""
        return mean(expert.rank_share for expert in self.experts.values())

    @property
    def entry(self) -> float:
        """The root mean square of the entries of a task vector."""
        return mean(expert.norm for expert in self.experts.values()) / math.sqrt(self.numel)

    def agreement(self, model: str) -> float:
        """Return a model's mean agreement with the experts; NaN if not measured."""
        return mean(answers.agreement for answers in self.answers.get(model, {}).values())

    def entropy(self, model: str) -> float:
        """Return a model's mean entropy; NaN if not measured."""
        return mean(answers.entropy for answers in self.answers.get(model, {}).values())

    @property
    def trial_agreement(self) -> Mapping[str, float]:
        """The agreement of every merge of a trial, including the average; empty without a trial."""
        agreement = {name: self.agreement(name) for name in self.answers if name in TRIED}
        return agreement if len(agreement) > 1 else {}

    @property
    def barrier(self) -> float:
        """The mean barrier between two experts; NaN if not measured."""
        return mean(path.barrier for path in self.paths if "base" not in path.ends)

    @property
    def numbers(self) -> Mapping[str, float]:
        """The quantities in the bounds of rules, by name; NaN if unknown."""
        return {
            "experts": float(self.count),
            "relative norm": self.relative_norm,
            "norm ratio": self.norm_ratio,
            "mean cosine": self.cosine,
            "length of the sum": self.length_of_sum,
            "sign conflict": self.conflict,
            "rank share": self.rank_share,
            "entry": self.entry,
            "agreement of the base": self.agreement("base"),
            "agreement of the average": self.agreement(AVERAGE),
            "entropy of the experts": self.entropy("experts"),
            "entropy of the average": self.entropy(AVERAGE),
            "barrier": self.barrier,
            "merges tried": float(len(self.trial_agreement)),
        }

    def as_json(self) -> dict[str, Any]:
        """Return all measurements as JSON data, with null for NaN and infinities."""
        paths = [{**asdict(path), "barrier": path.barrier} for path in self.paths]
        data: dict[str, Any] = _replace_nan({**asdict(self), "paths": paths})
        return data


def mean(values: Iterator[float] | Sequence[float] | Any) -> float:  # noqa: ANN401 - also views
    """Return the mean of all values but NaN; NaN if there are none."""
    known = [value for value in values if not math.isnan(value)]
    return fmean(known) if known else math.nan


def _replace_nan(value: Any) -> Any:  # noqa: ANN401 - numbers in mappings and lists
    if isinstance(value, dict):
        return {key: _replace_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_replace_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
