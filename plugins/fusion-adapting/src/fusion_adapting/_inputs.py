"""What a live model's layers are given, at every call and without padding."""

from __future__ import annotations

import inspect
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from fusion_adapting._predictions import widened
from fusion_core.contracts.batch import MASK
from fusion_core.errors import FusionError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Self

    from fusion_core import AdaptiveTask, Batch


@torch.no_grad()
def show_inputs(
    model: nn.Module,
    layers: Mapping[nn.Module, str],
    task: AdaptiveTask,
    batch: Batch,
    see: Callable[[nn.Module, Tensor], None],
) -> None:
    """Pass a batch through a live model; call `see(layer, inputs)` whenever a layer is called.

    `layers` are those to look at, each with the name that an error gives it. `inputs` has shape
    (positions, width) and is at least fp32. The task may call the model, or parts of it, several
    times per batch. Padding is left out by the `attention_mask` of the call or, in a call without
    one, by the batch's own. Raises `FusionError` where the mask does not fit a layer's inputs, and
    where the task computes its scores without calling the model. The model, in evaluation mode,
    stays as it was.
    """
    here = batch.to(next(model.parameters()).device)

    with _Calls(model, here.mask) as calls, ExitStack() as hooks:

        def hook(layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:  # noqa: ANN401
            inputs = widened((args or tuple(kwargs.values()))[0].detach())
            see(layer, _unpadded(inputs, calls.mask, layers[layer]))

        for layer in layers:
            handle = layer.register_forward_pre_hook(hook, with_kwargs=True)
            hooks.callback(handle.remove)
        task.logits(model, here)
    if not calls.count:
        raise FusionError(
            f"task {task.name!r} computed its scores without calling the model: "
            "the inputs of its layers cannot be seen",
            hint="`logits` has to pass every batch through the model that it is given, each time "
            "that it is called. Keep no results of an earlier call.",
        )


class _Calls:
    """The calls of a model and of its modules, and the mask that holds in the current one."""

    def __init__(self, model: nn.Module, mask: Tensor | None) -> None:
        """`mask` is the batch's own, of shape (examples, length)."""
        #: how many modules were called
        self.count = 0
        self._model = model
        self._masks = [_or_none(mask)]
        self._hooks = ExitStack()

    @property
    def mask(self) -> Tensor | None:
        """What is not padding, of shape (examples, length); None where nothing is."""
        return self._masks[-1]

    def __enter__(self) -> Self:
        for module in self._model.modules():
            before = module.register_forward_pre_hook(self._enter, with_kwargs=True)
            after = module.register_forward_hook(self._leave, always_call=True)
            self._hooks.callback(before.remove)
            self._hooks.callback(after.remove)
        return self

    def __exit__(self, *_: object) -> None:
        self._hooks.close()

    def _enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.count += 1
        own = _mask_given(module, args, kwargs)
        self._masks.append(self.mask if own is None else _or_none(own))

    def _leave(self, *_: object) -> None:
        self._masks.pop()


def input_dim(module: nn.Module) -> int | None:
    """Return the dimension of a linear layer's weight that inputs run along, None for others.

    1 in `nn.Linear`, 0 in transformers' `Conv1D`.
    """
    if isinstance(module, nn.Linear):
        return 1
    kinds = {f"{each.__module__}.{each.__qualname__}" for each in type(module).__mro__}
    return 0 if "transformers.pytorch_utils.Conv1D" in kinds else None


def _mask_given(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
    """Return the mask of padding that a call of a module is given.

    That is an `attention_mask` of shape (examples, length), where another input begins with these
    dimensions: a mask of which positions see which others has other shapes.
    """
    signature = inspect.signature(module.forward)
    if MASK not in signature.parameters and MASK not in kwargs:
        return None
    given = {**signature.bind_partial(*args, **kwargs).arguments, **kwargs}
    mask = given.get(MASK)
    others = [each for name, each in given.items() if name != MASK and isinstance(each, Tensor)]
    fits = isinstance(mask, Tensor) and any(mask.shape == other.shape[:2] for other in others)
    return mask if fits else None


def _or_none(mask: Tensor | None) -> Tensor | None:
    """Return a mask as booleans, None if it leaves nothing out."""
    kept = None if mask is None else mask.bool()
    return None if kept is None or bool(kept.all()) else kept


def _unpadded(inputs: Tensor, mask: Tensor | None, name: str) -> Tensor:
    """Return what is not padding, of shape (positions, width)."""
    leading, width = inputs.shape[:-1], inputs.shape[-1]
    if mask is None:
        return inputs.reshape(-1, width)
    if leading[:2] == mask.shape:
        return inputs[mask].reshape(-1, width)
    if leading == (mask.numel(),):  # positions of all examples in one row
        return inputs[mask.flatten()]
    if leading in {mask.shape[:1], (len(mask), 1)}:  # one input an example
        return inputs.reshape(-1, width)
    raise FusionError(
        f"the layer of {name!r} gets inputs of shape {tuple(inputs.shape)}: a mask of shape "
        f"{tuple(mask.shape)} does not say which of them are padding",
        hint="Pass the model an `attention_mask` with every call, give batches without padding, or "
        f"leave the tensor out: algorithm.skip={name}",
    )
