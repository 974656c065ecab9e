"""The weights that an adapter changes, found by the names and shapes of its tensors."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch

from fusion_core import TensorInfo
from fusion_core.errors import CheckpointError
from fusion_core.weights import match_names
from fusion_lora.reading.config import MERGE_WITH_PEFT, list_saved, read_scales
from fusion_lora.reading.experts import (
    find_parameters,
    find_targets,
    is_stored,
    name_in_release,
    probe_names,
    strip_nesting,
)
from fusion_lora.reading.factors import Product, find_lone_heads, sort_tensors
from fusion_lora.reading.live_names import find_live_names
from fusion_lora.reading.products import wide_dtype
from pools_checkpoints import are_neighbours_transposed

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from fusion_core import WeightSource
    from fusion_lora.reading.experts import Target

_WEIGHT = ".weight"


@dataclass(frozen=True, slots=True)
class Changes:
    """The changes of an adapter, by the base's names."""

    #: descriptions of the task vectors, including those of weights that do not change
    infos: dict[str, TensorInfo]
    products: dict[str, Product] = field(default_factory=dict)
    #: the keys of weights that the adapter stores whole
    whole: dict[str, str] = field(default_factory=dict)
    #: output heads whose change became that of the embeddings tied to them, with these
    lone_heads: dict[str, str] = field(default_factory=dict)
    #: the adapter's names of weights that the base names otherwise
    file_names: dict[str, str] = field(default_factory=dict)

    def add(self, info: TensorInfo, product: Product) -> None:
        """Add the change of a weight by a product of factors."""
        self.infos[info.name] = info
        self.products[info.name] = product

    def move_lone_heads(self, base: Mapping[str, TensorInfo]) -> None:
        """Apply a change of an output head that the base ties to its embeddings to these."""
        changed = {name: self.infos[name] for name in {*self.products, *self.whole}}
        self.lone_heads.update(find_lone_heads(changed, base))
        for head, embeddings in self.lone_heads.items():
            self.infos[embeddings] = replace(self.infos.pop(head), name=embeddings)
            if head in self.products:
                self.products[embeddings] = self.products.pop(head)
            if head in self.whole:
                self.whole[embeddings] = self.whole.pop(head)


def locate_changes(adapter: WeightSource, base: WeightSource, config: Mapping[str, Any]) -> Changes:
    """Find every change of an adapter. Raises `CheckpointError` for factors that do not fit."""
    factors, whole = sort_tensors(adapter, list_saved(config))
    parameters = {module: find_parameters(config, strip_nesting(module)) for module in factors}
    names = [*(f"{module}{_WEIGHT}" for module in factors), *whole]
    base_names = _match_names(names, parameters, base)
    for module, targeted in parameters.items():
        inner = strip_nesting(module)
        parameters[module] = [
            name for name in targeted if is_stored(inner, name, base.infos, base_names)
        ]
    file_names = {base_names[name]: name for name in names if base_names.get(name, name) != name}
    changes = Changes(dict(base.infos), file_names=file_names)
    finder = _Finder(adapter, base, config, base_names)
    targets = {
        module: finder.find_experts(module, factors[module], targeted)
        for module, targeted in parameters.items()
        if not {*targeted} <= {"weight"}
    }
    labels = {module: f"{module}.weight" if parameters[module] else module for module in factors}
    labels |= {module: experts[0].parameter for module, experts in targets.items()}
    scales = read_scales(config, adapter.describe(), [*labels.values()])
    for module, keys in factors.items():
        scale = scales[labels[module]]
        if module in targets:
            finder.add_experts(changes, module, keys, targets[module], scale)
        else:
            is_parameter = bool(parameters[module])
            finder.add_plain(changes, module, keys, scale, is_parameter=is_parameter)
    for key_name, key in whole.items():
        if not adapter.infos[key].dtype.is_floating_point:  # a counter, such as batch norm's
            continue
        name = base_names.get(key_name, key_name)
        info = replace(adapter.infos[key], name=name, dtype=torch.float64)
        if name in changes.products and changes.infos[name].shape != info.shape:
            raise CheckpointError(f"{adapter.describe()}: {key!r} and its factors differ in shape")
        changes.whole[name] = key
        changes.infos[name] = info
    changes.move_lone_heads(base.infos)
    return changes


def _match_names(
    names: Sequence[str], parameters: Mapping[str, Sequence[str]], base: WeightSource
) -> dict[str, str]:
    """Return the base's names of an adapter's tensors: alike, of a release, or of a live model.

    `parameters` are those that modules target instead of their weights.
    """
    targeted = [
        (strip_nesting(module), parameter)
        for module, targets in parameters.items()
        for parameter in targets
    ]
    probes = [name for module, parameter in targeted for name in probe_names(module, [parameter])]
    released = {name: name_in_release(name) for name in names}
    matched = match_names([*names, *probes, *released.values()], base.infos)
    for name, other in released.items():
        if name not in matched and other in matched:
            matched[name] = matched[other]
    wanted = {name for name in names if not parameters.get(name.removesuffix(_WEIGHT))}
    wanted.update(f"{module}.{parameter}" for module, parameter in targeted)
    if not matched.keys() >= wanted:
        stored = {live: name for name, live in find_live_names(base).items()}
        by_live_name = {name: stored[live] for name, live in match_names(wanted, stored).items()}
        matched = {**by_live_name, **matched}
    return matched


