"""EMR-Merging (elect, mask and rescale, arXiv:2405.17461): one model, and one mask per task."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from fusion_core import Algorithm
from fusion_core.weights import Kernel, MergedSource, Piece, RowsKernel, Scan
from fusion_thresholds import agreeing_magnitudes, elect_sign
from fusion_ties.config import EmrConfig

if TYPE_CHECKING:
    from torch import Tensor

    from fusion_core import ModelPool, RunContext
    from fusion_core.weights import WeightSource


class Emr(Algorithm[EmrConfig]):
    """Merge one unified task vector, and save a mask and a scale per task (arXiv:2405.17461).

    Formula: base + u. The unified task vector u has the sign of the sum of the task vectors and,
    among the experts with that sign, the largest magnitude. Where the sum is exactly zero, u is
    zero. Expert k gets the mask M_k = (tau_k * u > 0), one bit per entry, and the scale
    lambda_k = sum of |tau_k| / sum of |M_k * u|.
    `fusion_core.load_for_task(directory, task)` gives base + lambda_k * M_k * u, which is what the
    paper evaluates. The paper does not evaluate base + u alone.
    Options: `rescale` (`paper`). The authors' code, and FusionBench's, computes the scales from
    each tensor's mean magnitudes (`authors`), and treats a sum of exactly zero as negative.
    Shapes: any. Data: none. Cost: three passes, for the model, the masks and the scales.
    """

    config_class = EmrConfig
    saves_task_masks = True

    def run(self, pool: ModelPool[Any], context: RunContext) -> WeightSource:
        """Return the lazy model; the writer of the model also writes the masks."""
        unified = context.merge_matrices(pool, Unified())
        scales = _task_scales(unified, context, by_tensor=self.config.rescale == "authors")
        masks = context.transform(pool, SignMasks()).experts
        context.save_task_masks(masks, dict(zip(masks, scales, strict=True)))
        return pool.layout.pack(unified)


class Unified(Kernel):
    """base + the largest entries that have the elected sign."""

    pieces_held = (4, 3)

    def merge(self, piece: Piece) -> Tensor:
        """Unify one piece."""
        sign, magnitudes = _elect(piece)
        return magnitudes.amax(0).mul_(sign).add_(piece.base)


class SignMasks(RowsKernel):
    """1 where an expert's entry has the elected sign, and 0 elsewhere."""

    is_bounded = True  # a mask has a scale of its own

    def rows(self, piece: Piece) -> Tensor:
        """Return the masks of one piece."""
        _, magnitudes = _elect(piece)
        return magnitudes.sign_()


def _elect(piece: Piece) -> tuple[Tensor, Tensor]:
    """Return each entry's elected sign, and the experts' magnitudes that have it (0 elsewhere)."""
    sign = elect_sign(piece.task_vectors, 0.0)
    return sign, agreeing_magnitudes(piece.task_vectors, sign)


def _task_scales(unified: MergedSource, context: RunContext, *, by_tensor: bool) -> list[float]:
    """Return lambda of each expert, or 1 where its mask is empty."""
    unified.prepare(context.executor)
    infos = [info for info in unified.infos.values() if info.dtype.is_floating_point]
    scan = Scan(unified.operands, infos, context.executor, unified.cut)
    zeros = torch.zeros(2, len(unified.operands.experts), dtype=torch.float64)
    original, masked = scan(_Magnitudes(by_tensor), torch.add, zeros)
    scales: list[float] = torch.where(masked > 0, original / masked, 1.0).tolist()
    return scales


@dataclass(frozen=True)
class _Magnitudes:
    """The sums of |tau_k| and of |M_k * u| over a block, of shape (2, experts)."""

    by_tensor: bool

    def __call__(self, piece: Piece) -> Tensor:
        _, magnitudes = _elect(piece)
        masked = magnitudes.amax(0) * magnitudes.sign()
        both = torch.stack([piece.task_vectors.abs(), masked]).unsqueeze(-1).flatten(2)
        sums = both.sum(-1, dtype=torch.float64).cpu()
        return sums / max(piece.info.numel, 1) if self.by_tensor else sums
