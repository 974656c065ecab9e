"""PEFT's files: `adapter_config.json` for the factors of an adapter."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from fusion_core.errors import RecipeError
from fusion_lora.modules import Form, choose_targets, most_common
from fusion_lora.reading.factors import PREFIX

if TYPE_CHECKING:
    from collections.abc import Collection

    from fusion_core import WeightSource
    from fusion_lora.modules import Module

#: PEFT refuses adapters that target nothing, unless `target_modules` is this text.
_TARGETS_NOTHING = "dummy-target-modules"


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
    #: modules whose bias is stored
    biases: set[str] = field(default_factory=set)

    def add(self, module: Module, rank: int) -> None:
        """Add a module with factors."""
        if module.form is Form.PARAMETER:
            self.parameters[f"{module.name}.weight"] = rank
            return
        self.ranks[module.name] = rank
        self.forms[module.name] = module.form

    def name_whole(self, tensor: str) -> str:
        """Add a tensor that is stored whole, and return its name in PEFT's file.

        PEFT loads a bias alone (`bias: all`). For any other tensor it replaces the module
        (`modules_to_save`). Raises `RecipeError` for a tensor that no module contains.
        """
        module, _, part = tensor.rpartition(".")
        if not module:
            raise RecipeError(
                f"{tensor} cannot be stored whole: it belongs to no module",
                hint="PEFT stores modules (modules_to_save), not tensors.",
            )
        if part == "bias":
            self.biases.add(module)
            return f"{PREFIX}{module}{'.base_layer' if module in self.ranks else ''}.bias"
        self.whole.add(module)
        return f"{PREFIX}{tensor}"

    def complete_whole(self, tensors: Collection[str]) -> list[str]:
        """Add the modules that PEFT replaces too, and return the tensors of all of them.

        PEFT replaces every module whose name ends with a name in `modules_to_save`: `norm` also
        matches `layers.0.input_norm`. It needs all tensors of a module, including those of the
        modules inside. `tensors` are the base's. Raises `RecipeError` if one of the modules
        contains factors.
        """
        modules = {module for tensor in tensors for module in _containing_modules(tensor)}
        matching = {module for module in modules if module.endswith(tuple(self.whole))}
        self.whole = {
            module for module in matching if matching.isdisjoint(_containing_modules(module))
        }
        self._check_whole()
        return [tensor for tensor in tensors if self._is_inside_whole(tensor)]

    def config(self, base: WeightSource, base_name: str | None) -> bytes:
        """Return `adapter_config.json` of an adapter on a base.

        Each module's alpha is its rank, so that PEFT multiplies its product by 1.
        """
        every = {module for tensor in base.infos for module in _containing_modules(tensor)}
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
            "target_modules": choose_targets(self.ranks, every) if ranks else _TARGETS_NOTHING,
            "target_parameters": sorted(self.parameters) or None,
            "modules_to_save": sorted(self.whole) or None,
            "bias": "none" if all(map(self._is_inside_whole, self.biases)) else "all",
            "fan_in_fan_out": Form.TRANSPOSED in self.forms.values(),
            "lora_dropout": 0.0,
            "use_rslora": False,
            "init_lora_weights": True,
            "inference_mode": True,
        }
        return json.dumps(content, indent=2).encode() + b"\n"

    def _is_inside_whole(self, name: str) -> bool:
        return f"{name}.".startswith(tuple(f"{module}." for module in self.whole))

    def _check_whole(self) -> None:
        with_parameters = {name.rpartition(".")[0] for name in self.parameters}
        factored = [*self.ranks, *with_parameters]
        for module in sorted(self.whole | self.biases & with_parameters):
            inner = [name for name in factored if f"{name}.".startswith(f"{module}.")]
            if inner:
                raise RecipeError(
                    f"{module} cannot be stored whole, because the adapter has factors of "
                    f"{inner[0]}",
                    hint="PEFT stores modules, not tensors. Leave out the pattern that matches "
                    "it; the report then counts its tensors as errors.",
                )


def _containing_modules(name: str) -> list[str]:
    """Return the modules that contain a tensor or a module, from the outermost."""
    parts = name.split(".")
    return [".".join(parts[:length]) for length in range(1, len(parts))]