@dataclass(frozen=True, slots=True)
class _Finder:
    adapter: WeightSource
    base: WeightSource
    config: Mapping[str, Any]
    base_names: Mapping[str, str]

    def add_plain(
        self,
        changes: Changes,
        module: str,
        keys: Mapping[str, str],
        scales: tuple[int, float],
        *,
        is_parameter: bool,
    ) -> None:
        """Add the change of a module's weight, after a check of its factors."""
        name = self.base_names.get(f"{module}.weight", f"{module}.weight")
        rank, scale = scales
        is_embedding = "embedding_A" in keys
        a, b = self._find_factors(module, keys)
        self._check_groups(module, a, b)
        if (
            min(len(a.shape), len(b.shape)) < 2  # noqa: PLR2004 - matrices
            or a.shape[0] != rank
            or b.shape[1] != rank
            or b.numel != math.prod(b.shape[:2])
        ):
            raise CheckpointError(
                f"{self.adapter.describe()}: the factors of {module} have the shapes "
                f"{list(a.shape)} and {list(b.shape)}, which do not fit rank {rank}"
            )
        straight, turned = (b.shape[0], *a.shape[1:]), (*a.shape[1:], b.shape[0])
        base_info = self.base.infos.get(name)
        if straight != turned and base_info is not None:
            transposed = base_info.shape == turned
        elif straight == turned and not is_embedding:
            evidence = are_neighbours_transposed(self.base, name)
            transposed = bool(self.config.get("fan_in_fan_out")) if evidence is None else evidence
        else:
            transposed = is_embedding
        magnitude = keys.get("magnitude_vector")
        self._check_magnitude(module, magnitude, b.shape[0])
        dtype = torch.float64 if magnitude else wide_dtype(a.dtype, b.dtype)
        rounded = base_info.dtype if base_info and (is_embedding or is_parameter) else None
        changes.add(
            TensorInfo(name, turned if transposed else straight, dtype),
            Product(a.name, b.name, scale, transposed, magnitude, rounded),
        )

    def find_experts(
        self, module: str, keys: Mapping[str, str], parameters: list[str]
    ) -> list[Target]:
        """Return the weights of packed experts that factors change (`target_parameters`)."""
        return find_targets(
            self.adapter.describe(),
            strip_nesting(module),
            parameters,
            self._find_factors(module, keys),
            (self.base.infos, self.base_names),
        )

    def add_experts(
        self,
        changes: Changes,
        module: str,
        keys: Mapping[str, str],
        targets: Sequence[Target],
        scales: tuple[int, float],
    ) -> None:
        """Add the changes of packed experts, after a check of their rank."""
        a, b = self._find_factors(module, keys)
        rank, scale = scales
        parameter, count = targets[0].parameter, targets[0].part.count
        if a.shape[0] != rank * count:
            raise CheckpointError(
                f"{self.adapter.describe()}: the factors of {parameter} have the shapes "
                f"{list(a.shape)} and {list(b.shape)}, which do not fit rank {rank} for "
                f"{count} experts"
            )
        for target in targets:
            stored = self.base.infos[target.weight]
            info = replace(stored, dtype=wide_dtype(a.dtype, b.dtype))
            product = Product(
                a.name, b.name, scale, target.transposed, rounded=stored.dtype, part=target.part
            )
            changes.add(info, product)

    def _find_factors(self, module: str, keys: Mapping[str, str]) -> tuple[TensorInfo, TensorInfo]:
        parts = ("embedding_A", "embedding_B") if "embedding_A" in keys else ("A", "B")
        known = {*parts, "magnitude_vector"} if self.config.get("use_dora") else {*parts}
        if unknown := sorted(keys.keys() - known):
            raise CheckpointError(
                f"{self.adapter.describe()}: {keys[unknown[0]]!r} is not part of a plain LoRA",
                hint=MERGE_WITH_PEFT,
            )
        if {*parts} - keys.keys():
            raise CheckpointError(f"{self.adapter.describe()}: {module} has lora_{min(keys)} alone")
        a, b = (self.adapter.infos[keys[part]] for part in parts)
        return a, b

    def _check_groups(self, module: str, a: TensorInfo, b: TensorInfo) -> None:
        """Raise `CheckpointError` for a convolution with groups: its B has a part of the rank."""
        is_convolution = len(a.shape) == len(b.shape) > 2  # noqa: PLR2004 - more than a matrix
        if is_convolution and 0 < b.shape[1] < a.shape[0] and a.shape[0] % b.shape[1] == 0:
            raise CheckpointError(
                f"{self.adapter.describe()}: {module} is a convolution with "
                f"{a.shape[0] // b.shape[1]} groups, expected one without groups",
                hint="PEFT cannot merge such an adapter either. Train it without this module.",
            )

    def _check_magnitude(self, module: str, magnitude: str | None, outputs: int) -> None:
        """Raise `CheckpointError` unless DoRA's magnitudes are one per output."""
        if magnitude is None and self.config.get("use_dora"):
            raise CheckpointError(
                f"{self.adapter.describe()}: {module} has no lora_magnitude_vector, and "
                "use_dora is on"
            )
        if magnitude is not None and self.adapter.infos[magnitude].numel != outputs:
            shape = list(self.adapter.infos[magnitude].shape)
            raise CheckpointError(
                f"{self.adapter.describe()}: the magnitudes of {module} have the shape {shape}, "
                f"expected one per output, {outputs}"
            )
