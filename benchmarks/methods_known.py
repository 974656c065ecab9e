"""Map our methods and options to those of mergekit, for `methods.py`.

A registered method that is not listed runs with its defaults, without a peer.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

EXPERTS = ("x", "y", "z")
#: The merge in pipelines of a transform or a calibration.
_MERGE = "task-arithmetic"


@dataclass(frozen=True)
class Method:
    """One merge, in our configuration and in mergekit's."""

    name: str
    options: dict[str, Any] = field(default_factory=dict)
    mergekit: str | None = None
    #: mergekit's parameters of the merge, and of each model
    parameters: dict[str, Any] = field(default_factory=dict)
    per_model: dict[str, float] = field(default_factory=dict)
    #: one factor per expert; empty if ours or mergekit's method takes none
    weights: tuple[float, ...] = (1.0, 1.0, 1.0)
    experts: int = 3
    has_base: bool = True
    #: thresholds as ranks, as fractions from the largest magnitude: mergekit keeps an arbitrary
    #: choice of the entries that equal one
    edges: tuple[float, ...] = ()
    #: draws different random numbers than mergekit, so values are not compared
    random: bool = False
    stage: str = "merge"

    @property
    def label(self) -> str:
        """The name, with the scope if the options set it."""
        scope = self.options.get("scope")
        return f"{self.name}, scope {scope}" if scope else self.name

    @property
    def algorithm(self) -> list[dict[str, Any]]:
        """The stages of the recipe."""
        this, merge = {"name": self.name, **self.options}, {"name": _MERGE}
        pipelines = {"transform": [this, merge], "calibrate": [merge, this]}
        return pipelines.get(self.stage, [this])

    @property
    def models(self) -> tuple[str, ...]:
        """The names of the models, the base first."""
        return ("base",) * self.has_base + EXPERTS[: self.experts]

    def for_mergekit(self, paths: dict[str, str]) -> dict[str, Any]:
        """Return mergekit's configuration, which computes in fp32 as we do."""
        weights = ({"weight": weight} for weight in self.weights or (None,) * self.experts)
        models = [
            {
                "model": paths[name],
                "parameters": self.per_model | {k: v for k, v in weight.items() if v},
            }
            for name, weight in zip(EXPERTS[: self.experts], weights, strict=False)
        ]
        return {
            "merge_method": self.mergekit,
            "models": models,
            "parameters": self.parameters,
            "dtype": "float32",
            "out_dtype": "bfloat16",
            **({"base_model": paths["base"]} if self.has_base else {}),
        }


_TIES = {"density": 0.2}
_UNEQUAL = (0.5, 2.0, 1.0)
_L1 = {"rescale": "l1", "scale": 1.0, "density": 0.5}
_ALONE: dict[str, Any] = {"weights": (), "experts": 1}
KNOWN = (
    Method("simple-average", {}, "linear", has_base=False),
    Method("weighted-average", {"weights": _UNEQUAL}, "linear", weights=_UNEQUAL, has_base=False),
    Method("task-arithmetic", {"scale": 0.3}, "task_arithmetic", {"lambda": 0.3}),
    Method("model-stock", {}, "model_stock", weights=()),
    Method("slerp", {}, "slerp", {"t": 0.5}, **_ALONE),
    Method("nuslerp", {}, "nuslerp", {"nuslerp_flatten": True}, weights=(1.0, 1.0), experts=2),
    Method("multi-slerp", {}, "multislerp"),
    Method("karcher", {}, "karcher", weights=(), has_base=False),
    Method("passthrough", {"model": "x"}, "passthrough", has_base=False, **_ALONE),
    Method("nearswap", {}, "nearswap", {"t": 0.0001}, **_ALONE),
    Method("arcee-fusion", {}, "arcee_fusion", **_ALONE),
    # mergekit chooses the positive sign where trimmed entries cancel
    Method(
        "ties", {"scope": "tensor", "zero_sign": "positive"}, "ties", per_model=_TIES, edges=(0.2,)
    ),
    Method("ties", {"scope": "model"}),
    Method("dare", _L1, "dare_linear", per_model={"density": 0.5}, random=True),
    Method(
        "della",
        {"rescale": "l1", "density": 0.4, "epsilon": 0.2},
        "della",
        per_model={"density": 0.4, "epsilon": 0.2},
        random=True,
    ),
    Method(
        "breadcrumbs",
        {"scale": 1.0},
        "breadcrumbs",
        per_model={"density": 0.1, "gamma": 0.01},
        edges=(0.01, 0.11),
    ),
    Method("sce", {}, "sce", weights=()),
)


def methods_of(registered: Sequence[dict[str, Any]], wanted: Sequence[str]) -> Iterator[Method]:
    """Yield methods of the registered specs: those wanted by name or label, or all."""
    for spec in registered:
        name = spec["name"]
        plain = Method(name, stage=spec["stage"], experts=min(3, spec["max_experts"] or 3))
        for method in [method for method in KNOWN if method.name == name] or [plain]:
            if not wanted or {method.name, method.label} & set(wanted):
                yield method
