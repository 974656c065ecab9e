"""A PEFT LoRA adapter as a `WeightSource` of task vectors: `scale * B @ A`, a few rows at a time.

Products are formed when they are read, on the fixed row blocks of `Cut.ROW`, so the bytes are the
same for every cut of a merge. Weights that the adapter does not touch have a task vector of zeros.
Weights that it stores whole (`modules_to_save`, biases) have the difference from the base, and so
have DoRA's rescaled weights. These differences are in fp64: base + difference is then the adapter's
weight to the last bit. The module knows PEFT's file format (0.6 to 0.21), not PEFT.
"""

from __future__ import annotations

import copy
import hashlib
import json
import math
import os
from typing import TYPE_CHECKING

import torch

from fusion_core import Cut, WeightSource
from fusion_core.errors import CheckpointError
from fusion_core.files import report_unreadable, resolve_member
from fusion_core.weights import (
    CheckpointSource,
    LowRank,
    Origin,
    read_config,
    refuse_packed,
    stamp_of,
)
from fusion_lora.reading.changes import locate_changes
from fusion_lora.reading.config import ADAPTER_CONFIG, check_supported
from fusion_lora.reading.contradictions import find_contradictions
from fusion_lora.reading.factors import find_tied_heads
from fusion_lora.reading.products import Products, Stored

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from typing import Any

    from fusion_core.weights import Contradiction, Location

#: The name of the file of weights, without its ending.
STEM = "adapter_model"


class LoraSource(WeightSource):
    """The task vectors of a LoRA adapter, with the names and shapes of the base.

    Raises `CheckpointError` for unsupported adapters (LoHa, LoKr, ...) and unknown tensors.
    """

    cut = Cut.ROW
    is_delta = True

    def __init__(self, location: Location, base: WeightSource) -> None:
        weights = location.file(f"{STEM}.safetensors")
        if not os.path.lexists(weights):
            raise CheckpointError(
                f"{weights} does not exist",
                hint="Save the adapter again with PEFT, which writes safetensors by default.",
            )
        if weights.is_symlink():
            resolve_member(weights)  # `CheckpointSource` follows links to any file that it is given
        self._adapter = CheckpointSource(weights, name=location.name)
        self._base = base
        config_path = location.file(ADAPTER_CONFIG)
        with report_unreadable(config_path):
            stamp = stamp_of(config_path.stat())
        self._config = config = read_config(config_path)
        content = json.dumps(config, sort_keys=True).encode()
        config_identity = {"content_sha256": hashlib.sha256(content).hexdigest()}
        self._origin = Origin(
            files={**self._adapter.origin.files, ADAPTER_CONFIG: config_identity},
            stamps={config_path: stamp},
        )
        check_supported(config, location.name)
        refuse_packed(self._adapter)
        changes = locate_changes(self._adapter, base, config)
        products, self._whole = changes.products, changes.whole
        tied_heads = find_tied_heads(self._adapter, products, self._whole, base.infos)
        for head in tied_heads:
            products.pop(head, None)
            self._whole.pop(head, None)
        self.infos = {name: info for name, info in changes.infos.items() if name not in tied_heads}
        self._products = Products(self._adapter, products)
        self._tied = frozenset(tied_heads.values())
        self._lone_heads = changes.lone_heads
        self.file_names: Mapping[str, str] = changes.file_names

    def with_base(self, base: WeightSource) -> LoraSource:
        """Return the same adapter on other weights of its base."""
        clone = copy.copy(self)
        clone._base = base  # noqa: SLF001 - of this class
        clone._products = self._products.on_new_base()  # noqa: SLF001
        return clone

    def read(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Compute a range of a task vector."""
        if name in self._products.by_weight:
            product = self._read_product(name, start, stop)
            if name in self._whole:  # an embedding: the saved ones may differ from the base's
                product = product + self._read_difference(name, start, stop)
            return product
        if name in self._whole:
            return self._read_difference(name, start, stop)
        return torch.zeros(stop - start, dtype=self.infos[name].dtype)

    def low_rank(self, name: str) -> LowRank | None:
        """Return the factors of a matrix; None for whole weights, convolutions, experts, DoRA."""
        info = self.infos[name]
        if name in self._whole and (name not in self._products.by_weight or self._moves(name)):
            return None
        if name in self._products.by_weight:
            return self._products.low_rank(info)
        return LowRank.unchanged(info.shape)

    def _moves(self, name: str) -> bool:
        """Tell whether a weight that is stored whole differs from the base's.

        PEFT saves the base's embeddings next to their factors.
        """
        key = self._whole[name]
        return not all(
            torch.equal(self._adapter.read(key, *span), self._base.read(name, *span))
            for span in self.ranges(name)
        )

    def contradictions(self, base_config: Mapping[str, Any]) -> Iterator[Contradiction]:
        """Yield what `adapter_config.json` says that the tensors, or the base, contradict."""
        return find_contradictions(self, self._config, self._base, base_config)

    @property
    def sources(self) -> tuple[WeightSource, ...]:
        """The base, from which whole weights differ, and the adapter's own tensors."""
        return (self._base, self._adapter)

    @property
    def factored(self) -> frozenset[str]:
        """The weights that the adapter changes by a product of factors."""
        return frozenset(self._products.by_weight)

    @property
    def whole(self) -> frozenset[str]:
        """The weights that the adapter stores whole."""
        return frozenset(self._whole)

    @property
    def tied(self) -> frozenset[str]:
        """The embeddings that the adapter changes together with the head tied to them."""
        return self._tied

    @property
    def lone_heads(self) -> Mapping[str, str]:
        """The output heads that the adapter changes through the embeddings tied to them."""
        return self._lone_heads

    def is_head(self, embeddings: str) -> bool:
        """Tell whether the adapter changes embeddings as the head tied to them, if at all."""
        is_changed = embeddings in self.factored | self.whole
        return not is_changed or embeddings in self._lone_heads.values()

    @property
    def embeddings(self) -> Mapping[str, bool]:
        """The weights with factors of their own, and whether these are factors of an embedding."""
        return {
            name: ".lora_embedding_" in product.a
            for name, product in self._products.by_weight.items()
            if name not in self._lone_heads.values()
        }

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
        row = max(math.prod(info.shape[1:]), 1)
        # PEFT saves embeddings next to their factors, which change the saved ones.
        is_saved = name in self._whole
        changed = Stored(self._adapter, self._whole[name]) if is_saved else Stored(self._base, name)
        blocks = [
            self._products.read_rows(
                info, changed, block_start // row, min(block_start + step, info.numel) // row
            )
            for block_start in range(first, stop, step)
        ]
        values = blocks[0] if len(blocks) == 1 else torch.cat(blocks)
        return values[start - first : stop - first]

    def _read_difference(self, name: str, start: int, stop: int) -> torch.Tensor:
        whole = self._adapter.read(self._whole[name], start, stop)
        base = self._base.read(name, start, stop)
        return whole.double() - base.double()
