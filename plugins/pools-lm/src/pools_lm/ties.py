"""Tied matrices, which savers write once or twice: each model gets those that the first one has.

Alignment does the same for models that are read as they are; of rows that are put together as they
are read it cannot tell what is a copy of what.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from fusion_core.weights import RenamedSource

if TYPE_CHECKING:
    from collections.abc import Mapping

    from fusion_core.weights import WeightSource

    #: a model's own names of tensors, by those of the live model
    Names = Mapping[str, str]


def with_same_copies(
    source: WeightSource, names: Names, first: WeightSource, wanted: Names, tied: Mapping[str, str]
) -> WeightSource:
    """Return a model that stores a tied matrix as often as the first one, `wanted`, does.

    `tied` maps tensors that are one in the live model to one name. A tensor that is left out or
    added is proved to be a copy.
    """
    added = {
        wanted[here]: names[twin]
        for here in wanted.keys() - names.keys()
        for twin in names.keys() & wanted.keys()
        if tied[here] == tied[twin] and _are_equal(first, wanted[here], wanted[twin])
    }
    dropped = {
        names[here]
        for here in names.keys() - wanted.keys()
        for twin in names.keys() & wanted.keys()
        if tied[here] == tied[twin] and _are_equal(source, names[here], names[twin])
    }
    if not added and not dropped:
        return source
    kept = {name: name for name in source.infos if name not in dropped}
    return RenamedSource(source, {**kept, **added})


def _are_equal(source: WeightSource, one: str, other: str) -> bool:
    return all(
        torch.equal(source.read(one, *span), source.read(other, *span))
        for span in source.cut.ranges(source.infos[one])
    )
