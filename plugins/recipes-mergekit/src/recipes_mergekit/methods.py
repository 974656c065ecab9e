"""mergekit's merge methods as algorithms (docs/how-to/port-from-mergekit.md lists them)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from recipes_mergekit.algorithm import Algorithm
from recipes_mergekit.parameters import OF_MODELS
from recipes_mergekit.settings import change, constant

if TYPE_CHECKING:
    from collections.abc import Callable

    from recipes_mergekit.parameters import Parameters, Setting


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

    @property
    def of_models(self) -> frozenset[str]:
        """The parameters that a model may set."""
        return (self.parameters & OF_MODELS) - self.shared


def _linear(given: Parameters) -> Algorithm:
    algorithm = Algorithm("weighted-average")
    algorithm.set_weights("weights", given.by_expert("weight"))
    if not given.switch("normalize", default=True):
        algorithm.options["normalize"] = False
    return algorithm


def _passthrough(given: Parameters) -> Algorithm:
    scales = given.by_expert("scale", 1.0)
    (expert,) = given.experts
    if all(constant(rules) == 1 for rules in scales[expert]):
        return Algorithm("passthrough", {"model": expert})
    algorithm = Algorithm("weighted-average", {"normalize": False})
    algorithm.set_weights("weights", scales)
    return algorithm


def _slerp(given: Parameters) -> Algorithm:
    algorithm, t = Algorithm("slerp"), given.shared("t")
    if any(not 0 <= value <= 1 for rules in t for rule in rules for value in rule.values):
        given.refuse("t", "expected values from 0 to 1")
    algorithm.set("t", t)
    return algorithm


def _nuslerp(given: Parameters) -> Algorithm:
    is_flat = given.switch("nuslerp_flatten", default=True)
    is_column = given.switch("nuslerp_row_wise", default=False)
    mode = "flat" if is_flat else "column" if is_column else "row"
    algorithm = Algorithm("nuslerp", {"mode": mode})
    algorithm.set_weights("weights", given.by_expert("weight"))
    return algorithm


def _multi_slerp(given: Parameters) -> Algorithm:
    if not given.switch("normalize_weights", default=True):
        given.refuse("normalize_weights", "weights are always divided by their sum")
    if given.number("eps", 1e-8) != 1e-8:  # noqa: PLR2004 - mergekit's default
        given.refuse("eps", "has no counterpart")
    algorithm = Algorithm("multi-slerp")
    algorithm.set_weights("weights", given.by_expert("weight"))
    return algorithm


def _karcher(given: Parameters) -> Algorithm:
    options = {
        "iterations": int(given.number("max_iter", 10)),
        "tolerance": given.number("tol", 1e-5),
    }
    return Algorithm("karcher", options)


def _model_stock(given: Parameters) -> Algorithm:
    if given.switch("filter_wise", default=False):
        given.refuse("filter_wise", "model-stock has one ratio per tensor, not per row")
    return Algorithm("model-stock")


def _nearswap(given: Parameters) -> Algorithm:
    algorithm = Algorithm("nearswap")
    algorithm.set("t", given.shared("t"))
    return algorithm


def _arcee_fusion(given: Parameters) -> Algorithm:
    del given
    return Algorithm("arcee-fusion")


def _sce(given: Parameters) -> Algorithm:
    algorithm = Algorithm("sce")
    algorithm.set("density", _as_fraction(given, "select_topk", given.shared("select_topk", 1.0)))
    return algorithm


def _ram(given: Parameters) -> Algorithm:
    algorithm = Algorithm("ram")
    algorithm.set("epsilon", given.shared("epsilon", 1e-5))
    return algorithm


def _ram_plus(given: Parameters) -> Algorithm:
    algorithm = _ram(given)
    algorithm.set("r", given.shared("r", 0.1))
    algorithm.set("alpha", given.shared("alpha", 0.2))
    algorithm.options["scope"] = "tensor"
    return algorithm


def _task_arithmetic(given: Parameters) -> Algorithm:
    algorithm = Algorithm("task-arithmetic")
    if given.switch("normalize", default=False):  # which the algorithm of this name does not do
        options = {"density": 1.0, "rescale": "paper", "elect": "none", "normalize": True}
        algorithm = Algorithm("dare", options)
    algorithm.set("scale", given.shared("lambda", 1.0))
    algorithm.set_weights("weights", given.by_expert("weight"))
    return algorithm


def _ties(given: Parameters) -> Algorithm:
    density = _density(given)
    if given.switch("rescale", default=False) and not _is_one(density):
        given.refuse("rescale", "ties does not rescale task vectors after trimming")
    algorithm = Algorithm("ties", {"scope": "tensor", "zero_sign": "positive"})
    algorithm.set_fractions("density", density)
    algorithm.options["normalize"] = given.switch("normalize", default=True)
    algorithm.set("scale", given.shared("lambda", 1.0))
    algorithm.set_weights("weights", given.by_expert("weight"))
    return algorithm


def _dare(elect: str) -> Callable[[Parameters], Algorithm]:
    def translate(given: Parameters) -> Algorithm:
        _warn_of_randomness(given)
        algorithm, density = Algorithm("dare"), _density(given)
        algorithm.set_fractions("density", density)
        scale = given.shared("lambda", 1.0)
        algorithm.options |= {"rescale": "l1", "elect": elect}
        if not given.switch("rescale", default=True):
            values = {constant(rules) for setting in density.values() for rules in setting}
            if len(values) != 1 or None in values:
                given.refuse("rescale", "false needs one density for all models and tensors")
                return algorithm
            factor = values.pop() or 1.0  # entries that are kept are divided by it
            algorithm.options["rescale"] = "paper"
            scale = tuple(change(rules, lambda value: value * factor) for rules in scale)
        algorithm.options["normalize"] = given.switch("normalize", default=False)
        algorithm.set("scale", scale)
        algorithm.set_weights("weights", given.by_expert("weight"))
        return algorithm

    return translate


def _della(elect: str, *, normalize: bool) -> Callable[[Parameters], Algorithm]:
    def translate(given: Parameters) -> Algorithm:
        _warn_of_randomness(given)
        algorithm, density = Algorithm("della"), _density(given)
        algorithm.set_fractions("density", density)
        algorithm.set_fractions("epsilon", given.by_expert("epsilon", 0.15))
        algorithm.options |= {"rescale": "l1", "elect": elect}
        if not given.switch("rescale", default=True) and not _is_one(density):
            given.refuse("rescale", "della always rescales the entries that it keeps")
        algorithm.options["normalize"] = given.switch("normalize", default=normalize)
        algorithm.set("scale", given.shared("lambda", 1.0))
        algorithm.set_weights("weights", given.by_expert("weight"))
        return algorithm

    return translate


def _breadcrumbs(elect: str) -> Callable[[Parameters], Algorithm]:
    def translate(given: Parameters) -> Algorithm:
        algorithm, density = Algorithm("breadcrumbs"), _density(given)
        algorithm.set_fractions("density", density)
        algorithm.set_fractions("gamma", given.by_expert("gamma", 0.01))
        algorithm.options["elect"] = elect
        for name in ("normalize", "rescale"):
            if given.switch(name, default=False):
                given.refuse(name, f"breadcrumbs does not {name}")
        algorithm.set("scale", given.shared("lambda", 1.0))
        algorithm.set_weights("weights", given.by_expert("weight"))
        return algorithm

    return translate


def _density(given: Parameters) -> dict[str, Setting]:
    return {
        expert: _as_fraction(given, "density", setting)
        for expert, setting in given.by_expert("density", 1.0).items()
    }


def _as_fraction(given: Parameters, name: str, setting: Setting) -> Setting:
    """Return fractions up to 1, which mergekit takes for all that is larger."""
    if any(value <= 0 for rules in setting for rule in rules for value in rule.values):
        given.refuse(name, "expected values above 0; skip a model by weight: 0")
    return tuple(change(rules, lambda value: min(value, 1.0)) for rules in setting)


def _is_one(settings: dict[str, Setting]) -> bool:
    return all(constant(rules) == 1 for setting in settings.values() for rules in setting)


def _warn_of_randomness(given: Parameters) -> None:
    reason = "drops entries at random; mergekit's random numbers differ, from run to run too"
    given.findings.warn(f"{given.configuration.prefix}merge_method", reason)


_TASK = frozenset({"weight", "density", "normalize", "rescale", "lambda", "int8_mask"})


def _task(translate: Callable[[Parameters], Algorithm], *more: str) -> Method:
    return Method(translate, "required", _TASK | {*more})


def _method(
    translate: Callable[[Parameters], Algorithm],
    base: Literal["required", "optional", "input"],
    *parameters: str,
    least: int = 1,
    most: int | None = None,
) -> Method:
    return Method(translate, base, frozenset(parameters), least, most)


METHODS = {
    "linear": _method(_linear, "input", "weight", "normalize"),
    "slerp": _method(_slerp, "required", "t", most=1),
    "nuslerp": _method(
        _nuslerp,
        "optional",
        *("weight", "nuslerp_row_wise", "nuslerp_flatten"),
        least=2,
        most=2,
    ),
    "multislerp": _method(_multi_slerp, "optional", "weight", "normalize_weights", "eps"),
    "karcher": _method(_karcher, "input", "max_iter", "tol"),
    "task_arithmetic": _task(_task_arithmetic),
    "ties": _task(_ties),
    "dare_linear": _task(_dare("none")),
    "dare_ties": _task(_dare("ties")),
    "della": _task(_della("ties", normalize=True), "epsilon"),
    "della_linear": _task(_della("none", normalize=False), "epsilon"),
    "breadcrumbs": _task(_breadcrumbs("none"), "gamma"),
    "breadcrumbs_ties": _task(_breadcrumbs("ties"), "gamma"),
    "sce": _method(_sce, "required", "select_topk", "int8_mask"),
    "model_stock": _method(_model_stock, "required", "filter_wise", least=2),
    "nearswap": _method(_nearswap, "required", "t", most=1),
    "arcee_fusion": _method(_arcee_fusion, "required", most=1),
    "ram": Method(_ram, "required", frozenset({"epsilon"}), shared=frozenset({"epsilon"})),
    "ramplus_tl": Method(
        _ram_plus,
        "required",
        frozenset({"epsilon", "r", "alpha"}),
        shared=frozenset({"epsilon"}),
    ),
    "passthrough": _method(_passthrough, "input", "scale", most=1),
}
