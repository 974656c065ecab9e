"""Present a model's tensors like another model's, where transformers treats both as equal.

Old checkpoints use names such as `LayerNorm.gamma` or `embed_out`. Some savers store a tied matrix
once, others twice. A mixture's experts are stored one by one or packed into one tensor. The core's
alignment sees names only, so it cannot resolve these differences.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fusion_core.weights import RenamedSource, are_equal

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from fusion_core.weights import WeightSource
    from pools_lm.architecture import Architecture

    #: stored names by live names
    Names = Mapping[str, str]


def rename_like(
    source: WeightSource, first: WeightSource, architecture: Architecture
) -> WeightSource:
    """Return a model with the first model's names for the same tensors of the live model.

    Tensors are joined and divided as in the first model, such as a mixture's experts. A tensor
    that the live model lacks keeps its name. A tied matrix is stored as often as the first
    model stores it. A copy is only added or dropped after a comparison of its values.
    """
    targets = architecture.rename_to_live(first).names
    live = architecture.rename_to_live(source)
    packed = architecture.files.fitted(live).arrange(live, targets)
    names = live.names
    if packed is not live:
        source, names = packed, {name: name for name in packed.infos}
    added = {
        targets[name]: names[twin]
        for name, twin in _tied_pairs(targets.keys() - names.keys(), names, targets, architecture)
        if are_equal(first, targets[name], targets[twin])
    }
    copies = {
        name
        for name, twin in _tied_pairs(names.keys() - targets.keys(), names, targets, architecture)
        if are_equal(source, names[name], names[twin])
    }
    renamed = {
        targets.get(name, stored): stored for name, stored in names.items() if name not in copies
    }
    return RenamedSource(source, {**renamed, **added})


def drop_ignored(source: WeightSource, architecture: Architecture) -> WeightSource:
    """Return a model without the buffers of old files that transformers ignores."""
    names = set(architecture.rename_to_live(source).names.values())
    if names == source.infos.keys():
        return source
    return RenamedSource(source, {name: name for name in source.infos if name in names})


def _tied_pairs(
    candidates: set[str], names: Names, others: Names, architecture: Architecture
) -> Iterator[tuple[str, str]]:
    """Yield candidates with each tensor that is tied to it and that both models store."""
    tied = architecture.tied
    for name in sorted(candidates & tied.keys()):
        for twin in names:
            if twin in others and tied.get(twin) == tied[name]:
                yield name, twin
