"""Inputs of a live model's layers, recorded at every call and without padding."""

from __future__ import annotations

import inspect
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from fusion_adapting._finite import refuse_nonfinite
from fusion_adapting._predictions import widened
from fusion_adapting._products import ProductObserver, expert_by_expert
from fusion_core.contracts.batch import ATTENTION_MASK
from fusion_core.errors import FusionError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Self

    from fusion_adapting._packed import PackedLayer, PackedWeights
    from fusion_core import AdaptiveTask, Batch


@torch.no_grad()
def observe_inputs(  # noqa: PLR0913 - a model and its layers, the examples, and who sees them
    model: nn.Module,
    layers: Mapping[nn.Module, str],
    task: AdaptiveTask,
    batch: Batch,
    see: Callable[[Any, Tensor], None],
    *,
    packed: PackedWeights | None = None,
) -> None:
    """Pass a batch through a live model and call `see(layer, inputs)` for every call of a layer.

    `layers` maps each layer to its name in errors. `inputs` has shape (positions, width), at least
    in fp32. The task may call the model, or parts of it, several times per batch. Padding is left
    out: by the `attention_mask` of the call, or by the batch's mask if the call has none. Raises
    `FusionError` if the mask does not fit a layer's inputs, if these are not finite, or if the task
    computes its scores without calling the model. The model, in evaluation mode, does not change.

    With `packed`, the layers include the matrices in these parameters, as `PackedLayer`. Their
    inputs are the rows that the model multiplies by them: the positions routed to an expert. The
    module of such a parameter is not called for padding, which gets zeros, if its arguments have
    one row per position and say where each position is routed. With other arguments and padding,
    the parameter's inputs are unknown (`PackedWeights.not_understood`).
    """
    on_device = batch.to(next(model.parameters()).device)
    packed = packed or None
    tracker = _CallTracker(model, on_device.mask, packed)
    predictions = sum(on_device.count_predictions())

    def see_finite(layer: Any, name: str, inputs: Tensor) -> None:  # noqa: ANN401 - of any class
        refuse_nonfinite(inputs, f"the inputs of the layer of {name!r}", model, task)
        see(layer, inputs)

    with expert_by_expert(model), tracker, ExitStack() as hooks:

        def hook(layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:  # noqa: ANN401
            inputs = widened((args or tuple(kwargs.values()))[0].detach())
            name = layers[layer]
            see_finite(layer, name, _unpadded(inputs, tracker.mask, name, predictions))

        for layer in layers:
            handle = layer.register_forward_pre_hook(hook, with_kwargs=True)
            hooks.callback(handle.remove)
        if packed is not None:

            def see_rows(layer: PackedLayer, rows: Tensor) -> None:
                see_finite(layer, layer.name, widened(rows.detach()))

            hooks.enter_context(ProductObserver(packed, see_rows, lambda: tracker.mask))
        task.logits(model, on_device)
    if not tracker.count:
        raise FusionError(
            f"task {task.name!r} computed its scores without calling the model, so the inputs of "
            "its layers are unknown",
            hint="`logits` must pass every batch through the given model, at each call. Do not "
            "reuse the results of an earlier call.",
        )


class _CallTracker:
    """Counts the calls of a model's modules, and knows the padding mask of the current call."""

    def __init__(self, model: nn.Module, mask: Tensor | None, packed: PackedWeights | None) -> None:
        """`mask` is the batch's, of shape (examples, length)."""
        #: the number of calls
        self.count = 0
        self._model = model
        self._masks = [_simplified(mask)]
        #: the mask of the call that is not called for padding, one per call
        self._dropped: list[Tensor | None] = []
        self._packed = set() if packed is None else set(packed.parameters)
        self._hooks = ExitStack()

    @property
    def mask(self) -> Tensor | None:
        """True for positions that are not padding: (examples, length). None without padding."""
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

    def _enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:  # noqa: ANN401
        self.count += 1
        mask = _mask_argument(module, args, kwargs)
        mask = self.mask if mask is None else _simplified(mask)
        is_owner = not self._packed.isdisjoint(module.parameters(recurse=False))
        values = (*args, *kwargs.values())
        rows = mask.flatten() if mask is not None and is_owner else None
        if rows is not None and not any(_routes(value, rows) for value in values):
            rows = None
        self._dropped.append(rows)
        self._masks.append(mask if rows is None else None)
        return None if rows is None else tree_map(partial(_without_padding, rows), (args, kwargs))

    def _leave(self, _module: nn.Module, _args: Any, output: Any) -> Any:  # noqa: ANN401
        self._masks.pop()
        rows = self._dropped.pop()
        return None if rows is None else tree_map(partial(_with_padding, rows), output)


def _fits(value: Any, rows: Tensor) -> bool:  # noqa: ANN401 - any argument
    return isinstance(value, Tensor) and value.dim() > 1 and len(value) == len(rows)


def _routes(value: Any, rows: Tensor) -> bool:  # noqa: ANN401 - any argument
    """Return whether an argument holds indices per position, so that the rows are positions."""
    return _fits(value, rows) and not value.is_floating_point()


def _without_padding(rows: Tensor, value: Any) -> Any:  # noqa: ANN401 - any argument
    """Return the rows of an argument with one row per position."""
    return value[rows] if _fits(value, rows) else value


def _with_padding(rows: Tensor, value: Any) -> Any:  # noqa: ANN401 - any output
    """Return an output with one row per position, zero for padding."""
    if not isinstance(value, Tensor) or value.dim() < 2 or len(value) != int(rows.sum()):  # noqa: PLR2004
        return value
    padded = value.new_zeros((len(rows), *value.shape[1:]))
    padded[rows] = value
    return padded


def input_dim(module: nn.Module) -> int | None:
    """Return the input dimension of a linear layer's weight, or None for other modules.

    It is 1 in `nn.Linear` and 0 in transformers' `Conv1D`.
    """
    if isinstance(module, nn.Linear):
        return 1
    classes = {f"{cls.__module__}.{cls.__qualname__}" for cls in type(module).__mro__}
    return 0 if "transformers.pytorch_utils.Conv1D" in classes else None


def _mask_argument(
    module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Tensor | None:
    """Return the padding mask in the arguments of a module's call, if there is one.

    A padding mask is an `attention_mask` of shape (examples, length) whose dimensions begin another
    argument too. A mask of which positions attend to which others has another shape.
    """
    signature = inspect.signature(module.forward)
    if ATTENTION_MASK not in signature.parameters and ATTENTION_MASK not in kwargs:
        return None
    arguments = {**signature.bind_partial(*args, **kwargs).arguments, **kwargs}
    mask = arguments.get(ATTENTION_MASK)
    others = [
        value
        for name, value in arguments.items()
        if name != ATTENTION_MASK and isinstance(value, Tensor)
    ]
    fits = isinstance(mask, Tensor) and any(mask.shape == other.shape[:2] for other in others)
    return mask if fits else None


def _simplified(mask: Tensor | None) -> Tensor | None:
    """Return a mask as booleans, or None if it leaves nothing out."""
    if mask is None:
        return None
    boolean = mask.bool()
    return None if bool(boolean.all()) else boolean


def _unpadded(inputs: Tensor, mask: Tensor | None, name: str, predictions: int) -> Tensor:
    """Return the inputs that are not padding, of shape (positions, width)."""
    leading, width = inputs.shape[:-1], inputs.shape[-1]
    if mask is None:
        return inputs.reshape(-1, width)
    axes = [axis for axis, size in enumerate(leading) if axis and size == mask.shape[1]]
    if leading[:1] == mask.shape[:1] and axes:
        # Heads may come before positions. If there are as many, a projection wrote the heads of a
        # position next to each other.
        axis = max(axes, key=inputs.stride)
        return inputs.movedim(axis, 1)[mask].reshape(-1, width)
    if leading == (mask.numel(),):  # the positions of all examples in one row
        return inputs[mask.flatten()]
    if leading in {mask.shape[:1], (len(mask), 1), (predictions,)}:  # of examples, or predictions
        return inputs.reshape(-1, width)
    raise FusionError(
        f"cannot tell padding in the inputs of the layer of {name!r}: its inputs have shape "
        f"{tuple(inputs.shape)}, but the mask has shape {tuple(mask.shape)}",
        hint="Pass the model an `attention_mask` with every call, give batches without padding, or "
        f"leave the tensor out: algorithm.skip={name}",
    )
