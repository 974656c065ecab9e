"""PEFT's files: `adapter_config.json` for the factors of an adapter."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from fusion_core.errors import RecipeError
from fusion_lora.modules import Form, choose_targets, most_common
from fusion_lora.reading.factors import PREFIX

if TYPE_CHECKING:
    from fusion_core import WeightSource
    from fusion_lora.modules import Module


@dataclass
class Adapter:
    """The parts of an adapter, as they are found."""

    #: modules with factors, and the rank of each
    ranks: dict[str, int] = field(default_factory=dict)
    forms: dict[str, Form] = field(default_factory=dict)
    #: parameters of experts and routers with factors, and the rank of each
    parameters: dict[str, int] = field(default_factory=dict)
    #: modules that are stored whole
    whole: set[str] = field(default_factory=set)
    #: whether biases of modules with factors are stored
    has_biases: bool = False

    def add(self, module: Module, rank: int) -> None:
        """Add a module with factors."""
        if module.form is Form.PARAMETER:
            self.parameters[f"{module.name}.weight"] = rank
            return
        self.ranks[module.name] = rank
        self.forms[module.name] = module.form

    def name_whole(self, tensor: str) -> str:
        """Add a tensor that is stored whole, and return its name in PEFT's file.

        Raises `RecipeError` for a tensor that no module contains.
        """
        module, _, part = tensor.rpartition(".")
        if not module:
            raise RecipeError(
                f"{tensor} cannot be stored whole: it belongs to no module",
                hint="PEFT stores modules (modules_to_save), not tensors.",
            )
        if part == "bias" and module in self.ranks:
            self.has_biases = True
            return f"{PREFIX}{module}.base_layer.bias"
        self.whole.add(module)
        return f"{PREFIX}{tensor}"

    def config(self, base: WeightSource, base_name: str | None) -> bytes:
        """Return `adapter_config.json` of an adapter on a base.

        Each module's alpha is its rank, so that PEFT multiplies its product by 1. Raises
        `RecipeError` for a module to store whole that contains factors.
        """
        self._check_whole()
        every = [name.removesuffix(".weight") for name in base.infos if name.endswith(".weight")]
        ranks = {**self.ranks, **self.parameters}
        rank = most_common(ranks.values()) if ranks else 1
        pattern = {name: other for name, other in ranks.items() if other != rank}
        content: dict[str, Any] = {
            "peft_type": "LORA",
            "task_type": None,
            "base_model_name_or_path": base_name,
            "r": rank,
            "lora_alpha": rank,
            "rank_pattern": pattern,
            "alpha_pattern": pattern,
            "target_modules": choose_targets(self.ranks, every),
            "target_parameters": sorted(self.parameters) or None,
            "modules_to_save": sorted(self.whole) or None,
            "bias": "all" if self.has_biases else "none",
            "fan_in_fan_out": Form.TRANSPOSED in self.forms.values(),
            "lora_dropout": 0.0,
            "use_rslora": False,
            "init_lora_weights": True,
            "inference_mode": True,
        }
        return json.dumps(content, indent=2).encode() + b"\n"

    def _check_whole(self) -> None:
        factored = [*self.ranks, *(name.rpartition(".")[0] for name in self.parameters)]
        for module in sorted(self.whole):
            inner = [name for name in factored if f"{name}.".startswith(f"{module}.")]
            if inner:
                raise RecipeError(
                    f"{module} cannot be stored whole, because the adapter has factors of "
                    f"{inner[0]}",
                    hint="PEFT stores modules, not tensors. Leave out the pattern that matches "
                    "it; the report then counts its tensors as errors.",
                )
