"""Linear layers that collect the gradient of coefficients instead of that of their weight.

The gradient of a weight is a product of two matrices with one row per position. Projected onto task
vectors of low rank, it takes products with their factors, which are thin. The gradient itself, as
large as the weight, is never computed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from fusion_adapting._factored import is_collected
from fusion_core.machine.linear_kernels import OneDnnLinear, fast_linear

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fusion_adapting._factored import Factored


class CollectingLinear(nn.Linear):
    """A linear layer that collects the gradient of its weight's coefficients.

    The weight itself gets a gradient only from other code that uses it.
    """

    #: the weight that has the coefficients; another may take its place for a while
    own_weight: nn.Parameter
    vectors: Factored
    collected: Tensor

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - its name in torch
        """Return a tensor of shape (..., out_features) for one of shape (..., in_features)."""
        is_cast = torch.is_autocast_enabled(input.device.type)
        weight = self.weight if is_cast else self.weight.to(input.dtype)
        if self.weight is not self.own_weight or not torch.is_grad_enabled():
            return fast_linear(input, weight, self.bias)
        outputs = fast_linear(input, weight.detach(), self.bias)
        result: Tensor = _Collected.apply(outputs, input, self.collected, self.vectors)  # type: ignore[no-untyped-call]
        return result


def find_owners(model: nn.Module) -> dict[nn.Parameter, list[nn.Module]]:
    """Return the modules that have each parameter; several if it is tied."""
    owners: dict[nn.Parameter, list[nn.Module]] = {}
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            owners.setdefault(parameter, []).append(module)
    return owners


def collect_in_layers(
    owners: Sequence[nn.Module],
    weight: nn.Parameter,
    vectors: Factored,
    collected: Tensor,
    *,
    bf16: bool,
) -> None:
    """Let the linear layers among a weight's owners collect the gradient of its coefficients.

    They add it to that of `collected`, of shape (experts, count). They do not where the factors are
    so large that the weight's own gradient takes less time, or where the weight holds several
    matrices. With `bf16`, a weight that no other module has is then held in bf16.
    """
    factors = vectors.left.numel() + vectors.right.numel()
    is_whole = vectors.sharing.info.shape == weight.shape
    if not (is_whole and is_collected(factors, weight.numel())):
        return
    layers = [owner for owner in owners if type(owner) in {nn.Linear, OneDnnLinear}]
    for layer in layers:
        layer.__class__ = CollectingLinear
        # Not by setattr, which would register the weight under a second name.
        vars(layer).update(own_weight=weight, vectors=vectors, collected=collected)
    if bf16 and len(layers) == len(owners):
        weight.data = weight.data.bfloat16()


class _Collected(torch.autograd.Function):
    """Returns a linear layer's outputs as they are; collects a gradient on the way back."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401 - of torch
        outputs: Tensor,
        inputs: Tensor,
        collected: Tensor,  # noqa: ARG004 - receives the gradient
        vectors: Factored,
    ) -> Tensor:
        ctx.save_for_backward(inputs)
        ctx.vectors = vectors
        ctx.mark_dirty(outputs)  # the same tensor, which other code may change in place
        return outputs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        (inputs,) = ctx.saved_tensors
        rows = gradient.flatten(0, -2)
        columns = inputs.flatten(0, -2).to(gradient.dtype)  # as autocast does
        return gradient, None, ctx.vectors.project_product(rows, columns), None
