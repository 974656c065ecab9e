"""Linear layers that multiply with the faster of torch's two fp32 kernels on the CPU.

On x86 torch gives fp32 products to MKL, which does not use AVX-512 on AMD processors. oneDNN, which
torch has for bf16 anyway, does. From Zen 5 on, whose units are as wide as its registers, a product
takes half the time in oneDNN and rounds no worse.
"""

from __future__ import annotations

import re
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

#: multiplications from which oneDNN is faster, conversions included
_WORTHWHILE = 2**23
#: AMD's number for the processor family
_ZEN_5 = 26
_PLAIN = {(kind, torch.float32, "cpu", torch.strided) for kind in (Tensor, nn.Parameter)}

ModelT = TypeVar("ModelT", bound=nn.Module)


def use_fast_linear_layers(model: ModelT) -> ModelT:
    """Switch a model's `nn.Linear` layers to the faster kernels, in place, and return the model.

    The kernels serve large fp32 products on the CPU, forward and backward. The choice depends only
    on the processor and the shapes, so results stay reproducible to the bit.
    """
    if _is_outrun_here():
        for layer in model.modules():
            if type(layer) is nn.Linear:  # a subclass may compute something else
                layer.__class__ = OneDnnLinear
    return model


def is_onednn_faster(cpuinfo: str) -> bool:
    """Tell whether oneDNN is faster than MKL on a processor, described by `/proc/cpuinfo`."""
    family = re.search(r"^vendor_id\s*: AuthenticAMD\ncpu family\s*: (\d+)$", cpuinfo, re.MULTILINE)
    avx512 = re.search(r"^flags\s*:.*\bavx512f\b", cpuinfo, re.MULTILINE)  # some machines hide it
    return family is not None and int(family[1]) >= _ZEN_5 and avx512 is not None


class OneDnnLinear(nn.Linear):
    """A linear layer that uses oneDNN for products that are large enough to gain from it."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - its name in torch
        """Return a tensor of shape (..., out_features) for one of shape (..., in_features)."""
        return fast_linear(input, self.weight, self.bias)


def fast_linear(inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return what `torch.nn.functional.linear` does, by the faster kernels."""
    if torch.compiler.is_compiling() or torch.is_autocast_enabled("cpu"):
        return linear(inputs, weight, bias)
    is_large = inputs.dim() > 1 and inputs.numel() * len(weight) >= _WORTHWHILE
    if _is_outrun_here() and is_large and all(map(_is_plain, (inputs, weight, bias))):
        result: Tensor = _OneDnnProduct.apply(inputs, weight, bias)  # type: ignore[no-untyped-call]
        return result
    return linear(inputs, weight, bias)


@lru_cache(maxsize=1)
def _is_outrun_here() -> bool:
    try:
        cpuinfo = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:  # not Linux
        return False
    return torch.backends.mkldnn.is_available() and is_onednn_faster(cpuinfo)  # type: ignore[no-untyped-call]


def _is_plain(operand: Tensor | None) -> bool:
    """Tell whether oneDNN takes an operand: a dense fp32 tensor, not a stand-in for one."""
    if operand is None:
        return True
    kind = type(operand), operand.dtype, operand.device.type, operand.layout
    is_wrapped = torch._C._functorch.is_functorch_wrapped_tensor  # noqa: SLF001 - no public test
    return kind in _PLAIN and not is_wrapped(operand)


class _OneDnnProduct(torch.autograd.Function):
    """`linear` of dense tensors by oneDNN, forward and backward."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:  # noqa: ANN401
        ctx.save_for_backward(inputs, weight)
        return linear(inputs.to_mkldnn(), weight, bias).to_dense()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        inputs, weight = ctx.saved_tensors
        rows = gradient.flatten(0, -2)
        bias_gradient = rows.sum(0) if ctx.needs_input_grad[2] else None
        if torch.is_grad_enabled():  # the gradient itself will be differentiated
            return gradient @ weight, rows.t() @ inputs.flatten(0, -2), bias_gradient
        input_gradient, weight_gradient, _ = torch.ops.aten.mkldnn_linear_backward(
            inputs.to_mkldnn(), gradient.to_mkldnn(), weight, [*ctx.needs_input_grad[:2], False]
        )
        return _to_dense(input_gradient), _to_dense(weight_gradient), bias_gradient


def _to_dense(gradient: Tensor | None) -> Tensor | None:
    return None if gradient is None else gradient.to_dense()
