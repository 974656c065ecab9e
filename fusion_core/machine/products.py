"""Which kernels multiply a model's matrices: the faster of the two that torch has.

On x86 torch gives products in fp32 to MKL, which uses no AVX-512 on AMD's processors. oneDNN, which
torch has for bf16 anyway, uses it: from Zen 5 on, whose units are as wide as its registers, a
product takes half the time, and rounds no worse.
"""

from __future__ import annotations

import re
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

#: multiplications from which on a product takes less time in oneDNN, conversions included
_WORTHWHILE = 2**23
#: AMD's number for the family of processors
_ZEN_5 = 26
_PLAIN = {(kind, torch.float32, "cpu", torch.strided) for kind in (Tensor, nn.Parameter)}

ModelT = TypeVar("ModelT", bound=nn.Module)


def with_fast_products(model: ModelT) -> ModelT:
    """Have a model's `nn.Linear` layers use the faster kernels, forward and back; returns it.

    That is so for fp32 on the CPU, from a size on. It depends on the processor and on shapes alone,
    so that what repeated to the bit still does.
    """
    if _is_outrun_here():
        for layer in model.modules():
            if type(layer) is nn.Linear:  # a subclass may compute something else
                layer.__class__ = OneDnnLinear
    return model


def is_outrun(processor: str) -> bool:
    """Tell whether oneDNN outruns MKL on a processor, given as Linux's `/proc/cpuinfo` does."""
    family = re.search(
        r"^vendor_id\s*: AuthenticAMD\ncpu family\s*: (\d+)$", processor, re.MULTILINE
    )
    wide = re.search(r"^flags\s*:.*\bavx512f\b", processor, re.MULTILINE)  # some machines hide it
    return family is not None and int(family[1]) >= _ZEN_5 and wide is not None


class OneDnnLinear(nn.Linear):
    """A linear layer that oneDNN computes where it can and that is large enough to gain by it."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - its name in torch
        """Return a tensor of shape (..., out_features) for one of shape (..., in_features)."""
        operands = (input, self.weight, self.bias)
        if torch.compiler.is_compiling() or torch.is_autocast_enabled("cpu"):
            return super().forward(input)
        if not (_is_large(input, self.weight) and all(map(_is_plain, operands))):
            return super().forward(input)
        result: Tensor = _OneDnnProduct.apply(*operands)  # type: ignore[no-untyped-call]
        return result


@lru_cache(maxsize=1)
def _is_outrun_here() -> bool:
    try:
        processor = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:  # another system than Linux
        return False
    return torch.backends.mkldnn.is_available() and is_outrun(processor)  # type: ignore[no-untyped-call]


def _is_large(inputs: Tensor, weight: Tensor) -> bool:
    return inputs.dim() > 1 and inputs.numel() * len(weight) >= _WORTHWHILE


def _is_plain(operand: Tensor | None) -> bool:
    """Tell whether it is what oneDNN takes, and nothing that stands in for a tensor."""
    if operand is None:
        return True
    kind = type(operand), operand.dtype, operand.device.type, operand.layout
    wrapped = torch._C._functorch.is_functorch_wrapped_tensor  # noqa: SLF001 - nothing public tells
    return kind in _PLAIN and not wrapped(operand)


class _OneDnnProduct(torch.autograd.Function):
    """`linear` of dense tensors by oneDNN, forward and back; keeps for its way back what it got."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:  # noqa: ANN401
        ctx.save_for_backward(inputs, weight)
        return linear(inputs.to_mkldnn(), weight, bias).to_dense()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        inputs, weight = ctx.saved_tensors
        rows = gradient.flatten(0, -2)
        of_bias = rows.sum(0) if ctx.needs_input_grad[2] else None
        if torch.is_grad_enabled():  # the gradient is to be differentiated itself
            return gradient @ weight, rows.t() @ inputs.flatten(0, -2), of_bias
        found = torch.ops.aten.mkldnn_linear_backward(
            inputs.to_mkldnn(), gradient.to_mkldnn(), weight, [*ctx.needs_input_grad[:2], False]
        )
        return *(each if each is None else each.to_dense() for each in found[:2]), of_bias
