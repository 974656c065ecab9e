"""EMR-Merging (elect, mask and rescale, arXiv:2405.17461): one model, and a mask a task."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from fusion_core import Algorithm
from fusion_core.weights import (
    Kernel,
    MergedSource,
    Piece,
    RowsKernel,
    Scan,
    agreeing,
    elected_sign,
)
from fusion_ties.config import EmrConfig

if TYPE_CHECKING:
    from torch import Tensor

    from fusion_core import ModelPool, RunContext
    from fusion_core.weights import WeightSource


class Emr(Algorithm[EmrConfig]):
    """base + the largest entries that have the elected sign, with masks and scales for each task.

    The unified task vector u has the sign of the sum of the task vectors and, of the experts that
    have it, the largest magnitude; where the sum is exactly zero, u is zero. The model is base + u.
    Beside it are, for expert k, the mask M_k = (tau_k * u > 0), one bit an entry, and the scale
    lambda_k = sum |tau_k| / sum |M_k * u|. Its weights for a task, base + lambda_k * M_k * u, are
    `fusion_core.load_for_task(directory, task)`; the model alone is not what the paper measures.

    The authors' code, and FusionBench's, takes the sums of both over tensors of their means
    (`rescale: authors`), and a sum of exactly zero as negative. Shapes: any. No data. Three passes:
    the model, its masks, and the scales, whose sums are all that is held.
    """

    config_class = EmrConfig

    def run(self, pool: ModelPool[Any], context: RunContext) -> WeightSource:
        """Return the lazy model; the masks are written when it is."""
        unified = context.merged_matrices(pool, Unified())
        scales = _scales(unified, context, by_tensor=self.config.rescale == "authors")
        masks = context.transformed(pool, Masks()).experts
        context.save_task_masks(masks, dict(zip(masks, scales, strict=True)))
        return pool.layout.packed(unified)


class Unified(Kernel):
    """base + the largest entries that have the elected sign."""

    pieces_held = (4, 3)

    def merge(self, piece: Piece) -> Tensor:
        """Unify one piece."""
        sign, agree = _agreeing(piece)
        return agree.amax(0).mul_(sign).add_(piece.base)


class Masks(RowsKernel):
    """1 where an expert's entry has the elected sign, and 0 elsewhere."""

    def rows(self, piece: Piece) -> Tensor:
        """Mask one piece."""
        _, agree = _agreeing(piece)
        return agree.sign_()


def _agreeing(piece: Piece) -> tuple[Tensor, Tensor]:
    """Return the elected sign of each entry, and the magnitudes that have it, by expert."""
    sign = elected_sign(piece.task_vectors, 0.0)
    return sign, agreeing(piece.task_vectors, sign)


def _scales(unified: MergedSource, context: RunContext, *, by_tensor: bool) -> list[float]:
    """Return lambda of each expert, 1 where nothing of it is left."""
    unified.prepare(context.executor)
    infos = [info for info in unified.infos.values() if info.dtype.is_floating_point]
    scan = Scan(unified.operands, infos, context.executor, unified.cut)
    zeros = torch.zeros(2, len(unified.operands.experts), dtype=torch.float64)
    own, masked = scan(_Magnitudes(by_tensor), torch.add, zeros)
    found: list[float] = torch.where(masked > 0, own / masked, 1.0).tolist()
    return found


@dataclass(frozen=True)
class _Magnitudes:
    """Sums the magnitudes of a block, the experts' own and those masked, to shape (2, experts)."""

    by_tensor: bool

    def __call__(self, piece: Piece) -> Tensor:
        _, agree = _agreeing(piece)
        masked = agree.amax(0) * agree.sign()
        both = torch.stack([piece.task_vectors.abs(), masked]).unsqueeze(-1).flatten(2)
        sums = both.sum(-1, dtype=torch.float64).cpu()
        return sums / max(piece.info.numel, 1) if self.by_tensor else sums
