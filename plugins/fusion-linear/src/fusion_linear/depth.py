"""Scale task vectors by the depth of their layer: before a merge (LARV) or after it (LiNeS)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from fusion_core import Piece, Scan, TensorwiseCalibration, Transform
from fusion_core.weights import Scope, depths, interpolate, sum_in_order
from fusion_linear.config import DepthScaleConfig, LinesConfig

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor


class DepthScale(Transform[DepthScaleConfig]):
    """Scale task vectors less in the first layers and more in the last (LARV, arXiv:2602.09413).

    Formula: tau_k * scales[depth], with the depth of a layer from 0 (first) to 1 (last). Tensors
    that belong to no layer keep their task vectors. The layer is read from a tensor's name, and
    only the tensors that this stage treats are counted.
    Options: `scales` (factors from first to last layer; 0.5, 1.0, 1.5), `mode` (`tiers`). `tiers`
    divides the layers evenly among the factors, which the paper found most robust. `curve`
    interpolates linearly between the factors.
    Differences: the paper ranks layers by effective ranks and commutators of the weights, times a
    power of depth. This method uses depth alone, and the default factors are our own.
    Shapes: any. Data: none. Cost: none.
    """

    config_class = DepthScaleConfig

    @property
    def scope(self) -> Scope:
        """Survey the whole model: depth depends on all its layers."""
        return Scope.MODEL

    def survey(self, scan: Scan) -> Mapping[str, float]:
        """Return the factors by tensor name, without reading weights."""
        return {name: self._factor(depth) for name, depth in _depths(scan).items()}

    def _factor(self, depth: float) -> float:
        scales = self.config.scales
        if self.config.mode == "curve":
            return interpolate(scales, depth)
        return scales[min(int(depth * len(scales)), len(scales) - 1)]

    def rows(self, piece: Piece) -> Tensor:
        """Scale the task vectors of one piece."""
        factor: float = piece.state.get(piece.info.name, 1.0)
        return piece.task_vectors * factor


class Lines(TensorwiseCalibration[LinesConfig]):
    """Scale a merged task vector linearly from the first layer to the last (LiNeS, 2410.17146).

    Formula: base + (alpha + beta * l / (L - 1)) * tau in layer l of L, counted from 0. Tensors that
    belong to no layer are scaled by alpha, as in the authors' code. The layer is read from a
    tensor's name, and only the tensors that this stage treats are counted.
    Options: `alpha` (factor; default |sum of tau_k| / (K |tau|) with L1 norms, as the authors'
    merges, so that the first layer gets the size of the experts' mean), `beta` (factor; 0.5). The
    authors choose beta between 0 and 1 on validation data. For a single expert, alpha and beta = 1
    - alpha leave the last layer unchanged.
    Source: arXiv:2410.17146. Shapes: any. Data: none. Cost: one more pass over all models, none
    with an alpha.
    """

    config_class = LinesConfig

    @property
    def scope(self) -> Scope:
        """Survey the whole model: depth depends on all its layers."""
        return Scope.MODEL

    def survey(self, scan: Scan) -> Mapping[str, float]:
        """Return the factors by tensor name."""
        alpha = _mean_share(scan) if self.config.alpha is None else self.config.alpha
        depth_by_name = _depths(scan)
        names = [info.name for info in scan.infos]
        return {name: alpha + self.config.beta * depth_by_name.get(name, 0.0) for name in names}

    def merge(self, piece: Piece) -> Tensor:
        """Scale the merged task vector of one piece."""
        return (piece.merged - piece.base).mul_(piece.state[piece.info.name]).add_(piece.base)


def _depths(scan: Scan) -> Mapping[str, float]:
    return depths(info.name for info in scan.infos)


def _mean_share(scan: Scan) -> float:
    """Return |sum of tau_k| / (K |tau|), or 1 if the merged task vector tau is zero."""
    total, merged = scan(_magnitudes, torch.add, torch.zeros(2, dtype=torch.float64)).tolist()
    return total / (merged * len(scan.operands.experts)) if merged else 1.0


def _magnitudes(piece: Piece) -> Tensor:
    """Return the L1 norms of the summed task vectors and of the merged one."""
    vectors = (sum_in_order(piece.task_vectors), piece.merged - piece.base)
    return torch.stack([vector.abs().sum(dtype=torch.float64) for vector in vectors]).cpu()
