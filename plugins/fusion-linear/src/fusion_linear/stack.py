"""Stack layers of several models."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial, reduce
from typing import TYPE_CHECKING, Any

import torch

from fusion_core import Algorithm, Cut, Outline, RunContext
from fusion_core.errors import RecipeError
from fusion_core.weights import (
    WeightSource,
    as_weights,
    is_before_layers,
    layers_of,
    renumber_layer,
)
from fusion_linear.config import StackConfig
from fusion_linear.layer_config import replace_layers

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from concurrent.futures import Executor

    from fusion_core import ModelPool, TensorInfo

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

    @property
    def origins(self) -> dict[str, Origin]:
        """The origins of all tensors."""
        return {**self.before, **self.within, **self.after}


class Stack(Algorithm[StackConfig]):
    """Copy layers of several models one after another, to a deeper or a shallower model.

    Formula: layer n of the result is the n-th layer that `slices` lists. Embeddings and all other
    tensors before the layers come from the first slice's model, the final norm, the head and all
    other tensors from the last slice's.
    Options: `slices` (a list of `{model, layers: [from, to]}`, `to` excluded; required).
    Source: mergekit's `passthrough` with slices (no paper; "frankenmerge", or "depth up-scaling" in
    arXiv:2312.15166). Different on purpose: a head that is a copy of the embedding stays a copy, so
    that tied weights are tied in the result.
    Shapes: any, of models with one list of layers. Data: none. Cost: a copy.
    """

    config_class = StackConfig

    def outline(self, pool: ModelPool[Any]) -> Outline:
        """Return the result's tensors and the changes to its configuration."""
        layout, infos = self._layout(pool), pool.reference.infos
        return Outline(
            {name: replace(infos[there], name=name) for name, (_, there) in layout.origins.items()},
            partial(replace_layers, count=layout.count, layers=layout.layers),
        )

    def run(self, pool: ModelPool[Any], context: RunContext) -> WeightSource:
        """Return the lazy copy."""
        layout = self._layout(pool)
        models = {model: pool.by_name[model] for model, _ in layout.origins.values()}
        sources = {name: as_weights(model, pool.base) for name, model in models.items()}
        origins = {**layout.origins, **_tied_heads(layout, sources, context.executor)}
        return StackedSource(sources, origins)

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
        return _Layout(
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


def _tied_heads(
    layout: _Layout, sources: Mapping[str, WeightSource], executor: Executor
) -> dict[str, Origin]:
    """Return the heads that copy an embedding in both end models: they follow the first model."""
    origins: dict[str, Origin] = {}
    for head, (last, _) in layout.after.items():
        for embedding, (first, _) in layout.before.items():
            if first != last and all(
                _are_equal(sources[model], head, embedding, executor) for model in (first, last)
            ):
                origins[head] = first, head
    return origins


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


class StackedSource(WeightSource):
    """Tensors of several sources under new names."""

    def __init__(
        self, sources: Mapping[str, WeightSource], origins: Mapping[str, tuple[str, str]]
    ) -> None:
        """Map each tensor to the name of its source and its name there (`origins`)."""
        self._sources, self._origins = dict(sources), dict(origins)
        self.infos: Mapping[str, TensorInfo] = {
            name: replace(sources[source].infos[there], name=name)
            for name, (source, there) in self._origins.items()
        }
        self.cut = reduce(Cut.coarser, (source.cut for source in self.sources))

    def read(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Read a range from the tensor's source."""
        source, there = self._origins[name]
        return self._sources[source].read(there, start, stop)

    def ranges(self, name: str) -> Iterator[tuple[int, int]]:
        """Yield the ranges of the tensor's source."""
        source, there = self._origins[name]
        return self._sources[source].ranges(there)

    @property
    def sources(self) -> tuple[WeightSource, ...]:
        """The sources, in the order of their first tensors."""
        return tuple(self._sources.values())

    def prepare(self, executor: Executor, name: str | None = None) -> None:
        """Prepare all sources, or the source of one tensor."""
        if name is None:
            super().prepare(executor)
        elif name in self._origins:
            source, there = self._origins[name]
            self._sources[source].prepare(executor, there)

    def describe(self) -> str:
        """Name the sources."""
        return f"layers of {', '.join(source.describe() for source in self.sources)}"
