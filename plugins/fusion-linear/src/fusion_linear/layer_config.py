"""Configurations of models with other layers than the original."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from fusion_core.errors import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

#: The keys under which configurations store the number of layers.
_COUNTS = ("num_hidden_layers", "num_layers", "n_layers", "n_layer")
#: Keys that hold numbers of layers.
_NUMBERS = frozenset(
    {
        *("mlp_only_layers", "full_attn_idxs", "attn_layer_indices", "cross_attention_layers"),
        *("moe_layers", "rope_scaling_layers", "local_layer_ids", "ple_layer_ids"),
    }
)
#: Keys with one entry per layer whose names do not contain `layer`.
_ENTRIES = frozenset(
    {
        *("activation_sparsity_pattern", "intermediate_size", "attention_window", "indexer_types"),
        *("attn_type_list", "hybrid_override_pattern", "block_configs"),
    }
)
#: Keys of mappings from numbers of layers, as text, to what is special about these layers.
_MAPPINGS = frozenset({"per_layer_config", "pruned_heads"})
#: Keys with a list that repeats until every layer has an entry.
_CYCLES = frozenset({"block_types"})
#: Keys with the number of the layer whose keys and values each layer uses.
_SOURCES = frozenset({"kv_source_layers"})
#: Keys with a number of layers at the start of the model, and the lists that decide instead.
_LEADING = {
    "max_window_layers": "layer_types",
    "first_k_dense_replace": "mlp_layer_types",
    "num_dense_layers": "mlp_layer_types",
}
#: Keys with a number of layers at the end.
_TRAILING = frozenset({"num_kv_shared_layers"})
#: Keys with the distance between layers of one kind, and the lists that decide instead.
_PERIODS = {
    "sliding_window_pattern": "layer_types",
    "full_attention_interval": "layer_types",
    "global_attn_every_n_layers": "layer_types",
    "attn_layer_period": "layers_block_type",
    "expert_layer_period": "layers_block_type",
    "decoder_sparse_step": "mlp_layer_types",
    "interleave_moe_layer_step": "moe_layers",
    "moe_layer_freq": "mlp_layer_types",
    "no_rope_layer_interval": "no_rope_layers",
}
#: Keys that select the layers with a mixture of experts, and their defaults in transformers: the
#: first layer, the last one (-1 for the model's last), and the distance between two.
_MIXTURES = {"moe_layer_start_index": 1, "moe_layer_end_index": -1, "moe_layer_interval": 1}
#: Families in which a layer computes with its number, and the value that depends on it.
_NUMBERED = {"minimax": "the decay of lightning attention", "diffllama": "the initial lambda"}
#: Families in which transformers makes the last layer one with full attention.
_FULL_LAST = frozenset({"gemma4_text", "gemma4_unified_text"})
#: Families in which every n-th layer attends to everything and the others to a window, unless
#: `layer_types` says otherwise: n, which `sliding_window_pattern` may change.
_SLIDING = {"gemma2": 2, "gemma3_text": 6, "cohere2": 4}


def replace_layers(config: Mapping[str, Any], count: int, layers: Sequence[int]) -> dict[str, Any]:
    """Return the configuration of a model with other layers.

    The given configuration describes `count` layers. `layers` holds, for each new layer, the number
    of the old layer that it copies. Next to the count, these change with it: lists with one entry
    per layer (every list of this length, such as `layer_types`), lists of layer numbers, and
    numbers of layers at the start or the end. Raises `CheckpointError` if the configuration does
    not give `count` as its number of layers.
    """
    return _replace(config, count, layers).config


def doubts(config: Mapping[str, Any], count: int, layers: Sequence[int]) -> Sequence[str]:
    """Return what `replace_layers` cannot know or express, one line per key."""
    return _replace(config, count, layers).doubts


def _replace(config: Mapping[str, Any], count: int, layers: Sequence[int]) -> _Replacement:
    if not _has_count(config, count):
        raise CheckpointError(
            f"config.json does not say that the model has {count} layers: expected "
            f"{', '.join(_COUNTS[:-1])} or {_COUNTS[-1]}",
            hint="Save the model again with the program that made it, or merge its weights alone: "
            "name the .safetensors file.",
        )
    replacement = _Replacement(count, layers)
    replacement.config = replacement.replace(config)
    return replacement


def _has_count(config: Mapping[str, Any], count: int) -> bool:
    return any(config.get(key) == count for key in _COUNTS) or any(
        _has_count(value, count) for value in config.values() if isinstance(value, dict)
    )


@dataclass
class _Replacement:
    """The new configuration, and the doubts about it."""

    count: int
    layers: Sequence[int]
    config: dict[str, Any] = field(default_factory=dict)
    doubts: list[str] = field(default_factory=list)

    def replace(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """Return a configuration, or a part of it, for the new layers."""
        holds_count = any(config.get(key) == self.count for key in _COUNTS)
        changed = {
            key: self._change(key, value, config)
            if holds_count and (key in _MAPPINGS or not isinstance(value, dict))
            else self.replace(value)
            if isinstance(value, dict)
            else value
            for key, value in config.items()
        }
        if not holds_count:
            return changed
        if not config.get("layer_types"):
            changed |= self._spell_out_window(config)
        if not config.get("mlp_layer_types"):
            changed |= self._change_mixtures(config)
        self._check_family(changed)
        return changed

    def _change(self, key: str, value: Any, config: Mapping[str, Any]) -> Any:  # noqa: ANN401 - JSON
        if key in _COUNTS:
            return len(self.layers)
        if isinstance(value, dict):
            return {
                str(new): value[str(old)]
                for new, old in enumerate(self.layers)
                if str(old) in value
            }
        if isinstance(value, list):
            return self._change_list(key, value)
        if isinstance(value, str) and self._has_entries(key, value):
            return "".join(value[old] for old in self.layers)
        return self._change_number(key, value, config) if type(value) is int else value

    def _change_list(self, key: str, value: list[Any]) -> list[Any]:
        if key in _NUMBERS:
            return [new for new, old in enumerate(self.layers) if old in value]
        if key in _CYCLES and value:
            return self._spell_out_cycle(value)
        if not self._has_entries(key, value):
            return value
        if key in _SOURCES:
            return self._renumber_sources(key, value)
        return [value[old] for old in self.layers]

    def _change_number(self, key: str, value: int, config: Mapping[str, Any]) -> int:
        if key in _LEADING:
            return self._count_leading(key, value, config)
        if key in _TRAILING:
            return self._count_trailing(key, value)
        if key in _PERIODS:
            self._check_period(key, value, config)
        return value

    def _has_entries(self, key: str, value: Sequence[Any]) -> bool:
        """Return whether a list, or a text of letters, has one entry per layer."""
        is_known = key in _ENTRIES or ("layer" in key and isinstance(value, list))
        if len(value) != self.count:
            if is_known and isinstance(value, list) and value and not key.startswith("mtp_"):
                self._doubt(key, f"has {len(value)} entries for {self.count} layers; left as it is")
            return False
        if is_known:
            return True
        if isinstance(value, str) or key == "architectures" or "token" in key:
            return False
        self._doubt(key, "has as many entries as there are layers; taken for one per layer")
        return True

    def _renumber_sources(self, key: str, value: Sequence[int]) -> list[int]:
        """Return for each new layer the last one up to it that copies the layer it refers to."""
        renumbered = []
        for new, old in enumerate(self.layers):
            matches = [n for n in range(new + 1) if self.layers[n] == value[old]]
            if not matches:
                self._doubt(
                    key, f"layer {old} uses layer {value[old]}, which is left out before it"
                )
            renumbered.append(matches[-1] if matches else new)
        return renumbered

    def _count_leading(self, key: str, value: int, config: Mapping[str, Any]) -> int:
        """Return how many new layers at the start are among the `value` first ones."""
        is_leading = [old < value for old in self.layers]
        count = _count_first(is_leading)
        # Without windows the number has no effect, and with them the kinds are spelled out.
        is_known = key == "max_window_layers" and type(config.get("use_sliding_window")) is bool
        if any(is_leading[count:]) and not is_known and not config.get(_LEADING[key]):
            self._doubt(key, "counts layers at the start, and some of them now come later")
        return count

    def _count_trailing(self, key: str, value: int) -> int:
        """Return how many new layers at the end are among the `value` last ones."""
        is_trailing = [old >= self.count - value for old in reversed(self.layers)]
        count = _count_first(is_trailing)
        if any(is_trailing[count:]):
            self._doubt(key, "counts layers at the end, and some of them now come earlier")
        return count

    def _check_period(self, key: str, period: int, config: Mapping[str, Any]) -> None:
        is_spelled_out = config.get(_PERIODS[key]) or str(config.get("model_type")) in _SLIDING
        if not is_spelled_out and not self._keeps_period(period):
            self._doubt(key, f"one layer in {period} differs, and layers have moved out of step")

    def _keeps_period(self, period: int) -> bool:
        return period < 1 or all((old - new) % period == 0 for new, old in enumerate(self.layers))

    def _spell_out_window(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """Return `layer_types` where the other fields would give the new layers other windows."""
        first = config.get("max_window_layers")
        if config.get("use_sliding_window") is True and type(first) is int:
            kinds = [
                "sliding_attention" if old >= first else "full_attention" for old in self.layers
            ]
            return {"layer_types": kinds} if kinds != sorted(kinds) else {}
        period = _SLIDING.get(str(config.get("model_type")))
        if period is None:
            return {}
        period = config.get("sliding_window_pattern", period)
        if type(period) is not int or self._keeps_period(period):
            return {}
        kinds = ["full_attention", *["sliding_attention"] * (period - 1)]
        return {"layer_types": [kinds[(old + 1) % period] for old in self.layers]}

    def _spell_out_cycle(self, cycle: list[Any]) -> list[Any]:
        """Return one entry per new layer, or the same cycle if it still gives them."""
        entries = [cycle[old % len(cycle)] for old in self.layers]
        is_same = all(cycle[new % len(cycle)] == entry for new, entry in enumerate(entries))
        return cycle if is_same else entries

    def _change_mixtures(self, config: Mapping[str, Any]) -> dict[str, int]:
        """Return the fields with other values that select the layers with a mixture of experts."""
        before = {key: config.get(key, default) for key, default in _MIXTURES.items()}
        if _MIXTURES.keys().isdisjoint(config) or any(type(n) is not int for n in before.values()):
            return {}
        is_mixture = _select_mixtures(self.count, *before.values())
        flags = [is_mixture[old] for old in self.layers]
        mixtures = [new for new, flag in enumerate(flags) if flag]
        ends = (mixtures[0], mixtures[-1]) if mixtures else (len(flags), -1)
        intervals = (before["moe_layer_interval"], *range(1, len(flags) + 1))
        for values in (tuple(before.values()), *((*ends, interval) for interval in intervals)):
            if _select_mixtures(len(flags), *values) == flags:
                after = dict(zip(_MIXTURES, values, strict=True))
                return {key: value for key, value in after.items() if value != before[key]}
        self._doubt("moe_layer_interval", "no interval gives the layers with a mixture of experts")
        return {}

    def _check_family(self, changed: Mapping[str, Any]) -> None:
        """Doubt families in which more than a layer's weights depends on its position."""
        family = str(changed.get("model_type"))
        is_moved = any(new != old for new, old in enumerate(self.layers))
        is_changed = is_moved or len(self.layers) != self.count
        if changed.get("scale_attn_by_inverse_layer_idx") is True and is_moved:
            self._doubt(
                "scale_attn_by_inverse_layer_idx",
                "scales attention by the numbers of layers, and some layers have new ones",
            )
        if changed.get("hidden_size_per_layer_input") and is_changed:
            self._doubt(
                "hidden_size_per_layer_input",
                "tensors outside the layers hold one input per old layer, in the old order",
            )
        if family in _NUMBERED and is_changed:
            self._doubt(
                "model_type",
                f"{family} computes {_NUMBERED[family]} from the numbers of layers or their "
                "count, which change",
            )
        if family in _FULL_LAST and (changed.get("layer_types") or [""])[-1] == "sliding_attention":
            self._doubt("layer_types", f"the last layer of {family} attends to all, and now slides")

    def _doubt(self, key: str, reason: str) -> None:
        self.doubts.append(f"config.json: {key}: {reason}")


def _select_mixtures(count: int, first: int, last: int, interval: int) -> list[bool]:
    """Tell for each of `count` layers whether it is a mixture of experts, as transformers does."""
    last = count - 1 if last == -1 else last
    return [(n + 1) % max(interval, 1) == 0 and first <= n <= last for n in range(count)]


def _count_first(flags: Sequence[bool]) -> int:
    """Return how many flags at the start are set."""
    return next((number for number, is_set in enumerate(flags) if not is_set), len(flags))
