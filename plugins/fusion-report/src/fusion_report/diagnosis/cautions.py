"""Cautions: assumptions of methods that a pool does not meet, and what to do instead.

A caution is no prediction: it has no record. Each rests on a measurement and on a published result
or on a page of the documentation, which its text names.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from fusion_report.diagnosis.kinds import CAUSAL
from fusion_report.diagnosis.merges import AVERAGE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fusion_report.diagnosis.figures import Figures

#: Reinforcement learning changed at most this share of the entries (arXiv:2505.11711, abstract).
_SPARSE = 0.3
#: Effective rank, as a share of the full rank, of changes in many directions (as in the rules).
_FULL = 0.2
#: Task vectors with a lower mean cosine point in different directions (as in the rule `alike`).
_ALIKE = 0.5
#: An average that agrees with the experts on less than this lost much of them (rule `torn`).
_TORN = 0.5


@dataclass(frozen=True)
class Caution:
    """A remark on a pool."""

    name: str
    text: str


def find_cautions(figures: Figures) -> list[Caution]:
    """Return the cautions that apply to a pool, given its measurements."""
    checks = (_check_spectra, _check_routers, _check_agreement, _check_prompts)
    return [caution for check in checks for caution in check(figures)]


def _check_spectra(figures: Figures) -> Iterator[Caution]:
    """Find sparse changes of a high rank: those of reinforcement learning look like this."""
    sparse = [
        f"{name} ({100 * expert.density:.0f} %)"
        for name, expert in figures.experts.items()
        if 0 < expert.density < _SPARSE and expert.rank_share >= _FULL
    ]
    if figures.has_base and sparse:
        yield Caution(
            "sparse changes in many directions",
            f"{', '.join(sparse)} of the entries in the tensors that they change. Reinforcement "
            "learning leaves such task vectors, with 5 to 30 % (arXiv:2505.11711), and so do "
            "changes that are about as small as the rounding of the files. Spectral methods such "
            "as tsv-m and iso-c assume that a task lies in the leading directions, which fails "
            "after reinforcement learning (arXiv:2606.02252). The record has no such pools: "
            "compare tsv-m with resmerge, task-arithmetic and ties on your tasks.",
        )


def _check_routers(figures: Figures) -> Iterator[Caution]:
    """Find routers that a method will merge although the models changed them differently."""
    mixture = figures.mixture
    if mixture is None or not (figures.has_base and mixture.merges_routers):
        return
    if mixture.router_cosine < _ALIKE:
        yield Caution(
            "routers changed differently",
            f"their task vectors have a mean cosine of {mixture.router_cosine:.2f}. Compare "
            "--set model_pool.router=base and =average with the default, merge. On a small "
            "mixture, base gained two to three points for strong in two of three seeds, and "
            "policies differed by less than one point for methods without data "
            "(docs/how-to/merge-mixtures.md).",
        )


def _check_agreement(figures: Figures) -> Iterator[Caution]:
    """Find experts that disturb each other so much that scales decide."""
    if figures.has_base and figures.count > 1 and figures.agreement(AVERAGE) < _TORN:
        yield Caution(
            "experts disturb each other",
            f"their average agrees with them on {100 * figures.agreement(AVERAGE):.0f} % of the "
            "examples. Method and scale then matter most. On such classifiers of a published text "
            "encoder, iso-cts had 50 % of accuracy at scale 1 and 74 % at scale 4. Unlabeled "
            "examples choose both: strong begins with that on classifiers, and fuse sweep "
            "--objective agreement does it for other models "
            "(docs/how-to/choose-a-method.md#the-scale).",
        )


def _check_prompts(figures: Figures) -> Iterator[Caution]:
    """Find language models that are diagnosed without tasks: `strong` needs none."""
    if figures.kind.architecture == CAUSAL and figures.has_base and not figures.answers:
        yield Caution(
            "no prompts needed",
            "the pool causal-lm adapts strong without a task pool, to prompts that the experts "
            "write. On three sets of four LoRA experts of SmolLM2-135M its accuracy was 84, 80 and "
            "78 %, where tsv-m has 53, 42 and 50 and the experts have 88, 77 and 82. A warning "
            "names experts that write noise: then take tsv-m, or write a few prompts "
            "(docs/how-to/learn-without-labels.md).",
        )
