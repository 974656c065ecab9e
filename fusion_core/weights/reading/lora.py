"""A PEFT LoRA adapter as a `WeightSource` of task vectors: `scale * B @ A`, a few rows at a time.

Nothing is unfolded beforehand. Products are formed on the fixed row blocks of `Cut.ROW`, so the
bytes are the same however a merge is cut. What the adapter does not touch has a task vector of
zeros; weights that it holds whole (`modules_to_save`, biases) have the difference from the base.
Knows PEFT's file format (0.6 to 0.21), not PEFT.
"""

from __future__ import annotations

import copy
import hashlib
import json
import math
import re
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from fusion_core.errors import CheckpointError
from fusion_core.weights.origin import Origin, stamp_of
from fusion_core.weights.reading._foreign import DEQUANTISE
from fusion_core.weights.reading._lora_config import Scales, check_supported
from fusion_core.weights.reading._lora_factors import Product, twins_of_heads
from fusion_core.weights.reading._orientation import is_turned_beside
from fusion_core.weights.reading.assets import read_config
from fusion_core.weights.reading.checkpoint import CheckpointSource
from fusion_core.weights.reading.containment import member, reading
from fusion_core.weights.reading.location import ADAPTER, ADAPTER_CONFIG
from fusion_core.weights.reading.quantised import packed
from fusion_core.weights.reading.spelling import same_tensors
from fusion_core.weights.source import Cut, TensorInfo, WeightSource

if TYPE_CHECKING:
    from collections.abc import Mapping

    from fusion_core.weights.reading.location import Location

_LAYER = re.compile(r"(?P<module>.+)\.lora_(?P<part>A|B|embedding_A|embedding_B)(\.weight)?")
_PREFIX = "base_model.model."
_WHOLE = (".weight", ".bias")


