"""Layers of several models one after another."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from functools import partial, reduce
from typing import TYPE_CHECKING, Any

import torch

from fusion_core import Algorithm, Cut, Outline, RunContext
from fusion_core.errors import RecipeError
from fusion_core.weights import WeightSource, as_weights, layers_of, renumbered, with_layers
from fusion_linear.config import StackConfig

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from concurrent.futures import Executor

    from fusion_core import ModelPool, TensorInfo

#: What stands before the first layer, told by its name: embeddings of any spelling but that of a
#: head (GPT-NeoX), and norms that say so; mergekit lists them by architecture, to the same effect.
_BEFORE_THE_LAYERS = re.compile(
    r"emb(?!ed_out)|(?:^|[._])(?:w[tp]e|pe|pos|positional|tokens?|patch|conv\d?|stem|rotary)(?:[._]|$)"
    r"|(?:^|[._])pre_?la?y|_pre(?:[._]|$)"
)


@dataclass(frozen=True)
class _Layout:
    """Which tensor of which model goes where, by the name that it gets."""

    before: Mapping[str, tuple[str, str]]
    within: Mapping[str, tuple[str, str]]
    after: Mapping[str, tuple[str, str]]
    #: how many layers the models have, and which of them the result's are
    count: int
    layers: tuple[int, ...]

    @property
    def places(self) -> dict[str, tuple[str, str]]:
        """All of it: model and name there."""
        return {**self.before, **self.within, **self.after}


class Stack(Algorithm[StackConfig]):
    """Copy layers of the pool's models one after another: a deeper model, or one with fewer layers.

    As mergekit's `passthrough` with slices: embeddings and whatever else stands before the layers
    are those of the first slice's model, the final norm, the head and all other tensors those of
    the last one's. Different on purpose: a head that is a copy of the embedding, written once or
    twice, stays one, so that tied weights are tied in the result. Source: none, a practice of the
    community ("frankenmerge", "depth up-scaling" in arXiv:2312.15166). Shapes: any, of models with
    one list of layers. Data: none. Cost: a copy.
    """

    config_class = StackConfig

    def outline(self, pool: ModelPool[Any]) -> Outline:
        """Name the tensors, as many layers as are stacked."""
        layout, infos = self._layout(pool), pool.reference.infos
        return Outline(
            {name: replace(infos[there], name=name) for name, (_, there) in layout.places.items()},
            partial(with_layers, count=layout.count, layers=layout.layers),
        )

    def run(self, pool: ModelPool[Any], context: RunContext) -> WeightSource:
        """Return the lazy copy."""
        layout = self._layout(pool)
        used = {model: pool.by_name[model] for model, _ in layout.places.values()}
        sources = {model: as_weights(each, pool.base) for model, each in used.items()}
        places = {**layout.places, **_tied(layout, sources, context.executor)}
        return Stacked(sources, places)

    def _layout(self, pool: ModelPool[Any]) -> _Layout:
        names = list(pool.reference.infos)
        layers = _only_stack(names)
        self._check(list(pool.by_name), len(layers))
        slices = self.config.slices
        chosen = [(each.model, number) for each in slices for number in range(*each.layers)]
        outside = set(names).difference(*layers.values())
        ends = {name: _BEFORE_THE_LAYERS.search(name) for name in names if name in outside}
        first, last = slices[0].model, slices[-1].model
        return _Layout(
            {name: (first, name) for name, is_before in ends.items() if is_before},
            {
                renumbered(name, place): (model, name)
                for place, (model, number) in enumerate(chosen)
                for name in layers[number]
            },
            {name: (last, name) for name, is_before in ends.items() if not is_before},
            len(layers),
            tuple(number for _, number in chosen),
        )

    def _check(self, models: Sequence[str], count: int) -> None:
        for number, each in enumerate(self.config.slices):
            if each.model not in models:
                raise RecipeError(
                    f"algorithm.slices.{number}.model: there is no model {each.model!r}",
                    hint=f"The models are: {', '.join(models)}.",
                )
            if each.layers[1] > count:
                raise RecipeError(
                    f"algorithm.slices.{number}.layers: {list(each.layers)} is out of range: "
                    f"{each.model} has {count} layers",
                    hint=f"All of them are [0, {count}]: the second number is left out.",
                )


def _only_stack(names: Sequence[str]) -> Mapping[int, Sequence[str]]:
    """Return the tensors of every layer; raises `RecipeError` unless there is one list of them."""
    stacks = layers_of(names)
    if len(stacks) != 1:
        found = ", ".join(repr(stack) for stack in stacks)
        raise RecipeError(
            "algorithm: stack takes models with one list of layers, and these have "
            f"{found or 'none'}",
            hint="Layers are told by numbers in names: model.layers.0.mlp.weight.",
        )
    ((stack, layers),) = stacks.items()
    if sorted(layers) != list(range(len(layers))):
        raise RecipeError(
            "algorithm: stack takes layers that are numbered from 0 on, and those of "
            f"{stack!r} are {', '.join(map(str, sorted(layers)))}"
        )
    return layers


def _tied(
    layout: _Layout, sources: Mapping[str, WeightSource], executor: Executor
) -> dict[str, tuple[str, str]]:
    """Return the places of heads that are copies of an embedding in their models: the first's."""
    found: dict[str, tuple[str, str]] = {}
    for head, (last, _) in layout.after.items():
        for embedding, (first, _) in layout.before.items():
            if first != last and all(
                _are_equal(sources[model], head, embedding, executor) for model in (first, last)
            ):
                found[head] = first, head
    return found


def _are_equal(source: WeightSource, one: str, other: str, executor: Executor) -> bool:
    """Tell whether two tensors are the same matrix; read up to the first difference."""
    ours, theirs = source.infos[one], source.infos[other]
    if (ours.shape, ours.dtype) != (theirs.shape, theirs.dtype) or len(ours.shape) != 2:  # noqa: PLR2004
        return False
    source.prepare(executor)
    return all(
        torch.equal(source.read(one, *span), source.read(other, *span))
        for span in source.ranges(one)
    )


class Stacked(WeightSource):
    """Tensors of several sources, each under a name of its own."""

    def __init__(
        self, sources: Mapping[str, WeightSource], places: Mapping[str, tuple[str, str]]
    ) -> None:
        """`places` has which of the sources a tensor is in, and its name there."""
        self._sources, self._places = dict(sources), dict(places)
        self.infos: Mapping[str, TensorInfo] = {
            name: replace(sources[source].infos[there], name=name)
            for name, (source, there) in self._places.items()
        }
        self.cut = reduce(Cut.coarser, (each.cut for each in self.sources))

    def read(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Read it where it is."""
        source, there = self._places[name]
        return self._sources[source].read(there, start, stop)

    def ranges(self, name: str) -> Iterator[tuple[int, int]]:
        """Yield those of the source that has it."""
        source, there = self._places[name]
        return self._sources[source].ranges(there)

    @property
    def sources(self) -> tuple[WeightSource, ...]:
        """The sources."""
        return tuple(self._sources.values())

    def prepare(self, executor: Executor, name: str | None = None) -> None:
        """Prepare all sources, or the one that has a tensor."""
        if name is None:
            super().prepare(executor)
        elif name in self._places:
            source, there = self._places[name]
            self._sources[source].prepare(executor, there)

    def describe(self) -> str:
        """Name the sources."""
        return f"layers of {', '.join(source.describe() for source in self.sources)}"
