"""The first two steps of TIES (arXiv:2306.01708) as transforms, for any merge after them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fusion_core import Transform
from fusion_core.weights import Electing, Piece, Scan, Scope, Trimming
from fusion_ties.config import ElectConfig, TrimConfig

if TYPE_CHECKING:
    from torch import Tensor


class Trim(Transform[TrimConfig]):
    """Keep the `density` largest entries of each task vector, and zero the others.

    k = max(1, floor(density * n)) are kept, and entries of the k-th magnitude with them; 0 keeps
    none. Shapes: any. Thresholds are exact, found by streaming.
    """

    config_class = TrimConfig

    @property
    def scope(self) -> Scope:
        """One survey a model, or one a tensor."""
        return Scope(self.config.scope)

    def survey(self, scan: Scan) -> Tensor:
        """Find the thresholds."""
        return self._kernel.survey(scan)

    def rows(self, piece: Piece) -> Tensor:
        """Trim one piece."""
        return self._kernel.rows(piece)

    @property
    def _kernel(self) -> Trimming:
        return Trimming(self.config.density)


class Elect(Transform[ElectConfig]):
    """Zero the entries that do not have the elected sign: that of their weighted sum.

    `[trim, elect]` are the first two steps of TIES. Shapes: any.
    """

    config_class = ElectConfig

    @property
    def scope(self) -> Scope:
        """The majority's scope; none where entries that cancel are positive."""
        return Scope(self.config.scope if self.config.zero_sign == "majority" else "none")

    def survey(self, scan: Scan) -> Any:  # noqa: ANN401 - the kernel's own
        """Find the sign of the majority."""
        return Electing().survey(scan)

    def rows(self, piece: Piece) -> Tensor:
        """Elect, and keep what agrees."""
        return Electing().rows(piece)
