"""What a live model's layers are given, at every call and without padding."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from fusion_core.adapting._predictions import widened
from fusion_core.errors import FusionError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor

    from fusion_core.contracts.batch import Batch
    from fusion_core.contracts.task_pool import AdaptiveTask


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
    (positions, width) and is at least fp32; padding is left out, by the batch's mask. Raises
    `FusionError` where that says nothing of a layer's inputs. The model, in evaluation mode, stays
    as it was.
    """
    here = batch.to(next(model.parameters()).device)
    mask = _not_padding(here)

    def hook(layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:  # noqa: ANN401
        inputs = widened((args or tuple(kwargs.values()))[0].detach())
        see(layer, _unpadded(inputs, mask, layers[layer]))

    handles = [each.register_forward_pre_hook(hook, with_kwargs=True) for each in layers]
    try:
        task.logits(model, here)
    finally:
        for handle in handles:
            handle.remove()


def input_dim(module: nn.Module) -> int | None:
    """Return the dimension of a linear layer's weight that inputs run along, None for others.

    1 in `nn.Linear`, 0 in transformers' `Conv1D`.
    """
    if isinstance(module, nn.Linear):
        return 1
    kinds = {f"{each.__module__}.{each.__qualname__}" for each in type(module).__mro__}
    return 0 if "transformers.pytorch_utils.Conv1D" in kinds else None


def _not_padding(batch: Batch) -> Tensor | None:
    """Return what is not padding, shape (examples, length); None where nothing is."""
    mask = None if batch.mask is None else batch.mask.bool()
    return None if mask is None or bool(mask.all()) else mask


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
        hint=f"Give batches without padding, or leave the tensor out: algorithm.skip={name}",
    )
