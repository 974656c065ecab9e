"""Stack layers of several models."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from fusion_core import Algorithm, Outline, RunContext
from fusion_core.errors import RecipeError
from fusion_core.weights import (
    WeightSource,
    as_weights,
    is_before_layers,
    layers_of,
    parse_safe_config,
    renumber_layer,
    select_names,
)
from fusion_linear.config import StackConfig
from fusion_linear.layer_config import doubts, replace_layers
from fusion_linear.stacked_source import StackedSource

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from concurrent.futures import Executor

    from fusion_core import ModelPool
    from fusion_linear.config import Slice

    #: Where a tensor comes from: a model, and the tensor's name in it.
    Origin = tuple[str, str]


@dataclass(frozen=True)
class _Layout:
    """Where the result's tensors come from, by their names in the result."""

    before: Mapping[str, Origin]
    within: Mapping[str, Origin]
    after: Mapping[str, Origin]
    #: the number of layers of each model, and the layers of the result as numbers there
    count: int
    layers: tuple[int, ...]
    #: the factors of the tensors that have one other than 1
    factors: Mapping[str, float] = field(default_factory=dict)
    #: warnings of patterns that match no tensor
    unmatched: Sequence[str] = ()

    @property
    def origins(self) -> dict[str, Origin]:
        """The origins of all tensors."""
        return {**self.before, **self.within, **self.after}


class Stack(Algorithm[StackConfig]):
    """Copy layers of several models one after another, to a deeper or a shallower model.

    Formula: layer n of the result is the n-th layer that `slices` lists, times the slice's `scale`.
    Embeddings and all other tensors before the layers belong to the first slice, the final norm,
    the head and all other tensors to the last one.
    Options: `slices` (a list of `{model, layers: [from, to], scale, unmatched}`, `to` excluded;
    required). `scale` (factor, or factors by pattern on the tensor names of the slice's model; 1)
    leaves integers alone. `unmatched` (`error`; `warn` allows patterns that match no tensor).
    Source: mergekit's `passthrough` with slices (no paper; "frankenmerge", or "depth up-scaling" in
    arXiv:2312.15166). Different on purpose: a head that is a copy of the embedding stays a copy,
    scaled alike, so that tied weights are tied in the result.
    Shapes: any, of models with one list of layers. Data: none. Cost: a copy.
    """

    config_class = StackConfig

    def outline(self, pool: ModelPool[Any]) -> Outline:
        """Return the result's tensors and the changes to its configuration."""
        layout, infos = self._layout(pool), pool.reference.infos
        return Outline(
            {name: replace(infos[there], name=name) for name, (_, there) in layout.origins.items()},
            partial(replace_layers, count=layout.count, layers=layout.layers),
            is_rearranged=any(name != there for name, (_, there) in layout.origins.items()),
        )

    def run(self, pool: ModelPool[Any], context: RunContext) -> WeightSource:
        """Return the lazy copy."""
        layout = self._layout(pool)
        models = {model: pool.by_name[model] for model, _ in layout.origins.values()}
        sources = {name: as_weights(model, pool.base) for name, model in models.items()}
        for warning in (*self._doubts(pool, layout), *layout.unmatched):
            context.warn(warning)
        origins, factors = layout.origins, dict(layout.factors)
        for head, embedding in _tied_heads(layout, sources, context.executor).items():
            origins[head] = origins[embedding][0], head
            factors[head] = factors.get(embedding, 1.0)
        return StackedSource(sources, origins, factors)

    def _doubts(self, pool: ModelPool[Any], layout: _Layout) -> Sequence[str]:
        config = parse_safe_config(pool.assets(), "the base")
        return () if config is None else doubts(config, layout.count, layout.layers)

    def _layout(self, pool: ModelPool[Any]) -> _Layout:
        names = list(pool.reference.infos)
        layers = _read_layers(names)
        slices = self.config.slices
        for index, part in enumerate(slices):
            if part.model not in pool.by_name:
                raise RecipeError(
                    f"algorithm.slices.{index}.model: unknown model {part.model!r}",
                    hint=f"The models are: {', '.join(pool.by_name)}.",
                )
            if part.layers[1] > len(layers):
                raise RecipeError(
                    f"algorithm.slices.{index}.layers: {list(part.layers)} is out of range: "
                    f"{part.model} has {len(layers)} layers",
                    hint=f"[0, {len(layers)}] selects all of them: the second number is excluded.",
                )
        chosen = [(part.model, number) for part in slices for number in range(*part.layers)]
        outside = set(names).difference(*layers.values())
        is_before = {name: is_before_layers(name) for name in names if name in outside}
        first, last = slices[0].model, slices[-1].model
        layout = _Layout(
            {name: (first, name) for name, before in is_before.items() if before},
            {
                renumber_layer(name, position): (model, name)
                for position, (model, number) in enumerate(chosen)
                for name in layers[number]
            },
            {name: (last, name) for name, before in is_before.items() if not before},
            len(layers),
            tuple(number for _, number in chosen),
        )
        return _add_factors(layout, slices, layers)


