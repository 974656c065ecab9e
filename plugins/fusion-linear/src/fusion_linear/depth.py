"""Task vectors scaled by the depth of their layer: before a merge (LARV), or after it (LiNeS)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from fusion_core import Piece, Scan, TensorwiseCalibration, Transform
from fusion_core.weights import Scope, along, depths, in_order
from fusion_linear.config import DepthScaleConfig, LinesConfig

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor


class DepthScale(Transform[DepthScaleConfig]):
    """Scale task vectors less in the first layers and more in the last, as LARV (arXiv:2602.09413).

    `tiers` shares the layers out to the factors, as evenly as it can, and is what the paper found
    most robust; `curve` draws straight lines between them. What belongs to no layer stays as it is.
    Depth is told by tensors' names, among the tensors that this stage sees. The paper ranks layers
    by effective ranks and commutators of the weights, times a power of depth: here it is depth
    alone, and the default factors are ours. Shapes: any. Cost: none.
    """

    config_class = DepthScaleConfig

    @property
    def scope(self) -> Scope:
        """Depth is that among all layers."""
        return Scope.MODEL

    def survey(self, scan: Scan) -> Mapping[str, float]:
        """Find the factors by tensor name; nothing is read."""
        return {name: self._factor(depth) for name, depth in _depths(scan).items()}

    def _factor(self, depth: float) -> float:
        scales = self.config.scales
        if self.config.mode == "curve":
            return along(scales, depth)
        return scales[min(int(depth * len(scales)), len(scales) - 1)]

    def rows(self, piece: Piece) -> Tensor:
        """Scale one piece."""
        factor: float = piece.state.get(piece.info.name, 1.0)
        return piece.task_vectors * factor


class Lines(TensorwiseCalibration[LinesConfig]):
    """Scale layer l of a merged task vector by alpha + beta * l / (L - 1): LiNeS, arXiv:2410.17146.

    What belongs to no layer is scaled by alpha, as in the authors' code; depth is told by tensors'
    names, among the tensors that this stage sees. Without an alpha it is theirs for merges,
    |sum of the task vectors| / (K |merged task vector|), norms being sums of magnitudes: the first
    layer gets the mean's share. The authors choose beta on validation data between 0 and 1; the
    default is the middle. For one expert, alpha and 1 - alpha keep the last layer as it is. Shapes:
    any. Data: none. Cost: one pass more over all models, none with an alpha.
    """

    config_class = LinesConfig

    @property
    def scope(self) -> Scope:
        """Depth is that among all layers."""
        return Scope.MODEL

    def survey(self, scan: Scan) -> Mapping[str, float]:
        """Find the factors by tensor name."""
        alpha = _mean_share(scan) if self.config.alpha is None else self.config.alpha
        known = _depths(scan)
        names = [info.name for info in scan.infos]
        return {name: alpha + self.config.beta * known.get(name, 0.0) for name in names}

    def merge(self, piece: Piece) -> Tensor:
        """Scale one piece."""
        return (piece.merged - piece.base).mul_(piece.state[piece.info.name]).add_(piece.base)


def _depths(scan: Scan) -> Mapping[str, float]:
    return depths(info.name for info in scan.infos)


def _mean_share(scan: Scan) -> float:
    """Return |sum of the task vectors| / (K |merged task vector|), 1 where nothing was merged."""
    total, merged = scan(_magnitudes, torch.add, torch.zeros(2, dtype=torch.float64)).tolist()
    return total / (merged * len(scan.operands.experts)) if merged else 1.0


def _magnitudes(piece: Piece) -> Tensor:
    """Sum the magnitudes of the summed task vectors, and of the merged one."""
    both = (in_order(piece.task_vectors), piece.merged - piece.base)
    return torch.stack([each.abs().sum(dtype=torch.float64) for each in both]).cpu()