class LoraSource(WeightSource):
    """The task vectors of a LoRA adapter, with the names and shapes of the base.

    Raises `CheckpointError` naming what is not supported (DoRA, LoHa, LoKr, ...) or not understood.
    """

    cut = Cut.ROW
    is_delta = True

    def __init__(self, location: Location, base: WeightSource) -> None:
        file = location.directory / ADAPTER
        if file.is_symlink():
            member(file)  # the model's own, wherever it lies
        self._adapter = CheckpointSource(file, name=location.name)
        self._base = base
        path = location.directory / ADAPTER_CONFIG
        with reading(path):
            stamp = stamp_of(path.stat())
        config = read_config(path)
        said = json.dumps(config, sort_keys=True).encode()
        identity = {"content_sha256": hashlib.sha256(said).hexdigest()}
        files = {**self._adapter.origin.files, ADAPTER_CONFIG: identity}
        self._origin = Origin(files=files, stamps={path: stamp})
        check_supported(config, location.name)
        if (reason := packed(self._adapter.infos)) is not None:
            raise CheckpointError(f"{location.name} is quantised: {reason}", hint=DEQUANTISE)
        layers, whole = _sort_out(self._adapter)
        targets = [f"{module}.weight" for module in layers]
        spelled = same_tensors([*targets, *whole], base.infos)
        scales = Scales(config, location.name, [*layers])
        self._products: dict[str, Product] = {}
        self._whole = {spelled.get(name, name): key for name, key in whole.items()}
        infos = dict(base.infos)
        for module, keys in layers.items():
            name = spelled.get(f"{module}.weight", f"{module}.weight")
            info, product = self._product(name, module, keys, scales, config)
            infos[name], self._products[name] = info, product
        for name, key in self._whole.items():
            info = replace(self._adapter.infos[key], name=name)
            if infos.setdefault(name, info).shape != info.shape and name in self._products:
                raise CheckpointError(f"{location.name}: {key!r} and its factors differ in shape")
            infos[name] = infos[name] if name in self._products else info
        twins = twins_of_heads(self._adapter, self._products, self._whole, base.infos)
        for head in twins:
            self._products.pop(head, None)
            self._whole.pop(head, None)
        self.infos = {name: info for name, info in infos.items() if name not in twins}
        self._tied = frozenset(twins.values())

    def on(self, base: WeightSource) -> LoraSource:
        """Return the same adapter on other weights of its base."""
        clone = copy.copy(self)
        clone._base = base  # noqa: SLF001 - of this class
        return clone

    def read(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Form a range of a task vector."""
        if name not in self._products:
            if name in self._whole:
                return self._difference(name, start, stop)
            return torch.zeros(stop - start, dtype=self.infos[name].dtype)
        product = self._rows(name, start, stop)
        if name in self._whole:  # an embedding, which PEFT saves beside its factors
            product = product + self._difference(name, start, stop)
        return product

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
        """The weights that the adapter holds whole."""
        return frozenset(self._whole)

    @property
    def tied(self) -> frozenset[str]:
        """The embeddings that the adapter changes together with the head that is tied to them."""
        return self._tied

    def describe(self) -> str:
        """Name the adapter."""
        return self._adapter.describe()

    @property
    def origin(self) -> Origin:
        """The adapter's files: scales are the configuration's."""
        return self._origin

    def _rows(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Form the blocks that a range lies in, and return the range."""
        info = self.infos[name]
        _, step = next(self.cut.ranges(info))
        if start >= stop:
            return torch.zeros(0, dtype=info.dtype)
        first = start // step * step
        starts = range(first, stop, step)
        values = torch.cat([self._block(name, n, min(n + step, info.numel)) for n in starts])
        return values[start - first : stop - first]

    def _block(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Multiply the factors for whole rows of a weight."""
        product, info = self._products[name], self.infos[name]
        row = math.prod(info.shape[1:])
        first, last = start // max(row, 1), stop // max(row, 1)
        if product.transposed:
            left = self._columns(product.a, first, last, info.dtype).T
            right = self._factor(product.b, info.dtype).T
        else:
            rank = self._adapter.infos[product.b].shape[1]
            rows = self._adapter.read(product.b, first * rank, last * rank)
            left = rows.to(info.dtype).reshape(last - first, rank)
            right = self._factor(product.a, info.dtype)
        return (left @ right).mul_(product.scale).reshape(-1)

    def _factor(self, key: str, dtype: torch.dtype) -> torch.Tensor:
        """Read a factor as a matrix; a convolution's has its kernel in the columns."""
        return self._adapter.tensor(key).to(dtype).flatten(1)

    def _columns(self, key: str, first: int, last: int, dtype: torch.dtype) -> torch.Tensor:
        rank, width = self._adapter.infos[key].shape
        rows = [self._adapter.read(key, n * width + first, n * width + last) for n in range(rank)]
        return torch.stack(rows).to(dtype)

    def _difference(self, name: str, start: int, stop: int) -> torch.Tensor:
        whole = self._adapter.read(self._whole[name], start, stop)
        base = self._base.read(name, start, stop)
        wide = torch.float64 if torch.float64 in {whole.dtype, base.dtype} else torch.float32
        return whole.to(wide) - base.to(wide)

    def _product(
        self,
        name: str,
        module: str,
        keys: Mapping[str, str],
        scales: Scales,
        config: Mapping[str, Any],
    ) -> tuple[TensorInfo, Product]:
        """Describe one weight's task vector and how it is formed."""
        embedding = "embedding_A" in keys
        a, b = ("embedding_A", "embedding_B") if embedding else ("A", "B")
        if keys.keys() != {a, b}:
            raise CheckpointError(f"{self.describe()}: {module} has lora_{min(keys)} alone")
        one, other = self._adapter.infos[keys[a]], self._adapter.infos[keys[b]]
        rank, scale = scales.of(module)
        if (
            min(len(one.shape), len(other.shape)) < 2  # noqa: PLR2004 - matrices
            or one.shape[0] != rank
            or other.shape[1] != rank
            or other.numel != math.prod(other.shape[:2])
        ):
            raise CheckpointError(
                f"{self.describe()}: the factors of {module} have the shapes {list(one.shape)} and "
                f"{list(other.shape)}, which rank {rank} does not give"
            )
        straight, turned = (other.shape[0], *one.shape[1:]), (*one.shape[1:], other.shape[0])
        ours = self._base.infos[name].shape if name in self._base.infos else None
        transposed = (ours == turned) if straight != turned and ours is not None else embedding
        if straight == turned and not embedding:
            beside = is_turned_beside(self._base, name)
            transposed = bool(config.get("fan_in_fan_out")) if beside is None else beside
        shape = turned if transposed else straight
        wide = torch.float64 if torch.float64 in {one.dtype, other.dtype} else torch.float32
        return TensorInfo(name, shape, wide), Product(keys[a], keys[b], scale, transposed)


def base_of(location: Location) -> str | None:
    """Return what an adapter calls the model that it was trained on; None if it does not say."""
    if not location.matching(ADAPTER_CONFIG):
        return None
    named = read_config(location.directory / ADAPTER_CONFIG).get("base_model_name_or_path")
    return named if isinstance(named, str) else None


def _sort_out(adapter: CheckpointSource) -> tuple[dict[str, dict[str, str]], dict[str, str]]:
    """Return the factors' keys by module and part, and the keys of whole weights by name."""
    layers: dict[str, dict[str, str]] = {}
    whole: dict[str, str] = {}
    unknown: list[str] = []
    for key in adapter.infos:
        name = key.removeprefix(_PREFIX)
        if ".original_module." in name:  # the base's, saved with what replaces it
            continue
        if found := _LAYER.fullmatch(name):
            layers.setdefault(found["module"], {})[found["part"]] = key
        elif "lora_" in name or not name.endswith(_WHOLE):
            unknown.append(key)
        else:
            whole[name.replace(".base_layer.", ".").replace(".modules_to_save.", ".")] = key
    if unknown:
        raise CheckpointError(
            f"{adapter.describe()}: {len(unknown)} tensors are not part of a plain LoRA, "
            f"among them {unknown[0]!r}",
            hint="Merge it into its base with PEFT (merge_and_unload) and name the result.",
        )
    return layers, whole
