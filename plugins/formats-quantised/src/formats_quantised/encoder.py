"""`output.quantise`: write a merge in block-fp8, as DeepSeek and Qwen publish their models."""

from __future__ import annotations

from functools import reduce
from typing import TYPE_CHECKING, Any

import torch

from formats_quantised.block_fp8 import open_fp8
from formats_quantised.declaration import DTYPES
from formats_quantised.linear_weights import choose_weights
from formats_quantised.quantisation import Quantisation, QuantisedSource, lay_out
from formats_quantised.quantise_config import QuantiseConfig
from formats_quantised.quantise_report import REPORT, QuantiseReport
from fusion_core import EncodedOutput, OutputEncoder
from fusion_core.errors import RecipeError
from fusion_core.weights import (
    DataFile,
    Location,
    change_config,
    is_in_process,
    run_all,
    select_names,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from formats_quantised.linear_weights import LinearWeights
    from fusion_core import ModelPool, OutputParts, TensorInfo, WeightSource

_CONFIG = "config.json"
_OPTION = "output.quantise"


class QuantiseEncoder(OutputEncoder[QuantiseConfig]):
    """Write linear layers and packed experts in fp8 with one scale per block.

    The values are quantised as a full model stores them, so the result is that of quantising the
    full model with transformers.
    """

    config_class = QuantiseConfig

    def check(self, infos: Mapping[str, TensorInfo], pool: ModelPool[Any]) -> None:
        """Raise `RecipeError` for models without weights to quantise or without config.json."""
        if self.config.skip:
            select_names(self.config.skip, infos, f"{_OPTION}.skip")
        weights = self._choose(infos, pool)
        if not weights.chosen:
            reasons = (
                f"{len(names)} matrices stay plain because {reason}, for example {names[0]}"
                for reason, names in weights.by_reason.items()
            )
            raise RecipeError(
                "; ".join((f"{_OPTION}: no weights to quantise", *reasons)),
                hint=f"Check {_OPTION}.block_size and {_OPTION}.skip.",
            )
        _find_dtype(infos[name] for name in weights.chosen)
        if _CONFIG not in pool.assets():
            raise RecipeError(
                f"{_OPTION} needs a {_CONFIG} to declare the quantisation, and the base has none",
                hint="Name a base with its configuration, as of save_pretrained.",
            )

    def encode(self, parts: OutputParts) -> EncodedOutput:
        """Quantise into the scratch directory, and return the files."""
        stored, executor = parts.stored, parts.executor
        weights = self._choose(stored.infos, parts.pool)
        tensors = lay_out((stored.infos[name] for name in weights.chosen), self.config.block_size)
        path = parts.scratch / "fp8"
        work = Quantisation(stored, tensors, DataFile(path), not is_in_process(executor))
        stored.prepare(executor)
        losses = []
        total = sum(tensor.info.nbytes for tensor in tensors.values())
        with parts.progress.track("quantise", total=total, unit="B") as advance:
            for loss in run_all(executor, work, tensors):
                losses.append(loss)
                advance(tensors[loss.name].info.nbytes)
        report = QuantiseReport(self.config, weights, stored.infos, losses)
        dtype = _find_dtype(tensor.info for tensor in tensors.values())
        files = change_config(parts.files, lambda config: self._declare(config, weights, dtype))
        return EncodedOutput(
            QuantisedSource(stored, tensors, path),
            {**files, REPORT: report.as_json()},
            record={"quantise": report.as_data()},
            summary=tuple(report.describe()),
        )

    def decode(self, directory: Path, pool: ModelPool[Any]) -> WeightSource:
        """Dequantise a written directory."""
        del pool
        return open_fp8(Location(directory, str(directory)))

    def _choose(self, infos: Mapping[str, TensorInfo], pool: ModelPool[Any]) -> LinearWeights:
        return choose_weights(infos, pool.reference, self.config)

    def _declare(
        self, config: dict[str, Any], weights: LinearWeights, dtype: str
    ) -> dict[str, Any]:
        """Return a configuration with the quantisation, and the dtype to dequantise to."""
        plain = {key: value for key, value in config.items() if key != "torch_dtype"}
        settings = {
            "quant_method": "fp8",
            "fmt": "e4m3",
            "activation_scheme": "dynamic",
            "weight_block_size": list(self.config.block_size),
            "modules_to_not_convert": weights.plain_modules,
        }
        return {**plain, "dtype": dtype, "quantization_config": settings}


def _find_dtype(infos: Iterable[TensorInfo]) -> str:
    """Return the name of the widest dtype of tensors; raise `RecipeError` for fp64."""
    dtype = reduce(torch.promote_types, (info.dtype for info in infos))
    names = {value: name for name, value in DTYPES.items()}
    if dtype not in names:
        raise RecipeError(
            f"{_OPTION}: expected weights in {', '.join(DTYPES)}, got {dtype}",
            hint="Set output.dtype, for example: --set output.dtype=bfloat16",
        )
    return names[dtype]
