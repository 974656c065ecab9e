"""The tensors that `output.quantise` encodes: weights of linear layers, and packed experts.

transformers replaces every linear layer that `modules_to_not_convert` does not name, and packs the
experts of a layer into one module. So the experts of a layer are quantised together or not at all.
"""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from formats_quantised.block_fp8 import BlockFp8
from formats_quantised.source import DequantisedSource
from pools_checkpoints import are_experts_transposed, are_neighbours_transposed

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from formats_quantised.quantise_config import QuantiseConfig
    from fusion_core import TensorInfo, WeightSource

#: The tensors that transformers keeps out of fp8, by the names that its models give to them:
#: embeddings, norms, heads, and the routers of mixtures.
_OTHERS = (
    *("*embed*", "*wte.weight", "*wpe.weight", "shared.weight", "*.shared.weight"),
    *("*relative_attention_bias*", "*norm*"),
    *("*lm_head*", "*_head.weight", "head.weight", "*score.weight", "*classifier*", "*qa_outputs*"),
    *("*.gate.weight", "*router*", "*shared_expert_gate*"),
)
_WEIGHT = ".weight"
_EXPERTS = re.compile(
    r"(?P<module>.+\.experts)\.(?:\d+\..+|(?P<packed>gate_up_proj|up_proj|down_proj))"
)
_MATRIX, _BATCH = 2, 3
#: Heads that share the embeddings: linear layers of a live model that files do not store.
_HEADS = ("lm_head", "proj_out")
_BIAS = ".bias"
NOT_LINEAR = "they are embeddings, heads, norms or routers"
SKIPPED = "they match output.quantise.skip"
PLAIN_IN_BASE = "the quantised base stores them plain"
TRANSPOSED = "they are stored as inputs times outputs, or have a bias per expert"
PARTIAL = "their sides are not multiples of the block size"
TOGETHER = "other experts of their layer are not quantised"


@dataclass(frozen=True)
class LinearWeights:
    """The matrices of a model: those to quantise, and those that stay plain with the reason."""

    chosen: tuple[str, ...]
    plain: Mapping[str, str]
    #: modules that may share the embeddings
    tied: tuple[str, ...]

    @property
    def plain_modules(self) -> list[str]:
        """The value of `modules_to_not_convert`: its names also match ends and starts of others."""
        modules = [module_of(name) for name in self.chosen]
        heads = {
            head
            for head in self.tied
            if not any(name.endswith(head) or name.startswith(f"{head}.") for name in modules)
        }
        return sorted({*heads, *map(module_of, self.plain)})

    @property
    def packed(self) -> list[str]:
        """The packed experts to quantise."""
        return [name for name in self.chosen if not name.endswith(_WEIGHT)]

    @property
    def by_reason(self) -> dict[str, list[str]]:
        """The tensors that stay plain, by reason."""
        groups = defaultdict(list)
        for name, reason in self.plain.items():
            groups[reason].append(name)
        return dict(groups)


def choose_weights(
    infos: Mapping[str, TensorInfo], reference: WeightSource, config: QuantiseConfig
) -> LinearWeights:
    """Choose the tensors to quantise among those of a merge.

    `reference` is the base, or else the first expert: what it stores plain stays plain if it is
    quantised itself.
    """
    plain = {}
    matrices = [name for name, info in infos.items() if _is_matrix(info)]
    quantised = find_dequantised(reference)
    for name in matrices:
        if _matches(name, _OTHERS):
            plain[name] = NOT_LINEAR
        elif _matches(name, config.skip):
            plain[name] = SKIPPED
        elif quantised is not None and quantised.stores_plain(name):
            plain[name] = PLAIN_IN_BASE
        elif _is_transposed(name, infos, reference):
            plain[name] = TRANSPOSED
        elif not (
            config.partial_blocks
            or _has_whole_blocks(infos[name], config.block_size)
            or (quantised is not None and _has_blocks(quantised, name, config.block_size))
        ):
            plain[name] = PARTIAL
    incomplete = {module_of(name) for name in plain if _EXPERTS.fullmatch(name)}
    for name in matrices:
        if module_of(name) in incomplete:
            plain.setdefault(name, TOGETHER)
    chosen = tuple(name for name in matrices if name not in plain)
    return LinearWeights(chosen, plain, (*_HEADS, *_find_tied_heads(infos)))


def _find_tied_heads(infos: Mapping[str, TensorInfo]) -> Iterator[str]:
    """Yield modules that may be heads: their weight is stored elsewhere, and their bias is not.

    BERT and its relatives store the bias of `predictions.decoder` as that of `predictions`.
    """
    for name in infos:
        module = name.removesuffix(_BIAS)
        if name.endswith(_BIAS) and f"{module}{_WEIGHT}" not in infos:
            has_parts = any(other.startswith(f"{module}.") for other in infos.keys() - {name})
            yield f"{module}.decoder" if has_parts else module


def module_of(name: str) -> str:
    """Return the module of a weight in transformers: for an expert's, that of all experts."""
    match = _EXPERTS.fullmatch(name)
    return match["module"] if match else name.removesuffix(_WEIGHT)


def find_dequantised(source: WeightSource) -> DequantisedSource | None:
    """Return the quantised checkpoint that a model reads from, None for a plain model."""
    if isinstance(source, DequantisedSource):
        return source
    return next(filter(None, map(find_dequantised, source.sources)), None)


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _is_matrix(info: TensorInfo) -> bool:
    """Tell whether a tensor may be the weight of a linear layer, or of packed experts."""
    if not info.dtype.is_floating_point or 0 in info.shape:
        return False
    if len(info.shape) == _MATRIX:
        return info.name.endswith(_WEIGHT)
    match = _EXPERTS.fullmatch(info.name)
    return len(info.shape) == _BATCH and match is not None and match["packed"] is not None


def _is_transposed(name: str, infos: Mapping[str, TensorInfo], reference: WeightSource) -> bool:
    """Tell whether a matrix is stored as inputs times outputs, or has a bias per expert."""
    match = _EXPERTS.fullmatch(name)
    if match is None:
        return bool(are_neighbours_transposed(reference, name))
    gate, down = (infos.get(f"{match['module']}.{part}") for part in ("gate_up_proj", "down_proj"))
    return f"{name}_bias" in infos or are_experts_transposed(gate, down)


def _has_whole_blocks(info: TensorInfo, block_size: tuple[int, int]) -> bool:
    return all(side % size == 0 for side, size in zip(info.shape[-2:], block_size, strict=True))


def _has_blocks(quantised: DequantisedSource, name: str, block_size: tuple[int, int]) -> bool:
    """Tell whether a quantised model stores a tensor in fp8 with blocks of some size."""
    encoding = quantised.encodings.get(name)
    return isinstance(encoding, BlockFp8) and encoding.grid.block == block_size
