"""Build live models from weights without holding a second copy.

The module is constructed with its parameters on the meta device, where they take no memory, and
with real buffers: checkpoints often lack some buffers, such as positions and frequencies. Each
tensor is then read range by range into memory of the requested dtype and device.
"""

from __future__ import annotations

import threading
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.utils.weak import WeakIdKeyDictionary

from fusion_core.errors import AlignmentError, BrokenPluginError
from fusion_core.weights import WeightSource, are_equal, as_weights, assemble
from fusion_core.weights.merging.execution import map_on_cores

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from torch import Tensor

    from fusion_core.contracts.model_pool import ModelPool

ModuleT = TypeVar("ModuleT", bound=nn.Module)

#: The largest number of misfit tensors that an error names.
_LISTED = 3


def build_model(  # noqa: PLR0913 - what to construct, from which weights, in which form
    construct: Callable[[], ModuleT],
    weights: WeightSource,
    *,
    base: WeightSource | None = None,
    rename: Callable[[str], str] = str,
    dtype: torch.dtype | None = torch.float32,
    device: torch.device | str = "cpu",
) -> ModuleT:
    """Return the module that `construct` makes, with these weights, in evaluation mode.

    `rename` maps the name of a tensor to its name in the module. `base` is required if the weights
    are differences from it, as an adapter's are.

    Floating-point parameters and saved buffers get `dtype`; None keeps the dtypes that `construct`
    chose. Buffers outside the state dict keep their dtypes and, unless the weights have them, their
    values. Tied parameters stay tied unless the weights hold different tensors for them.

    Peak memory is the model itself and one block of the weights. Raises `AlignmentError` for
    missing or unexpected tensors and wrong shapes.
    """
    if weights.is_delta and base is None:
        raise BrokenPluginError(
            f"{weights.describe()} holds differences from a base, and no base was given",
            hint="Have the pool pass it on: build_model(..., base=self.base).",
        )
    with _parameters_on_meta():
        model = construct()
    source = as_weights(weights, base)
    weight_names = {rename(name): name for name in source.infos}
    targets = _list_targets(model, source, weight_names)
    _check_fit(model, source, weight_names, targets)

    def fill(target: _Target) -> None:
        _fill(model, target, source, dtype, torch.device(device))

    for _ in map_on_cores(fill, targets):  # the weights may be a merge, which is computed here
        pass
    return model.train(mode=False)


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
    """Return a model's parameters and all its buffers by name; tied tensors under every name."""
    return {
        **dict(model.named_parameters(remove_duplicate=False)),
        **dict(model.named_buffers(remove_duplicate=False)),
    }


def named_tensors(pool: ModelPool[Any], model: nn.Module) -> dict[str, Tensor]:
    """Return a live model's buffers and parameters, detached, by the pool's tensor names.

    Tensors that one parameter holds are views of it.
    """
    parameters = pool.parameters(model)
    named = {**dict(model.named_buffers(remove_duplicate=False)), **parameters}
    if not parameters.keys() <= pool.reference.infos.keys():
        for name, slots in pool.live_layout.slots.items():
            if name in named and name not in pool.reference.infos:
                values = named.pop(name).detach().view(-1)
                named |= {slot.name: slot.view(values[slot.start : slot.stop]) for slot in slots}
    return {name: tensor.detach() for name, tensor in named.items()}


@contextmanager
def _parameters_on_meta() -> Iterator[None]:
    """Move parameters that this thread registers to the meta device; preserve the random state.

    Layers register parameters before they initialise them, so initialisation costs nothing.
    """
    thread, moved = threading.get_ident(), WeakIdKeyDictionary()

    def move(_: nn.Module, __: str, parameter: nn.Parameter) -> nn.Parameter | None:
        if parameter.is_meta or threading.get_ident() != thread:
            return None
        if parameter not in moved:  # a tied parameter is registered more than once
            moved[parameter] = nn.Parameter(parameter.to("meta"), parameter.requires_grad)
        replacement: nn.Parameter = moved[parameter]
        return replacement

    untyped: Any = move  # torch uses the hook's result, but annotates the hook as returning None
    hook = register_module_parameter_registration_hook(untyped)
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        hook.remove()


