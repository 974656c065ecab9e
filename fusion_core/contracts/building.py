"""Live models from weights, without a second copy.

A module is constructed with parameters that have no values, on the meta device, and with buffers as
its constructor makes them: checkpoints often lack those, positions and frequencies above all. Then
each tensor is read, a range at a time, into memory of the dtype and on the device asked for.
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
from fusion_core.weights import WeightSource, as_weights, assemble
from fusion_core.weights.merging.execution import on_cores

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from torch import Tensor

    from fusion_core.contracts.model_pool import ModelPool

ModuleT = TypeVar("ModuleT", bound=nn.Module)

#: how many tensors that do not fit are named
_SHOWN = 3


def build_model(  # noqa: PLR0913 - what is built, of what, and how it is to be
    construct: Callable[[], ModuleT],
    weights: WeightSource,
    *,
    base: WeightSource | None = None,
    rename: Callable[[str], str] = str,
    dtype: torch.dtype | None = torch.float32,
    device: torch.device | str = "cpu",
) -> ModuleT:
    """Return the module that `construct` makes, with exactly these weights, in evaluation mode.

    Parameters and the buffers of a state dict are `dtype` where they are floating-point; None
    leaves each as it is constructed. Other buffers keep their dtype always and, unless the weights
    hold them, their values. Tied parameters stay tied unless the weights hold different tensors for
    them. `rename` turns a tensor's name into the module's. `base` is needed for weights that are
    differences from it, as a LoRA adapter's are.

    Peak memory is the model's own and one block. Raises `AlignmentError` for missing or unexpected
    tensors and other shapes.
    """
    if weights.is_delta and base is None:
        raise BrokenPluginError(
            f"{weights.describe()} holds differences from a base, and no base was given",
            hint="Have the pool pass it on: build_model(..., base=self.base).",
        )
    with _parameters_on_meta():
        model = construct()
    source = as_weights(weights, base)
    given = {rename(name): name for name in source.infos}
    places = _places(model, source, given)
    _check_fit(model, source, given, places)

    def fill(place: _Place) -> None:
        _fill(model, place, source, dtype, torch.device(device))

    for _ in on_cores(fill, places):  # weights may be a merge, which is computed here
        pass
    return model.train(mode=False)


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
    """Return a model's parameters and all of its buffers by name; tied ones under each name."""
    return {
        **dict(model.named_parameters(remove_duplicate=False)),
        **dict(model.named_buffers(remove_duplicate=False)),
    }


def named_tensors(pool: ModelPool[Any], model: nn.Module) -> dict[str, Tensor]:
    """Return a live model's buffers and parameters, detached, by the names of a pool's tensors."""
    named = {**dict(model.named_buffers(remove_duplicate=False)), **pool.parameters(model)}
    return {name: tensor.detach() for name, tensor in named.items()}


@contextmanager
def _parameters_on_meta() -> Iterator[None]:
    """Let modules of this thread have parameters without values; leave random numbers alone.

    Layers register memory that they have not touched yet, and initialise it afterwards: nothing of
    that happens on the meta device.
    """
    thread, moved = threading.get_ident(), WeakIdKeyDictionary()

    def move(_: nn.Module, __: str, parameter: nn.Parameter) -> nn.Parameter | None:
        if parameter.is_meta or threading.get_ident() != thread:
            return None
        if parameter not in moved:  # one may be registered twice: it is tied
            moved[parameter] = nn.Parameter(parameter.to("meta"), parameter.requires_grad)
        found: nn.Parameter = moved[parameter]
        return found

    untyped: Any = move  # torch takes what hooks return, and is annotated as if it did not
    hook = register_module_parameter_registration_hook(untyped)
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        hook.remove()


@dataclass(frozen=True)
class _Place:
    """A parameter or buffer of a module."""

    #: its names there: several where it is tied
    names: Sequence[str]
    #: the name of the weights' tensor that goes here, if there is one
    given: str | None
    #: whether a state dict of the module has it
    is_saved: bool


