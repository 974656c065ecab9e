"""The loss of a quantisation: the error of each tensor and of all, and what stays plain."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from formats_quantised.linear_weights import NOT_LINEAR, SKIPPED

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from formats_quantised.linear_weights import LinearWeights
    from formats_quantised.quantisation import Loss
    from formats_quantised.quantise_config import QuantiseConfig
    from fusion_core import TensorInfo

REPORT = "quantise_report.json"
_SCHEMA = 1


@dataclass(frozen=True)
class QuantiseReport:
    """The losses of all quantised tensors, relative to the merge as a full model stores it."""

    config: QuantiseConfig
    weights: LinearWeights
    #: the tensors of the full model
    infos: Mapping[str, TensorInfo]
    losses: Sequence[Loss]

    def as_data(self) -> dict[str, Any]:
        """Return the report as JSON data."""
        largest = self._largest
        return {
            "schema": _SCHEMA,
            "target": self.config.target,
            "block_size": list(self.config.block_size),
            "relative_error": self._relative_error,
            "largest": {"tensor": largest.name, "relative_error": _relative_error(largest)},
            "tensors": {
                loss.name: {
                    "norm": math.sqrt(loss.squared_norm),
                    "relative_error": _relative_error(loss),
                }
                for loss in self.losses
            },
            "plain": self.weights.by_reason,
        }

    def as_json(self) -> bytes:
        """Return the content of `quantise_report.json`."""
        return json.dumps(self.as_data(), indent=2).encode() + b"\n"

    def describe(self) -> Iterator[str]:
        """Yield lines for people: the error, limits, and matrices that stay plain unasked."""
        largest = self._largest
        rows, columns = self.config.block_size
        yield (
            f"{self.config.target}: {len(self.losses)} of {len(self.infos)} tensors in blocks of "
            f"{rows}x{columns}, relative error {self._relative_error:.3g} (Frobenius), at most "
            f"{_relative_error(largest):.3g} in {largest.name}"
        )
        if packed := self.weights.packed:
            yield (
                f"packed experts: {len(packed)} tensors, for example {packed[0]}: transformers "
                "reads their scales on a GPU, and ignores them where it dequantises"
            )
        for reason, names in self.weights.by_reason.items():
            if reason not in {NOT_LINEAR, SKIPPED}:
                yield f"not quantised: {len(names)} matrices, for example {names[0]}: {reason}"

    @property
    def _largest(self) -> Loss:
        return max(self.losses, key=_relative_error)

    @property
    def _relative_error(self) -> float:
        error = math.fsum(loss.squared_error for loss in self.losses)
        norm = math.fsum(loss.squared_norm for loss in self.losses)
        return math.sqrt(error / norm) if norm else 0.0


def _relative_error(loss: Loss) -> float:
    return math.sqrt(loss.squared_error / loss.squared_norm) if loss.squared_norm else 0.0
