"""Where an adapter has the factors of a weight, and heads that it lists beside their embeddings.

A base with tied embeddings stores one matrix. Some tools extract adapters that list it twice, once
for each use; the second is dropped where it says the same.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from fusion_core.errors import CheckpointError
from fusion_core.weights.source import Cut

if TYPE_CHECKING:
    from collections.abc import Mapping

    from fusion_core.weights.source import TensorInfo, WeightSource

_OUTPUT = re.compile(r"(?:^|\.)(?:lm_head|embed_out|output_projection)\.weight$")
_INPUT = re.compile(r"(?:^|\.)(?:embed_tokens|wte|word_embeddings|shared|tok_embeddings)\.weight$")
#: How many random vectors two products are compared on.
_PROBES = 4


@dataclass(frozen=True, slots=True)
class Product:
    """Where the factors of one weight are in the adapter's file.

    `transposed`: the weight's rows are A's columns (GPT-2's Conv1D, embeddings), not B's rows.
    """

    a: str
    b: str
    scale: float
    transposed: bool


def twins_of_heads(
    adapter: WeightSource,
    products: Mapping[str, Product],
    whole: Mapping[str, str],
    base: Mapping[str, TensorInfo],
) -> dict[str, str]:
    """Return the output heads that the base does not store, each with its embeddings.

    `products` and `whole` say where the adapter has what it changes. Raises `CheckpointError`
    where head and embeddings change in different ways: one matrix cannot.
    """
    changed = {*products, *whole}
    twins = {
        head: embeddings
        for head in changed - base.keys()
        for embeddings in changed & base.keys()
        if _OUTPUT.search(head) and _INPUT.search(embeddings)
    }
    for head, embeddings in twins.items():
        is_same_product = _have_same_product(adapter, products.get(head), products.get(embeddings))
        is_same_whole = _have_same_values(adapter, whole.get(head), whole.get(embeddings))
        if not (is_same_product and is_same_whole):
            raise CheckpointError(
                f"{adapter.describe()} changes {head!r} and {embeddings!r} in different ways, and "
                "its base has one tied matrix for both",
                hint="Extract the adapter again, or save the base with untied embeddings.",
            )
    return twins


def _have_same_product(adapter: WeightSource, one: Product | None, other: Product | None) -> bool:
    """Compare products by what they make of random vectors, up to the rounding of factors."""
    if one is None or other is None:
        return one is other
    ours, theirs = (_matrices(adapter, product) for product in (one, other))
    if (len(ours[0]), ours[1].shape[1]) != (len(theirs[0]), theirs[1].shape[1]):
        return False
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randn(ours[1].shape[1], _PROBES, dtype=torch.float64, generator=generator)
    results = [left @ (right @ vectors) for left, right in (ours, theirs)]
    dtypes = [adapter.infos[key].dtype for key in (one.a, one.b, other.a, other.b)]
    tolerance = 4 * max(torch.finfo(dtype).eps for dtype in dtypes)
    return bool((results[0] - results[1]).norm() <= tolerance * results[1].norm())


def _matrices(adapter: WeightSource, product: Product) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the two factors of a weight's task vector in the order of their product."""
    a, b = (adapter.tensor(key).to(torch.float64).flatten(1) for key in (product.a, product.b))
    left, right = (a.T, b.T) if product.transposed else (b, a)
    return left * product.scale, right


def _have_same_values(adapter: WeightSource, one: str | None, other: str | None) -> bool:
    if one is None or other is None:
        return one is other
    ours, theirs = adapter.infos[one], adapter.infos[other]
    return (ours.shape, ours.dtype) == (theirs.shape, theirs.dtype) and all(
        torch.equal(adapter.read(one, *span), adapter.read(other, *span))
        for span in Cut.ELEMENT.ranges(ours)
    )