def _places(model: nn.Module, source: WeightSource, given: Mapping[str, str]) -> list[_Place]:
    """Return a module's places in the order in which the weights are cheapest to read.

    `given` maps the module's names to those of the weights.
    """
    saved = model.state_dict(keep_vars=True).keys()
    tied: dict[int, list[str]] = {}
    for name, tensor in tensors_of(model).items():
        tied.setdefault(id(tensor), []).append(name)
    places = [
        _Place(
            names,
            next((given[name] for name in names if name in given), None),
            not saved.isdisjoint(names),
        )
        for shared in tied.values()
        for names in _part(shared, source, given)
    ]
    order = {name: number for number, name in enumerate(source.infos)}
    return sorted(places, key=lambda each: order.get(each.given or "", len(order)))


def _part(
    names: list[str], source: WeightSource, given: Mapping[str, str]
) -> Iterator[Sequence[str]]:
    """Untie a module's names whose tensors differ in the weights, as transformers does."""
    first, *others = [name for name in names if name in given] or names[:1]
    apart = [name for name in others if not _are_equal(source, given[first], given[name])]
    yield [name for name in names if name not in apart]
    yield from ([name] for name in apart)


def _are_equal(source: WeightSource, one: str, other: str) -> bool:
    ours, theirs = source.infos[one], source.infos[other]
    return (ours.shape, ours.dtype) == (theirs.shape, theirs.dtype) and all(
        torch.equal(source.read(one, *span), source.read(other, *span))
        for span in source.ranges(one)
    )


def _check_fit(
    model: nn.Module, source: WeightSource, given: Mapping[str, str], places: Sequence[_Place]
) -> None:
    """Raise `AlignmentError` unless every tensor has its place, and every place its tensor."""
    tensors = tensors_of(model)
    lacking = [
        position.names[0] for position in places if position.given is None and position.is_saved
    ]
    problems = [f"{name!r} is missing" for name in lacking]
    taken = {name for live, name in given.items() if live in tensors}
    problems += [f"{name!r} is unexpected" for name in source.infos if name not in taken]
    for live, name in given.items():
        shape = source.infos[name].shape
        if live in tensors and shape != tensors[live].shape:
            ours = list(tensors[live].shape)
            problems.append(f"{name!r} has shape {list(shape)}, where the model has {ours}")
    if problems:
        others = len(problems) - _SHOWN
        shown = "; ".join(problems[:_SHOWN]) + (f"; and {others} more" if others > 0 else "")
        raise AlignmentError(
            f"{source.describe()} does not fit {type(model).__name__}: tensor {shown}",
            hint="Check that the model's configuration belongs to these weights.",
        )


def _fill(
    model: nn.Module,
    place: _Place,
    source: WeightSource,
    dtype: torch.dtype | None,
    device: torch.device,
) -> None:
    """Put a tensor of the weights in its place; a buffer that has none keeps its values."""
    owners = [_owner(model, name) for name in place.names]
    old: Tensor = getattr(*owners[0])
    if place.given is None:
        new = _moved(old, place.names[0], device)
    else:
        is_cast = dtype is not None and place.is_saved and old.is_floating_point()
        kept = dtype if is_cast else old.dtype
        new = assemble(source, place.given, dtype=kept, device=device).reshape(old.shape)
    if isinstance(old, nn.Parameter):
        new = nn.Parameter(new, requires_grad=old.requires_grad)
    for module, attribute in owners:
        setattr(module, attribute, new)


def _owner(model: nn.Module, name: str) -> tuple[nn.Module, str]:
    """Return the module that has a tensor, and what it calls it."""
    path, _, attribute = name.rpartition(".")
    return model.get_submodule(path), attribute


def _moved(buffer: Tensor, name: str, device: torch.device) -> Tensor:
    if buffer.is_meta and device.type != "meta":
        raise BrokenPluginError(
            f"the buffer {name!r} is constructed without values, on the meta device",
            hint="Construct the module outside torch.device('meta'), and no buffer that the "
            "weights lack from parameters: they have no values yet.",
        )
    return buffer.to(device)
