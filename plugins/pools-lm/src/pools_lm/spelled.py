"""A model's tensors under the names that another has: as transformers renames, and tied ones.

Old checkpoints say `LayerNorm.gamma`, or `embed_out` of a head; a tied matrix is written once by
some savers and twice by others. Alignment has names alone, and cannot tell copies of what is put
together as it is read.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from fusion_core.weights import RenamedSource

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from fusion_core.weights import WeightSource
    from pools_lm.architecture import Architecture

    #: a model's own names of tensors, by those of the live model
    Names = Mapping[str, str]


def spelled_as(source: WeightSource, first: WeightSource, own: Architecture) -> WeightSource:
    """Return a model by the names that the first one has for the same tensors of a live model.

    What the live model does not have keeps its name. A matrix that is tied there is stored as often
    as the first one stores it; what is left out or added is proved to be a copy.
    """
    theirs, wanted = own.named(source).names, own.named(first).names
    added = {
        wanted[here]: theirs[twin]
        for here, twin in _twins(wanted.keys() - theirs.keys(), theirs, wanted, own)
        if _are_equal(first, wanted[here], wanted[twin])
    }
    copies = {
        here
        for here, twin in _twins(theirs.keys() - wanted.keys(), theirs, wanted, own)
        if _are_equal(source, theirs[here], theirs[twin])
    }
    names = {wanted.get(here, name): name for here, name in theirs.items() if here not in copies}
    return RenamedSource(source, {**names, **added})


def trimmed(source: WeightSource, own: Architecture) -> WeightSource:
    """Return a model without the buffers of old files that transformers ignores."""
    kept = set(own.named(source).names.values())
    if kept == source.infos.keys():
        return source
    return RenamedSource(source, {name: name for name in source.infos if name in kept})


def _twins(
    names: set[str], one: Names, other: Names, own: Architecture
) -> Iterator[tuple[str, str]]:
    """Yield names of the live model with another that both have and that is tied to it."""
    for name in sorted(names & own.tied.keys()):
        tied = (twin for twin in one if twin in other and own.tied.get(twin) == own.tied[name])
        yield from ((name, twin) for twin in tied)


def _are_equal(source: WeightSource, one: str, other: str) -> bool:
    return all(
        torch.equal(source.read(one, *span), source.read(other, *span))
        for span in source.ranges(one)
    )
