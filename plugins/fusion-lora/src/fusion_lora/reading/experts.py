"""Adapters of packed experts: PEFT's `target_parameters`, for both layouts of a mixture.

PEFT adapts the packed parameter of a live model, such as `mlp.experts.gate_up_proj`. transformers
may save the same experts one by one, under the names of the original release. So factors are
assigned to the weights that the base stores. PEFT's file does not say which factors belong to which
parameter of a module: the shapes do.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate, count, pairwise, takewhile
from typing import TYPE_CHECKING, Any

from fusion_core.errors import CheckpointError
from fusion_lora.reading.config import MERGE_WITH_PEFT
from fusion_lora.reading.factors import ExpertPart
from pools_checkpoints import are_experts_transposed

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from fusion_core import TensorInfo

_NESTED = ".base_layer"
_PACKED = 3
_LIVE_FOLDER, _RELEASE_FOLDER = ".mlp.", ".block_sparse_moe."
#: The packed parameters of a layer's experts, in the order in which PEFT wraps their module: the
#: first is innermost.
PARAMETERS = ("gate_up_proj", "down_proj")
#: How releases store packed parameters one by one: their folder, and the parts from top to bottom.
EXPERT_LAYOUTS: tuple[tuple[str, dict[str, tuple[str, ...]]], ...] = (
    (_LIVE_FOLDER, {"gate_up_proj": ("gate_proj", "up_proj"), "down_proj": ("down_proj",)}),
    (_LIVE_FOLDER, {"gate_up_proj": ("w1", "w3"), "down_proj": ("w2",)}),
    (_RELEASE_FOLDER, {"gate_up_proj": ("w1", "w3"), "down_proj": ("w2",)}),
)


@dataclass(frozen=True, slots=True)
class Target:
    """A weight of the base that the factors of a module change."""

    weight: str
    #: the parameter's name, which patterns of ranks and scales match
    parameter: str
    part: ExpertPart
    transposed: bool


def strip_nesting(module: str) -> str:
    """Return the name of a module that PEFT wrapped, perhaps several times."""
    while module.endswith(_NESTED):
        module = module.removesuffix(_NESTED)
    return module


def find_parameters(config: Mapping[str, Any], module: str) -> list[str]:
    """Return the names of a module's parameters that the configuration targets."""
    targets = config.get("target_parameters")
    parts = [str(name).rpartition(".") for name in targets] if isinstance(targets, list) else []
    names = (name for folder, _, name in parts if f".{module}".endswith(folder and f".{folder}"))
    return [*dict.fromkeys(names)]


def name_in_release(name: str) -> str:
    """Return the name that Mixtral's release, and so transformers on disk, gives to a tensor."""
    return name.replace(_LIVE_FOLDER, _RELEASE_FOLDER)


def name_in_live_model(name: str) -> str:
    """Return the name in a live model of a module of a mixture, as transformers maps it."""
    return name.replace(_RELEASE_FOLDER, _LIVE_FOLDER)


def is_stored(
    module: str, parameter: str, base: Mapping[str, TensorInfo], base_names: Mapping[str, str]
) -> bool:
    """Tell whether a base stores a parameter of a module, whole or expert by expert."""
    names = _BaseNames(base, base_names)
    return any(names.find(name) is not None for name in probe_names(module, [parameter]))


def probe_names(module: str, parameters: Iterable[str]) -> Iterator[str]:
    """Yield names that a base may have for a module's parameters, to find a common prefix."""
    for parameter in parameters:
        yield f"{module}.{parameter}"
        for layout in EXPERT_LAYOUTS:
            yield from _expert_names(module, parameter, layout, 0)


def find_targets(
    adapter: str,
    module: str,
    parameters: Iterable[str],
    factors: tuple[TensorInfo, TensorInfo],
    base: tuple[Mapping[str, TensorInfo], Mapping[str, str]],
) -> list[Target]:
    """Return the weights that a module's factors A and B change.

    `adapter` is its name for errors. `base` holds the base's tensors, and their names by the
    adapter's. Raises `CheckpointError` unless the shapes fit exactly one of `parameters`.
    """
    names = _BaseNames(*base)
    fitting = {
        parameter: targets
        for parameter in parameters
        if (targets := _fit_packed(module, parameter, factors, names))
        or (targets := _fit_separate(module, parameter, factors, names))
    }
    if len(fitting) != 1:
        shapes = " and ".join(str(list(info.shape)) for info in factors)
        described = " and ".join(fitting) or "no parameter of the base in target_parameters"
        raise CheckpointError(
            f"{adapter}: the factors of {module} have the shapes {shapes}, which fit {described}",
            hint=MERGE_WITH_PEFT,
        )
    return next(iter(fitting.values()))


class _BaseNames:
    """The base's tensors by the adapter's names."""

    def __init__(self, base: Mapping[str, TensorInfo], names: Mapping[str, str]) -> None:
        self.base = base
        self._names = names

    def find(self, name: str) -> TensorInfo | None:
        return self.base.get(self._names.get(name, name))


def _fit_packed(
    module: str, parameter: str, factors: tuple[TensorInfo, TensorInfo], names: _BaseNames
) -> list[Target]:
    """Return the target if the base stores all experts in one tensor that the factors fit."""
    label = f"{module}.{parameter}"
    info = names.find(label)
    (ranks, width), (height, columns) = (factor.shape for factor in factors)
    if info is None or len(info.shape) != _PACKED or ranks != columns or ranks % info.shape[0]:
        return []
    straight, turned = (height, width), (width, height)
    if info.shape[1:] not in {straight, turned}:
        return []
    transposed = info.shape[1:] == turned
    if straight == turned:
        transposed = are_experts_transposed(
            *(names.find(f"{module}.{parameter}") for parameter in PARAMETERS)
        )
    return [Target(info.name, label, ExpertPart(info.shape[0]), transposed)]


def _fit_separate(
    module: str, parameter: str, factors: tuple[TensorInfo, TensorInfo], names: _BaseNames
) -> list[Target]:
    """Return the targets if the base stores experts one by one and the factors fit all of them."""
    (ranks, width), (height, columns) = (factor.shape for factor in factors)
    for layout in EXPERT_LAYOUTS:
        parts = (
            [names.find(name) for name in _expert_names(module, parameter, layout, index)]
            for index in count()
        )
        experts = list(takewhile(lambda infos: infos and None not in infos, parts))
        infos = [[info for info in expert if info is not None] for expert in experts]
        shapes = {tuple(info.shape for info in expert) for expert in infos}
        if len(shapes) != 1 or ranks != columns or ranks % len(infos):
            continue
        (shape,) = shapes
        ends = [0, *accumulate(rows for rows, *_ in shape)]
        if ends[-1] != height or any(part[1:] != (width,) for part in shape):
            continue
        return [
            Target(info.name, f"{module}.{parameter}", ExpertPart(len(infos), index, rows), False)
            for index, expert in enumerate(infos)
            for info, rows in zip(expert, pairwise(ends), strict=True)
        ]
    return []


def _expert_names(
    module: str, parameter: str, layout: tuple[str, dict[str, tuple[str, ...]]], index: int
) -> list[str]:
    """Return the adapter's names for the parts of one expert, as a release stores them."""
    folder, parts = layout
    experts = module.replace(_LIVE_FOLDER, folder)
    return [f"{experts}.{index}.{part}.weight" for part in parts.get(parameter, ())]
