"""How many layers a configuration says a model has, and what it says of each, for other layers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fusion_core.errors import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

#: What the number of layers is called.
_COUNTS = ("num_hidden_layers", "num_layers", "n_layers", "n_layer")


def with_layers(config: Mapping[str, Any], count: int, layers: Sequence[int]) -> dict[str, Any]:
    """Return the configuration of a model with other layers than the one that it describes.

    `count` is how many layers that one has, `layers` says for every layer of the new one which of
    them it is. Lists with an entry a layer (`layer_types` and others whose name says `layer`) are
    changed with the number beside them. Raises `CheckpointError` for a configuration that does not
    say that there are `count` layers.
    """
    if not _is_counted(config, count):
        raise CheckpointError(
            f"config.json does not say that the model has {count} layers: that would stand under "
            f"{', '.join(_COUNTS)}",
            hint="Save the model anew with the program that made it, or merge its weights alone: "
            "name the .safetensors file.",
        )
    return _changed(config, count, layers)


def _is_counted(config: Mapping[str, Any], count: int) -> bool:
    inner = (each for each in config.values() if isinstance(each, dict))
    return any(config.get(key) == count for key in _COUNTS) or any(
        _is_counted(each, count) for each in inner
    )


def _changed(config: Mapping[str, Any], count: int, layers: Sequence[int]) -> dict[str, Any]:
    here = any(config.get(key) == count for key in _COUNTS)

    def changed(key: str, value: Any) -> Any:  # noqa: ANN401 - JSON
        if isinstance(value, dict):
            return _changed(value, count, layers)
        if here and key in _COUNTS:
            return len(layers)
        if here and "layer" in key and isinstance(value, list) and len(value) == count:
            return [value[layer] for layer in layers]
        return value

    return {key: changed(key, value) for key, value in config.items()}
