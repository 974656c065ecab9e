"""Stands in for FusionBench: just what docs/how-to/port-from-fusionbench.md uses of it."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

from fusion_core.plugins.recipe_files import load_recipe
from fusion_core.recipe.text import dump_yaml

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import nn


class BaseYAMLSerializable:
    _config_mapping: ClassVar[Mapping[str, str]] = {}

    def __init__(self, **_: object) -> None:
        pass

    def to_yaml(self, path: str) -> None:
        values = {key: getattr(self, name) for name, key in self._config_mapping.items()}
        Path(path).write_text(dump_yaml(values), encoding="utf-8")

    @classmethod
    def from_yaml(cls, path: str) -> Self:
        return cls(**load_recipe(path))


class BaseAlgorithm(BaseYAMLSerializable):
    pass


class BaseModelPool(BaseYAMLSerializable):
    def __init__(self, models: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self._models = dict(models)

    @property
    def has_pretrained(self) -> bool:
        return "_pretrained_" in self._models

    @property
    def model_names(self) -> list[str]:
        return [name for name in self._models if not name.startswith("_")]

    def load_model(self, name: str) -> nn.Module:
        return copy.deepcopy(self._models[name])


class BaseTaskPool(BaseYAMLSerializable):
    pass


def run_model_fusion(
    method_config: Mapping[str, Any],
    modelpool_config: Mapping[str, Any],
    taskpool_config: Mapping[str, Any] | None = None,
    seed: int | None = None,
) -> dict[str, Any]:
    assert taskpool_config is None
    assert seed is not None
    method, modelpool = map(_instantiated, (method_config, modelpool_config))
    return {"merged_model": method.run(modelpool)}


def _instantiated(config: Mapping[str, Any]) -> Any:
    rest = {key: value for key, value in config.items() if key != "_target_"}
    return config["_target_"](**rest)
