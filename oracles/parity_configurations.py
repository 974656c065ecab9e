"""Random configurations of mergekit from a fixed seed, as their users write them."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import cycle
from random import Random
from typing import Any

#: architectures, with parts of their tensors' names for filters
FILTERS = {
    "llama": ("self_attn", "mlp", "layernorm", "embed_tokens", "lm_head", "q_proj", "down_proj"),
    "qwen2": ("self_attn", "mlp", "layernorm", "embed_tokens", "k_proj", "up_proj"),
    "gpt2": ("attn", "mlp", "ln_", "wte", "c_proj"),
    "gemma": ("self_attn", "mlp", "layernorm", "embed_tokens", "v_proj"),
    "mixtral": ("self_attn", "experts", "layernorm", "embed_tokens", "lm_head", "o_proj"),
}
LAYERS = 4
#: bf16 models have task vectors with equal magnitudes, of which mergekit keeps an arbitrary choice
IN_BFLOAT16 = {"llama", "gemma"}
PLAIN = (
    *("linear", "slerp", "nuslerp", "multislerp", "karcher", "task_arithmetic", "model_stock"),
    *("nearswap", "passthrough", "dare_linear", "dare_ties", "della", "della_linear"),
)
WITH_THRESHOLDS = (
    *("ties", "breadcrumbs", "breadcrumbs_ties", "sce", "arcee_fusion", "ram", "ramplus_tl"),
)
ONE_EXPERT = {"slerp", "nearswap", "arcee_fusion", "passthrough"}
#: methods of task vectors, with the parameters that a model may have
SPARSE = {
    "task_arithmetic": (),
    "ties": ("density",),
    "breadcrumbs": ("density", "gamma"),
    "breadcrumbs_ties": ("density", "gamma"),
    "dare_linear": (),
    "dare_ties": (),
    "della": (),
    "della_linear": (),
}
RANGES = {
    "weight": (0.1, 1.0),
    "density": (0.3, 0.9),
    "gamma": (0.02, 0.15),
    "scale": (0.2, 1.5),
    "t": (0.0, 1.0),
    "lambda": (0.4, 1.3),
    "select_topk": (0.3, 1.0),
    "epsilon": (0.05, 0.3),
    "r": (0.1, 0.5),
    "alpha": (0.2, 2.0),
}


@dataclass(frozen=True)
class Case:
    """One configuration, and the architecture of its models."""

    name: str
    architecture: str
    configuration: dict[str, Any]


def generate(count: int, seed: int = 29) -> list[Case]:
    """Return `count` configurations, which take architectures and methods in turn."""
    random = Random(seed)
    architectures = [*FILTERS]
    methods = {True: cycle(PLAIN), False: cycle((*WITH_THRESHOLDS, *PLAIN))}
    cases = []
    for number in range(count):
        architecture = architectures[number % len(architectures)]
        method = next(methods[architecture in IN_BFLOAT16])
        configuration = _Drawing(random, architecture, method).configuration()
        cases.append(Case(f"{number:02}-{architecture}-{method}", architecture, configuration))
    return cases


@dataclass
class _Drawing:
    random: Random
    architecture: str
    method: str

    def configuration(self) -> dict[str, Any]:
        draw = self.random
        experts = 1 if self.method in ONE_EXPERT else 2 if self.method == "nuslerp" else None
        models = draw.sample("abc", experts or draw.choice((2, 3)))
        has_base = self.method not in {"linear", "karcher", "passthrough", "nuslerp"}
        configuration: dict[str, Any] = {"merge_method": self.method}
        if has_base or (self.method == "nuslerp" and draw.random() < 0.5):
            configuration["base_model"] = "base"
            if draw.random() < 0.6 or self.method == "slerp":
                models.insert(draw.choice((0, len(models))), "base")
        configuration |= self._make_inputs(models, needs_base="base_model" in configuration)
        shared = self._shared_parameters()
        if shared:
            configuration["parameters"] = shared
        dtypes = ("float32", "float32", "bfloat16") if self._is_exact else ("float32",)
        configuration["dtype"] = draw.choice(dtypes)
        if draw.random() < 0.4:
            configuration["out_dtype"] = draw.choice(("bfloat16", "float16", "float32"))
        return configuration

    @property
    def _is_exact(self) -> bool:
        """Whether models in bf16 lose nothing by a cast to bf16."""
        return self.architecture in IN_BFLOAT16

    def _make_inputs(self, models: list[str], *, needs_base: bool) -> dict[str, Any]:
        draw = self.random
        shape = draw.choice(("models", "models", "whole", "slices"))
        if shape == "models":
            return {"models": [{"model": name, **self._own(name)} for name in models]}
        spans = [(0, LAYERS)] if shape == "whole" else [(0, 2), (self._second_start(), LAYERS)]
        slices = []
        for start, stop in spans:
            sources = [
                {"model": name, "layer_range": [start, stop], **self._own(name)} for name in models
            ]
            if needs_base and "base" not in models:
                sources.append({"model": "base", "layer_range": [start, stop]})
            part: dict[str, Any] = {"sources": sources}
            if self.method == "slerp" or (draw.random() < 0.3 and self.method in SPARSE):
                name = "t" if self.method == "slerp" else "lambda"
                part["parameters"] = {name: self._setting(name)}
            slices.append(part)
        return {"slices": slices}

    def _second_start(self) -> int:
        """Return where the second slice starts; mergekit fails on Qwen2 of another depth."""
        return 2 if self.architecture == "qwen2" else self.random.choice((1, 2))

    def _own(self, model: str) -> dict[str, Any]:
        """Return the parameters of one model."""
        names: tuple[str, ...] = ()
        if self.method in {*SPARSE, "linear", "nuslerp", "multislerp"}:
            names = ("weight", *SPARSE.get(self.method, ()))
        elif self.method == "passthrough":
            names = ("scale",)
        if model == "base" and self.method != "linear":
            return {}
        return {"parameters": {name: self._setting(name) for name in names}} if names else {}

    def _shared_parameters(self) -> dict[str, Any]:
        draw, method = self.random, self.method
        parameters: dict[str, Any] = {}
        if method in SPARSE:
            if draw.random() < 0.7:
                parameters["lambda"] = self._setting("lambda")
            for name in ("normalize", "rescale", "int8_mask"):
                if draw.random() < 0.4:
                    parameters[name] = draw.random() < 0.5
            if draw.random() < 0.3:
                parameters["normalize"] = [
                    {"filter": self._filter(), "value": True},
                    {"value": False},
                ]
                parameters.pop("rescale", None)
        elif method == "linear":
            if draw.random() < 0.5:
                parameters["normalize"] = draw.random() < 0.5
        elif method == "nuslerp":
            parameters["nuslerp_flatten"] = draw.random() < 0.5
            parameters["nuslerp_row_wise"] = draw.random() < 0.5
        elif method == "karcher":
            parameters |= {"max_iter": draw.choice((3, 10)), "tol": draw.choice((1e-4, "1e-6"))}
        elif method in {"slerp", "nearswap"}:
            parameters["t"] = self._setting("t")
        elif method == "sce":
            parameters["select_topk"] = self._setting("select_topk")
        elif method in {"ram", "ramplus_tl"}:
            for name in ("epsilon", "r", "alpha")[: 3 if method == "ramplus_tl" else 1]:
                parameters[name] = self._setting(name)
        return parameters

    def _setting(self, name: str) -> Any:
        kind = self.random.choice(("scalar", "gradient", "filters"))
        if kind == "filters":
            count = self.random.choice((1, 2))
            filters = self.random.sample(FILTERS[self.architecture], count)
            rules = [{"filter": text, "value": self._value(name)} for text in filters]
            last = {"value": self._value(name)}
            if self.random.random() < 0.3:
                last["filter"] = "*"
            return [*rules, last]
        return self._value(name, gradient=kind == "gradient")

    def _value(self, name: str, *, gradient: bool | None = None) -> Any:
        if gradient is None:
            gradient = self.random.random() < 0.5
        low, high = RANGES[name]
        low, high = (0.002, 0.1) if name == "t" and self.method == "nearswap" else (low, high)
        values = [
            round(self.random.uniform(low, high), 3)
            for _ in range(self.random.choice((2, 3, 5)) if gradient else 1)
        ]
        if name == "weight" and self.method == "task_arithmetic" and self.random.random() < 0.3:
            values[0] = -values[0]
        return values if gradient else values[0]

    def _filter(self) -> str:
        return self.random.choice(FILTERS[self.architecture])