def _read_layers(names: Sequence[str]) -> Mapping[int, Sequence[str]]:
    """Return the tensors of every layer; raises `RecipeError` unless there is one list of them."""
    lists = layers_of(names)
    if len(lists) != 1:
        prefixes = ", ".join(repr(prefix) for prefix in lists)
        raise RecipeError(
            "algorithm: stack needs models with one list of layers, and these have "
            f"{prefixes or 'none'}",
            hint="Layers are recognised by numbers in tensor names: model.layers.0.mlp.weight.",
        )
    ((prefix, layers),) = lists.items()
    if sorted(layers) != list(range(len(layers))):
        raise RecipeError(
            "algorithm: stack needs layers that are numbered from 0 without gaps, and the layers "
            f"of {prefix!r} are {', '.join(map(str, sorted(layers)))}"
        )
    return layers


def _add_factors(
    layout: _Layout, slices: Sequence[Slice], layers: Mapping[int, Sequence[str]]
) -> _Layout:
    """Add the factors other than 1; raises `RecipeError` for an unmatched pattern."""
    factors: dict[str, float] = {}
    warnings: list[str] = []
    position = 0
    for index, part in enumerate(slices):
        tensors: list[tuple[str, str]] = []  # names in the slice's model, and in the result
        if index == 0:
            tensors += [(name, name) for name in layout.before]
        for number in range(*part.layers):
            tensors += [(name, renumber_layer(name, position)) for name in layers[number]]
            position += 1
        if index == len(slices) - 1:
            tensors += [(name, name) for name in layout.after]
        chosen = _choose_factors(part, index, dict.fromkeys(name for name, _ in tensors), warnings)
        factors |= {there: chosen[name] for name, there in tensors if chosen.get(name, 1.0) != 1}
    return replace(layout, factors=factors, unmatched=warnings)


def _choose_factors(
    part: Slice, index: int, names: Mapping[str, None], warnings: list[str]
) -> dict[str, float]:
    """Return the factor of the first pattern that matches, by a slice's tensors."""
    scale = part.scale if isinstance(part.scale, dict) else {"*": part.scale}
    option = f"algorithm.slices.{index}.scale"
    factors: dict[str, float] = {}
    for pattern, factor in scale.items():
        try:
            matched = select_names([pattern], names, option)
        except RecipeError as error:
            if part.unmatched == "error":
                raise
            warnings.append(error.message)
            continue
        factors = {**dict.fromkeys(matched, factor), **factors}
    return factors


def _tied_heads(
    layout: _Layout, sources: Mapping[str, WeightSource], executor: Executor
) -> dict[str, str]:
    """Return the heads that copy an embedding in both end models, but would not in the result."""
    heads: dict[str, str] = {}
    for head, (last, _) in layout.after.items():
        for embedding, (first, _) in layout.before.items():
            factors = (layout.factors.get(name, 1.0) for name in (head, embedding))
            if (first != last or len({*factors}) > 1) and all(
                _are_equal(sources[model], head, embedding, executor) for model in {first, last}
            ):
                heads[head] = embedding
    return heads


def _are_equal(source: WeightSource, head: str, embedding: str, executor: Executor) -> bool:
    """Return whether two tensors are the same matrix, reading up to the first difference."""
    infos = source.infos[head], source.infos[embedding]
    if (infos[0].shape, infos[0].dtype) != (infos[1].shape, infos[1].dtype):
        return False
    if len(infos[0].shape) != 2:  # noqa: PLR2004 - rows and columns
        return False
    source.prepare(executor)
    return all(
        torch.equal(source.read(head, *span), source.read(embedding, *span))
        for span in source.ranges(head)
    )
