"""A PEFT LoRA adapter as a `WeightSource` of task vectors: `scale * B @ A`, a few rows at a time.

Products are formed when they are read, on the fixed row blocks of `Cut.ROW`, so the bytes are the
same for every cut of a merge. Weights that the adapter does not touch have a task vector of zeros.
Weights that it stores whole (`modules_to_save`, biases) have the difference from the base. The
module knows PEFT's file format (0.6 to 0.21), not PEFT.
"""

from __future__ import annotations

import copy
import hashlib
import json
import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from fusion_core.errors import CheckpointError
from fusion_core.weights.origin import Origin, stamp_of
from fusion_core.weights.reading._lora_config import check_supported, read_scales
from fusion_core.weights.reading._lora_factors import (
    Product,
    are_neighbours_transposed,
    find_tied_heads,
    sort_tensors,
)
from fusion_core.weights.reading._unsupported import DEQUANTISE
from fusion_core.weights.reading.assets import read_config
from fusion_core.weights.reading.checkpoint import CheckpointSource
from fusion_core.weights.reading.containment import report_unreadable, resolve_member
from fusion_core.weights.reading.location import ADAPTER, ADAPTER_CONFIG
from fusion_core.weights.reading.name_matching import match_names
from fusion_core.weights.reading.quantisation import find_packed_tensor
from fusion_core.weights.source import Cut, TensorInfo, WeightSource

if TYPE_CHECKING:
    from collections.abc import Mapping

    from fusion_core.weights.reading.location import Location


