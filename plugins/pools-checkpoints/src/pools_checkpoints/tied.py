"""Heads that are stored as copies of the embeddings to which the configuration ties them."""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING, Any

from fusion_core.weights import RenamedSource, are_equal, is_before_layers, is_matrix, layers_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from fusion_core.weights import WeightSource


def drop_tied_heads(
    models: Mapping[str, WeightSource], config: Mapping[str, Any]
) -> Mapping[str, WeightSource]:
    """Return the models without heads that copy the embeddings in each of them, bit by bit.

    Merged apart, the copies could end up different, such as by random drops. The first model and
    its configuration decide. An adapter that changes either copy keeps both.
    """
    first = next(iter(models.values()))
    heads = set() if config.get("tie_word_embeddings") is not True else _find_heads(first)
    for source in models.values():
        heads = {pair for pair in heads if _is_tied(source, *pair)}
    if not heads:
        return models
    dropped = {head for head, _ in heads}
    return {
        name: RenamedSource(source, {key: key for key in source.infos if key not in dropped})
        for name, source in models.items()
    }


def _find_heads(source: WeightSource) -> set[tuple[str, str]]:
    """Return the matrices outside of layers that may be a head and its embeddings."""
    layers = [names for stack in layers_of(source.infos).values() for names in stack.values()]
    in_layers = set(chain.from_iterable(layers))
    matrices = [
        info
        for name, info in source.infos.items()
        if name not in in_layers and is_matrix(info.shape)
    ]
    return {
        (head.name, embedding.name)
        for head in matrices
        for embedding in matrices
        if is_before_layers(embedding.name)
        and not is_before_layers(head.name)
        and (head.shape, head.dtype) == (embedding.shape, embedding.dtype)
    }


def _is_tied(source: WeightSource, head: str, embedding: str) -> bool:
    """Tell whether a model has one matrix under both names, or lacks the head."""
    if head not in source.infos:
        return not (source.is_delta and embedding in source.infos)
    is_whole = not source.is_delta and embedding in source.infos
    return is_whole and are_equal(source, head, embedding)
