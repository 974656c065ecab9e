"""The tensors of an adapter: factors, their orientation, and heads tied to embeddings.

A base with tied embeddings stores one matrix. Some tools extract adapters that list it twice, once
for each use. The second entry is dropped if it equals the first. If an adapter has only the head,
its change becomes that of the embeddings.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from fusion_core import Cut
from fusion_core.errors import CheckpointError
from fusion_lora.reading.config import MERGE_WITH_PEFT

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from fusion_core import TensorInfo, WeightSource

#: Names of the modules that a tied matrix serves: input embeddings, and output heads.
_INPUT, _OUTPUT = (
    re.compile(rf"(?:^|\.)(?:{modules})\.weight$")
    for modules in (
        "embed_tokens|embed_in|wte|word_embeddings|embeddings|shared|tok_embeddings",
        "lm_head|embed_out|output_projection",
    )
)
_FACTOR = re.compile(
    r"(?P<module>.+)\.lora_(?P<part>A|B|embedding_A|embedding_B|magnitude_vector)(\.weight)?"
)
#: The prefix of every tensor in a file of PEFT.
PREFIX = "base_model.model."
_WHOLE = (".weight", ".bias")
#: The number of random vectors on which two products are compared.
_PROBES = 4


@dataclass(frozen=True, slots=True)
class ExpertPart:
    """The part of the factors of packed experts that makes one stored weight.

    PEFT joins the experts' factors: A has `rank` rows per expert, B's columns alternate between the
    experts.
    """

    #: the number of experts that the factors hold
    count: int
    #: the expert; None if the weight holds all of them
    index: int | None = None
    #: the rows of B; None for all
    rows: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True)
class Product:
    """The keys of one weight's factors in the adapter's file, and how to multiply them.

    If `transposed`, the weight's rows are A's columns (GPT-2's Conv1D, embeddings), not B's rows.
    """

    a: str
    b: str
    scale: float
    transposed: bool
    #: the key of DoRA's magnitudes; the weight is rescaled to them
    magnitude: str | None = None
    #: the dtype to which PEFT rounds the product before it adds the product to the weight
    rounded: torch.dtype | None = None
    part: ExpertPart | None = None


def is_input(name: str) -> bool:
    """Tell whether a tensor has the name of input embeddings that a head may be tied to."""
    return _INPUT.search(name) is not None


def is_output(name: str) -> bool:
    """Tell whether a tensor has the name of an output head that may be tied to embeddings."""
    return _OUTPUT.search(name) is not None


def sort_tensors(
    adapter: WeightSource, saved: Sequence[str]
) -> tuple[dict[str, dict[str, str]], dict[str, str]]:
    """Return the factors' keys by module and part, and the keys of whole weights by name.

    A tensor of a module in `saved` (`modules_to_save`) may have any name, such as `running_mean`.
    """
    factors: dict[str, dict[str, str]] = {}
    whole: dict[str, str] = {}
    unknown: list[str] = []
    for key in adapter.infos:
        name = key.removeprefix(PREFIX)
        if ".original_module." in name:  # the base's, saved with its replacement
            continue
        if match := _FACTOR.fullmatch(name):
            factors.setdefault(match["module"], {})[match["part"]] = key
        elif "lora_" in name or not (name.endswith(_WHOLE) or is_inside(name, saved)):
            unknown.append(key)
        else:
            whole[name.replace(".base_layer.", ".").replace(".modules_to_save.", ".")] = key
    if unknown:
        raise CheckpointError(
            f"{adapter.describe()}: {len(unknown)} tensors are not part of a plain LoRA, "
            f"for example {unknown[0]!r}",
            hint=MERGE_WITH_PEFT,
        )
    return factors, whole


def is_inside(name: str, modules: Iterable[str]) -> bool:
    """Tell whether a tensor belongs to one of several modules, given by the end of their names."""
    return any(f".{module}." in f".{name}" for module in modules)


def find_lone_heads(
    changed: Mapping[str, TensorInfo], base: Mapping[str, TensorInfo]
) -> dict[str, str]:
    """Return changed output heads that the base does not store, each with embeddings of its shape.

    `changed` holds the changed weights. Only a base with one such matrix has it for the head, and
    only an adapter that leaves it unchanged has a lone head.
    """
    lone_heads = {}
    for head in filter(is_output, changed.keys() - base.keys()):
        shape = changed[head].shape
        fitting = [name for name, info in base.items() if is_input(name) and info.shape == shape]
        if len(fitting) == 1 and fitting[0] not in changed:
            lone_heads[head] = fitting[0]
    return lone_heads


def find_tied_heads(
    adapter: WeightSource,
    products: Mapping[str, Product],
    whole: Mapping[str, str],
    base: Mapping[str, TensorInfo],
) -> dict[str, str]:
    """Return the output heads that the base does not store, each with its embeddings.

    `products` and `whole` locate the adapter's changes by weight. Raises `CheckpointError` if head
    and embeddings change differently: one matrix cannot.
    """
    changed = {*products, *whole}
    tied_heads = {
        head: embeddings
        for head in changed - base.keys()
        for embeddings in changed & base.keys()
        if is_output(head) and is_input(embeddings)
    }
    for head, embeddings in tied_heads.items():
        is_same_product = _are_products_equal(adapter, products.get(head), products.get(embeddings))
        is_same_whole = _are_values_equal(adapter, whole.get(head), whole.get(embeddings))
        if not (is_same_product and is_same_whole):
            raise CheckpointError(
                f"{adapter.describe()} changes {head!r} and {embeddings!r} in different ways, and "
                "its base has one tied matrix for both",
                hint="Extract the adapter again, or save the base with untied embeddings.",
            )
    return tied_heads


def _are_products_equal(adapter: WeightSource, one: Product | None, other: Product | None) -> bool:
    """Compare products by their effect on random vectors, up to the rounding of the factors."""
    if one is None or other is None:
        return one is other
    if one.magnitude or other.magnitude:  # DoRA rescales rows of the one and columns of the other
        return False
    factors = [_factors(adapter, product) for product in (one, other)]
    shapes = {(len(left), right.shape[1]) for left, right in factors}
    if len(shapes) > 1:
        return False
    generator = torch.Generator().manual_seed(0)
    width = factors[0][1].shape[1]
    vectors = torch.randn(width, _PROBES, dtype=torch.float64, generator=generator)
    results = [left @ (right @ vectors) for left, right in factors]
    dtypes = [adapter.infos[key].dtype for key in (one.a, one.b, other.a, other.b)]
    tolerance = 4 * max(torch.finfo(dtype).eps for dtype in dtypes)
    return bool((results[0] - results[1]).norm() <= tolerance * results[1].norm())


def _factors(adapter: WeightSource, product: Product) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the two factors of a weight's task vector in the order of their product."""
    a, b = (adapter.tensor(key).to(torch.float64).flatten(1) for key in (product.a, product.b))
    left, right = (a.T, b.T) if product.transposed else (b, a)
    return left * product.scale, right


def _are_values_equal(adapter: WeightSource, one: str | None, other: str | None) -> bool:
    if one is None or other is None:
        return one is other
    one_info, other_info = adapter.infos[one], adapter.infos[other]
    is_comparable = (one_info.shape, one_info.dtype) == (other_info.shape, other_info.dtype)
    return is_comparable and all(
        torch.equal(adapter.read(one, *span), adapter.read(other, *span))
        for span in Cut.ELEMENT.ranges(one_info)
    )