class LoraSource(WeightSource):
    """The task vectors of a LoRA adapter, with the names and shapes of the base.

    Raises `CheckpointError` for unsupported adapters (DoRA, LoHa, LoKr, ...) and unknown tensors.
    """

    cut = Cut.ROW
    is_delta = True

    def __init__(self, location: Location, base: WeightSource) -> None:
        weights = location.directory / ADAPTER
        if weights.is_symlink():
            resolve_member(weights)  # `CheckpointSource` follows links to any file that it is given
        self._adapter = CheckpointSource(weights, name=location.name)
        self._base = base
        config_path = location.directory / ADAPTER_CONFIG
        with report_unreadable(config_path):
            stamp = stamp_of(config_path.stat())
        config = read_config(config_path)
        content = json.dumps(config, sort_keys=True).encode()
        config_identity = {"content_sha256": hashlib.sha256(content).hexdigest()}
        self._origin = Origin(
            files={**self._adapter.origin.files, ADAPTER_CONFIG: config_identity},
            stamps={config_path: stamp},
        )
        check_supported(config, location.name)
        if (reason := find_packed_tensor(self._adapter.infos)) is not None:
            raise CheckpointError(f"{location.name} is quantised: {reason}", hint=DEQUANTISE)
        self._products: dict[str, Product] = {}
        self._whole: dict[str, str] = {}
        infos = self._locate_changes(config)
        tied_heads = find_tied_heads(self._adapter, self._products, self._whole, base.infos)
        for head in tied_heads:
            self._products.pop(head, None)
            self._whole.pop(head, None)
        self.infos = {name: info for name, info in infos.items() if name not in tied_heads}
        self._tied = frozenset(tied_heads.values())

    def on(self, base: WeightSource) -> LoraSource:
        """Return the same adapter on other weights of its base."""
        clone = copy.copy(self)
        clone._base = base  # noqa: SLF001 - of this class
        return clone

    def read(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Compute a range of a task vector."""
        if name in self._products:
            product = self._read_product(name, start, stop)
            if name in self._whole:  # an embedding, which PEFT saves next to its factors
                product = product + self._read_difference(name, start, stop)
            return product
        if name in self._whole:
            return self._read_difference(name, start, stop)
        return torch.zeros(stop - start, dtype=self.infos[name].dtype)

    @property
    def sources(self) -> tuple[WeightSource, ...]:
        """The base, from which whole weights differ, and the adapter's own tensors."""
        return (self._base, self._adapter)

    @property
    def factored(self) -> frozenset[str]:
        """The weights that the adapter changes by a product of factors."""
        return frozenset(self._products)

    @property
    def whole(self) -> frozenset[str]:
        """The weights that the adapter stores whole."""
        return frozenset(self._whole)

    @property
    def tied(self) -> frozenset[str]:
        """The embeddings that the adapter changes together with the head tied to them."""
        return self._tied

    def describe(self) -> str:
        """Name the adapter."""
        return self._adapter.describe()

    @property
    def origin(self) -> Origin:
        """The adapter's files, the configuration included because it sets the scales."""
        return self._origin

    def _read_product(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Multiply the blocks that contain a range, and return the range."""
        info = self.infos[name]
        _, step = next(self.cut.ranges(info))
        if start >= stop:
            return torch.zeros(0, dtype=info.dtype)
        first = start // step * step
        blocks = [
            self._multiply_block(name, block_start, min(block_start + step, info.numel))
            for block_start in range(first, stop, step)
        ]
        return torch.cat(blocks)[start - first : stop - first]

    def _multiply_block(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Multiply the factors for whole rows of a weight."""
        product, info = self._products[name], self.infos[name]
        row = math.prod(info.shape[1:])
        first, last = start // max(row, 1), stop // max(row, 1)
        if product.transposed:
            left = self._read_columns(product.a, first, last, info.dtype).T
            right = self._read_factor(product.b, info.dtype).T
        else:
            rank = self._adapter.infos[product.b].shape[1]
            rows = self._adapter.read(product.b, first * rank, last * rank)
            left = rows.to(info.dtype).reshape(last - first, rank)
            right = self._read_factor(product.a, info.dtype)
        return (left @ right).mul_(product.scale).reshape(-1)

    def _read_factor(self, key: str, dtype: torch.dtype) -> torch.Tensor:
        """Read a factor as a matrix; the columns of a convolution's factor include its kernel."""
        return self._adapter.tensor(key).to(dtype).flatten(1)

    def _read_columns(self, key: str, first: int, last: int, dtype: torch.dtype) -> torch.Tensor:
        rank, width = self._adapter.infos[key].shape
        rows = [self._adapter.read(key, n * width + first, n * width + last) for n in range(rank)]
        return torch.stack(rows).to(dtype)

    def _read_difference(self, name: str, start: int, stop: int) -> torch.Tensor:
        whole = self._adapter.read(self._whole[name], start, stop)
        base = self._base.read(name, start, stop)
        wide = _wide_dtype(whole.dtype, base.dtype)
        return whole.to(wide) - base.to(wide)

    def _locate_changes(self, config: Mapping[str, Any]) -> dict[str, TensorInfo]:
        """Find every change of the adapter, and return the task vectors' descriptions."""
        factors, whole = sort_tensors(self._adapter)
        weights = [f"{module}.weight" for module in factors]
        base_names = match_names([*weights, *whole], self._base.infos)
        scales = read_scales(config, self.describe(), [*factors])
        infos = dict(self._base.infos)
        for module, keys in factors.items():
            name = base_names.get(f"{module}.weight", f"{module}.weight")
            infos[name], self._products[name] = self._describe_product(
                name, module, keys, scales[module], config
            )
        for key_name, key in whole.items():
            name = base_names.get(key_name, key_name)
            self._whole[name] = key
            info = replace(self._adapter.infos[key], name=name)
            if name not in self._products:
                infos[name] = info
            elif infos[name].shape != info.shape:
                raise CheckpointError(f"{self.describe()}: {key!r} and its factors differ in shape")
        return infos

    def _describe_product(
        self,
        name: str,
        module: str,
        keys: Mapping[str, str],
        scales: tuple[int, float],
        config: Mapping[str, Any],
    ) -> tuple[TensorInfo, Product]:
        """Check one weight's factors; return its task vector's description and its product."""
        rank, scale = scales
        is_embedding = "embedding_A" in keys
        parts = ("embedding_A", "embedding_B") if is_embedding else ("A", "B")
        if keys.keys() != {*parts}:
            raise CheckpointError(f"{self.describe()}: {module} has lora_{min(keys)} alone")
        a, b = (self._adapter.infos[keys[part]] for part in parts)
        if (
            min(len(a.shape), len(b.shape)) < 2  # noqa: PLR2004 - matrices
            or a.shape[0] != rank
            or b.shape[1] != rank
            or b.numel != math.prod(b.shape[:2])
        ):
            raise CheckpointError(
                f"{self.describe()}: the factors of {module} have the shapes {list(a.shape)} and "
                f"{list(b.shape)}, which do not fit rank {rank}"
            )
        straight, turned = (b.shape[0], *a.shape[1:]), (*a.shape[1:], b.shape[0])
        base_info = self._base.infos.get(name)
        if straight != turned and base_info is not None:
            transposed = base_info.shape == turned
        elif straight == turned and not is_embedding:
            evidence = are_neighbours_transposed(self._base, name)
            transposed = bool(config.get("fan_in_fan_out")) if evidence is None else evidence
        else:
            transposed = is_embedding
        info = TensorInfo(name, turned if transposed else straight, _wide_dtype(a.dtype, b.dtype))
        return info, Product(a.name, b.name, scale, transposed)


def read_base_name(location: Location) -> str | None:
    """Return an adapter's name for the model that it was trained on, None if it has none."""
    if not location.matching(ADAPTER_CONFIG):
        return None
    name = read_config(location.directory / ADAPTER_CONFIG).get("base_model_name_or_path")
    return name if isinstance(name, str) else None


def _wide_dtype(*dtypes: torch.dtype) -> torch.dtype:
    return torch.float64 if torch.float64 in dtypes else torch.float32
