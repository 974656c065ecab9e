"""mergekit's merge methods as algorithms (docs/how-to/port-from-mergekit.md lists them)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from recipes_mergekit import plain_methods, sparse_methods
from recipes_mergekit.values import OF_MODELS

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from recipes_mergekit.algorithm import Algorithm
    from recipes_mergekit.parameters import Parameters


@dataclass(frozen=True)
class Method:
    """A method of mergekit: its base, its parameters, and its counterpart."""

    translate: Callable[[Parameters], Algorithm]
    #: `input` is a base that counts as one more expert
    base: Literal["required", "optional", "input"]
    parameters: frozenset[str]
    #: bounds on the number of experts
    least: int = 1
    most: int | None = None
    #: parameters that a model cannot set, although it can for other methods
    shared: frozenset[str] = frozenset()
    #: whether a model of weight 0 changes nothing
    can_skip: bool = False

    @property
    def of_models(self) -> frozenset[str]:
        """The parameters that a model may set."""
        return (self.parameters & OF_MODELS) - self.shared


_TASK = frozenset({"weight", "density", "normalize", "rescale", "lambda", "int8_mask"})


def _task(translate: Callable[[Parameters], Algorithm], *more: str) -> Method:
    return Method(translate, "required", _TASK | {*more}, can_skip=True)


def _method(
    translate: Callable[[Parameters], Algorithm],
    base: Literal["required", "optional", "input"],
    *parameters: str,
    experts: tuple[int, int | None] = (1, None),
    shared: Sequence[str] = (),
) -> Method:
    return Method(translate, base, frozenset(parameters), *experts, frozenset(shared))


METHODS = {
    "linear": Method(
        plain_methods.linear, "input", frozenset({"weight", "normalize"}), can_skip=True
    ),
    "slerp": _method(plain_methods.slerp, "required", "t", experts=(1, 1)),
    "nuslerp": _method(
        plain_methods.nuslerp,
        "optional",
        *("weight", "nuslerp_row_wise", "nuslerp_flatten"),
        experts=(2, 2),
    ),
    "multislerp": _method(
        plain_methods.multi_slerp, "optional", "weight", "normalize_weights", "eps"
    ),
    "karcher": _method(plain_methods.karcher, "input", "max_iter", "tol"),
    "task_arithmetic": _task(sparse_methods.task_arithmetic),
    "ties": _task(sparse_methods.ties),
    "dare_linear": _task(sparse_methods.dare("none")),
    "dare_ties": _task(sparse_methods.dare("ties")),
    "della": _task(sparse_methods.della("ties", normalize=True), "epsilon"),
    "della_linear": _task(sparse_methods.della("none", normalize=False), "epsilon"),
    "breadcrumbs": _task(sparse_methods.breadcrumbs("none"), "gamma"),
    "breadcrumbs_ties": _task(sparse_methods.breadcrumbs("ties"), "gamma"),
    "sce": _method(plain_methods.sce, "required", "select_topk", "int8_mask"),
    "model_stock": _method(plain_methods.model_stock, "required", "filter_wise", experts=(2, None)),
    "nearswap": _method(plain_methods.nearswap, "required", "t", experts=(1, 1)),
    "arcee_fusion": _method(plain_methods.arcee_fusion, "required", experts=(1, 1)),
    "ram": _method(plain_methods.ram, "required", "epsilon", shared=("epsilon",)),
    "ramplus_tl": _method(
        plain_methods.ram_plus, "required", "epsilon", "r", "alpha", shared=("epsilon",)
    ),
    "passthrough": _method(plain_methods.passthrough, "input", "scale", experts=(1, 1)),
}
