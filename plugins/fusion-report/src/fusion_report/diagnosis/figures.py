"""What a diagnosis says in numbers: of each expert, between them, and of what they predict."""

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

#: Task vectors whose numerical rank is a smaller share of the full one are adapters'.
_LOW_RANK = 0.25


@dataclass(frozen=True)
class Expert:
    """An expert's task vector; what is not known is NaN."""

    #: what it was fine-tuned for
    task: str
    #: its length, and that as a share of the base's
    norm: float
    relative_norm: float
    #: the share of entries that differ from the base
    changed: float
    #: the mean effective rank of its matrices, and that as a share of the largest one possible
    rank: float
    rank_share: float
    #: the share of its singular values that are at least 1 % of the largest one
    numerical_rank_share: float = math.nan


@dataclass(frozen=True)
class Part:
    """A layer, or another part of the model: the experts' root mean square there."""

    #: the length of a task vector as a share of the base's
    relative_norm: float
    #: the mean cosine of two task vectors
    cosine: float


@dataclass(frozen=True)
class Answers:
    """What a model predicts of a task's unlabeled examples."""

    #: in nats, a mean over the examples
    entropy: float
    #: the share of examples for which it predicts what the task's own expert does
    agreement: float


@dataclass(frozen=True)
class Path:
    """Agreement with the experts on a straight line between two models."""

    ends: tuple[str, str]
    tasks: Sequence[str]
    #: means over the tasks, at evenly spaced points, both ends included
    agreement: Sequence[float]

    @property
    def barrier(self) -> float:
        """How far the line sinks below the one that joins its ends, at most; 0 for nowhere.

        The error barrier of Frankle et al. (arXiv:1912.05671), an error being another prediction
        than the expert's.
        """
        steps = len(self.agreement) - 1
        first, last = self.agreement[0], self.agreement[-1]
        straight = [first + (last - first) * step / steps for step in range(steps + 1)]
        return max(wanted - found for wanted, found in zip(straight, self.agreement, strict=True))


@dataclass(frozen=True)
class Figures:
    """All that was measured of a pool."""

    experts: Mapping[str, Expert]
    #: whether task vectors are differences from a base; from the experts' mean if not
    has_base: bool
    #: entries of the tensors that are merged
    numel: int
    #: of every two task vectors
    cosines: Sequence[Sequence[float]]
    #: the length of all task vectors' sum, in mean lengths of one
    length_of_sum: float
    #: of the entries that several experts keep after trimming, the share that they pull both ways
    conflict: float
    #: the share of the kept magnitude that pulls against the greater part of its entry
    opposed: float
    parts: Mapping[str, Part]
    #: how many matrices were decomposed, of how many, and whether that of some columns only
    matrices: tuple[int, int] = (0, 0)
    is_sampled: bool = False
    #: by model (`base`, `experts`, `average`, merges that were tried) and task
    answers: Mapping[str, Mapping[str, Answers]] = field(default_factory=dict)
    paths: Sequence[Path] = ()
    #: what the base's `config.json` says that the models are; empty without one
    architecture: str = ""

    @property
    def kind(self) -> Kind:
        """The kind of models, on which rules were counted or not."""
        share = mean(expert.numerical_rank_share for expert in self.experts.values())
        return Kind(self.architecture, share < _LOW_RANK, self.count, self.numel)

    @property
    def count(self) -> int:
        """How many experts there are."""
        return len(self.experts)

    @property
    def pairs(self) -> Mapping[tuple[str, str], float]:
        """The cosine of every two task vectors, by the experts' names."""
        return {
            (one, other): self.cosines[a][b]
            for (a, one), (b, other) in combinations(enumerate(self.experts), 2)
        }

    @property
    def cosine(self) -> float:
        """The mean cosine of two task vectors."""
        return mean(self.pairs.values())

    @property
    def relative_norm(self) -> float:
        """The mean length of task vectors as a share of the base's."""
        return mean(expert.relative_norm for expert in self.experts.values())

    @property
    def norm_ratio(self) -> float:
        """The longest task vector's length, in those of the median one."""
        norms = [expert.norm for expert in self.experts.values()]
        middle = median(norms)
        return max(norms) / middle if middle else math.nan

    @property
    def rank_share(self) -> float:
        """The mean effective rank as a share of the largest one possible."""
        return mean(expert.rank_share for expert in self.experts.values())

    @property
    def entry(self) -> float:
        """The root mean square of an entry of a task vector."""
        return mean(expert.norm for expert in self.experts.values()) / math.sqrt(self.numel)

    def agreement(self, model: str) -> float:
        """Return a model's mean agreement with the experts; NaN where it was not asked."""
        return mean(each.agreement for each in self.answers.get(model, {}).values())

    def entropy(self, model: str) -> float:
        """Return a model's mean entropy; NaN where it was not asked."""
        return mean(each.entropy for each in self.answers.get(model, {}).values())

    @property
    def tried(self) -> Mapping[str, float]:
        """The agreement with the experts of each merge that was tried, beside the average's."""
        found = {name: self.agreement(name) for name in self.answers if name in TRIED}
        return found if len(found) > 1 else {}

    @property
    def barrier(self) -> float:
        """The mean barrier between two experts; NaN where no lines were asked along."""
        return mean(path.barrier for path in self.paths if "base" not in path.ends)

    @property
    def numbers(self) -> Mapping[str, float]:
        """The figures that rules speak of, by name; NaN for what is not known."""
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
            "merges tried": float(len(self.tried)),
        }

    def as_json(self) -> dict[str, Any]:
        """Return all figures as JSON's data; null for what is not a number."""
        paths = [{**asdict(path), "barrier": path.barrier} for path in self.paths]
        found: dict[str, Any] = _plain({**asdict(self), "paths": paths})
        return found


def mean(values: Iterator[float] | Sequence[float] | Any) -> float:  # noqa: ANN401 - views, too
    """Return a mean; NaN of nothing. What is not a number does not count."""
    known = [value for value in values if not math.isnan(value)]
    return fmean(known) if known else math.nan


def _plain(value: Any) -> Any:  # noqa: ANN401 - numbers in mappings and lists
    if isinstance(value, dict):
        return {name: _plain(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
