"""Configurations of models with other layers than the original."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fusion_core.errors import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

#: The keys under which configurations store the number of layers.
_COUNTS = ("num_hidden_layers", "num_layers", "n_layers", "n_layer")


def replace_layers(config: Mapping[str, Any], count: int, layers: Sequence[int]) -> dict[str, Any]:
    """Return the configuration of a model with other layers.

    The given configuration describes `count` layers. `layers` holds, for each new layer, the number
    of the old layer that it copies. Lists with one entry per layer next to the count change too, if
    their key contains `layer` (such as `layer_types`). Raises `CheckpointError` if the
    configuration does not give `count` as its number of layers.
    """
    if not _has_count(config, count):
        raise CheckpointError(
            f"config.json does not say that the model has {count} layers: expected "
            f"{', '.join(_COUNTS[:-1])} or {_COUNTS[-1]}",
            hint="Save the model again with the program that made it, or merge its weights alone: "
            "name the .safetensors file.",
        )
    return _replace_layers(config, count, layers)


def _has_count(config: Mapping[str, Any], count: int) -> bool:
    return any(config.get(key) == count for key in _COUNTS) or any(
        _has_count(value, count) for value in config.values() if isinstance(value, dict)
    )


def _replace_layers(config: Mapping[str, Any], count: int, layers: Sequence[int]) -> dict[str, Any]:
    holds_count = any(config.get(key) == count for key in _COUNTS)
    changed: dict[str, Any] = {}
    for key, value in config.items():
        is_per_layer = "layer" in key and isinstance(value, list) and len(value) == count
        if isinstance(value, dict):
            changed[key] = _replace_layers(value, count, layers)
        elif holds_count and key in _COUNTS:
            changed[key] = len(layers)
        elif holds_count and is_per_layer:
            changed[key] = [value[layer] for layer in layers]
        else:
            changed[key] = value
    return changed