@dataclass(frozen=True)
class _Target:
    """A parameter or buffer of the module."""

    #: its names in the module, more than one if it is tied
    names: Sequence[str]
    #: the name of the tensor in the weights that fills it; None without one
    weight: str | None
    #: whether the module's state dict contains it
    is_saved: bool


def _list_targets(
    model: nn.Module, source: WeightSource, weight_names: Mapping[str, str]
) -> list[_Target]:
    """Return a module's parameters and buffers in the order in which the weights store them.

    `weight_names` maps names in the module to names in the weights.
    """
    saved = model.state_dict(keep_vars=True).keys()
    tied: dict[int, list[str]] = {}
    for name, tensor in tensors_of(model).items():
        tied.setdefault(id(tensor), []).append(name)
    targets = [
        _Target(
            names,
            next((weight_names[name] for name in names if name in weight_names), None),
            not saved.isdisjoint(names),
        )
        for tied_names in tied.values()
        for names in _untie(tied_names, source, weight_names)
    ]
    order = {name: number for number, name in enumerate(source.infos)}
    return sorted(targets, key=lambda target: order.get(target.weight or "", len(order)))


def _untie(
    names: list[str], source: WeightSource, weight_names: Mapping[str, str]
) -> Iterator[Sequence[str]]:
    """Separate tied names whose tensors differ in the weights, as transformers does."""
    first, *others = [name for name in names if name in weight_names] or names[:1]
    separate = [
        name for name in others if not are_equal(source, weight_names[first], weight_names[name])
    ]
    yield [name for name in names if name not in separate]
    yield from ([name] for name in separate)


def _check_fit(
    model: nn.Module,
    source: WeightSource,
    weight_names: Mapping[str, str],
    targets: Sequence[_Target],
) -> None:
    """Raise `AlignmentError` for missing or unexpected tensors and wrong shapes."""
    tensors = tensors_of(model)
    problems = [
        f"{target.names[0]!r} is missing"
        for target in targets
        if target.weight is None and target.is_saved
    ]
    used = {weight for name, weight in weight_names.items() if name in tensors}
    problems += [f"{weight!r} is unexpected" for weight in source.infos if weight not in used]
    for name, weight in weight_names.items():
        shape = source.infos[weight].shape
        if name in tensors and shape != tensors[name].shape:
            expected = list(tensors[name].shape)
            problems.append(f"{weight!r} has shape {list(shape)}, where the model has {expected}")
    if problems:
        others = len(problems) - _LISTED
        listed = "; ".join(problems[:_LISTED]) + (f"; and {others} more" if others > 0 else "")
        raise AlignmentError(
            f"{source.describe()} does not fit {type(model).__name__}: tensor {listed}",
            hint="Check that the model's configuration belongs to these weights.",
        )


def _fill(
    model: nn.Module,
    target: _Target,
    source: WeightSource,
    dtype: torch.dtype | None,
    device: torch.device,
) -> None:
    """Read a target's tensor from the weights, or keep the values of a buffer they lack."""
    owners = []
    for name in target.names:
        path, _, attribute = name.rpartition(".")
        owners.append((model.get_submodule(path), attribute))
    old: Tensor = getattr(*owners[0])
    if target.weight is not None:
        is_cast = dtype is not None and target.is_saved and old.is_floating_point()
        new = assemble(
            source, target.weight, dtype=dtype if is_cast else old.dtype, device=device
        ).reshape(old.shape)
    elif old.is_meta and device.type != "meta":
        raise BrokenPluginError(
            f"the buffer {target.names[0]!r} is constructed without values, on the meta device",
            hint="Construct the module outside torch.device('meta'). Do not derive a buffer that "
            "the weights lack from parameters: they have no values yet.",
        )
    else:
        new = old.to(device)
    if isinstance(old, nn.Parameter):
        new = nn.Parameter(new, requires_grad=old.requires_grad)
    for module, attribute in owners:
        setattr(module, attribute, new)
