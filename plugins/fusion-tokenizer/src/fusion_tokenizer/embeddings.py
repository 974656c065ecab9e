"""The embeddings of a model: which of its tensors have one row per token."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from fusion_core.errors import CheckpointError
from fusion_core.weights import QUANTISER_KEYS, assemble, find_config_value, refuse_packed

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from fusion_core import WeightSource

_INPUT = re.compile(r"(?:.*\.)?(?:embed_tokens|wte|word_embeddings|embed_in|embeddings)\.weight")
_OUTPUT = re.compile(r"(?:.*\.)?(?:lm_head|embed_out)\.(?P<kind>weight|bias)")
#: Names of other tensors with one row per token, if they have as many rows.
_SUSPICIOUS = re.compile(r"embed|head|vocab|wte|shared", re.IGNORECASE)
_POSITIONS = re.compile(r"pos|type", re.IGNORECASE)
_PER_LAYER = re.compile(r"(?:.*\.)?embed_tokens_per_layer\.weight")
_DEQUANTISE = (
    "Name the full-precision model that it was made from, or dequantise it first: with "
    "transformers, model.dequantize() and save_pretrained."
)


@dataclass(frozen=True)
class Embeddings:
    """The tensors of a model that have one row per token."""

    source: WeightSource
    #: the input embeddings
    input: str
    #: the output embeddings, if the model stores them
    output: str | None
    #: the bias of the output, if there is one
    bias: str | None

    @property
    def names(self) -> tuple[str, ...]:
        """The names of all tensors."""
        return tuple(name for name in (self.input, self.output, self.bias) if name is not None)

    @property
    def rows(self) -> int:
        """The number of rows, padding included."""
        return self.source.infos[self.input].shape[0]

    @property
    def is_tied(self) -> bool:
        """Whether input and output are one matrix, or two with the same values."""
        if self.output is None:
            return True
        info, other = (self.source.infos[name] for name in (self.input, self.output))
        return (info.shape, info.dtype) == (other.shape, other.dtype) and all(
            torch.equal(*(self.source.read(name, *span) for name in (self.input, self.output)))
            for span in self.source.ranges(self.input)
        )

    def matrix(self, name: str) -> Tensor:
        """Return a tensor as a matrix with one row per token, in its own dtype.

        Raises `CheckpointError` if a value is not finite.
        """
        matrix = assemble(self.source, name).reshape(self.rows, -1)
        if not matrix.isfinite().all():
            raise CheckpointError(
                f"{self.source.describe()}: {name} has values that are not finite"
            )
        return matrix


def find_embeddings(source: WeightSource, config: Mapping[str, Any], label: str) -> Embeddings:
    """Return the embeddings of a model; `label` names it in errors.

    Raises `CheckpointError` for a quantised model, and for one whose tensors with one row per token
    are not exactly one matrix at the input and at most one at the output.
    """
    refuse_quantised(source, config, label)
    names = [*source.infos]
    per_layer = next(filter(_PER_LAYER.fullmatch, names), None)
    if per_layer is not None:
        raise CheckpointError(
            f"{label}: unsupported embeddings per layer: {per_layer}",
            hint="Their rows belong to the tokens of the model's own tokenizer. Choose a model "
            "with one embedding per token.",
        )
    inputs = [name for name in names if _INPUT.fullmatch(name)]
    outputs = {match[0]: match["kind"] for match in map(_OUTPUT.fullmatch, names) if match}
    weights = [name for name, kind in outputs.items() if kind == "weight"]
    biases = [name for name, kind in outputs.items() if kind == "bias"]
    if len(inputs) != 1 or len(weights) > 1 or len(biases) > 1:
        listed = ", ".join([*inputs, *outputs]) or "none"
        raise CheckpointError(
            f"{label}: expected one input embedding and at most one output embedding, found "
            f"{listed}",
            hint="Decoders such as Llama, Mistral, Qwen and GPT-2 are supported.",
        )
    embeddings = Embeddings(source, inputs[0], next(iter(weights), None), next(iter(biases), None))
    _check_rows(embeddings, label)
    return embeddings


def refuse_quantised(source: WeightSource, config: Mapping[str, Any], label: str) -> None:
    """Raise `CheckpointError` for a quantised model, decoded by a format or not."""
    origin = source.origin
    decoded_from = "" if origin is None else origin.decoded_from
    if decoded_from or find_config_value(config, QUANTISER_KEYS) is not None:
        detail = f": {decoded_from}" if decoded_from else ""
        raise CheckpointError(f"{label} is quantised{detail}", hint=_DEQUANTISE)
    refuse_packed(source)


def _check_rows(embeddings: Embeddings, label: str) -> None:
    infos = embeddings.source.infos
    for name in embeddings.names:
        info, dimensions = infos[name], 1 if name == embeddings.bias else 2
        if len(info.shape) != dimensions or not info.dtype.is_floating_point:
            raise CheckpointError(
                f"{label}: {name}: expected {dimensions} dimensions of floating-point numbers, got "
                f"{info.dtype} of shape {info.shape}"
            )
        if info.shape[0] != embeddings.rows:
            raise CheckpointError(
                f"{label}: {name} has {info.shape[0]} rows, {embeddings.input} {embeddings.rows}",
                hint="Save the model again with transformers.",
            )
    for name, info in infos.items():
        module = name.rpartition(".")[0].rpartition(".")[2]
        is_suspicious = _SUSPICIOUS.search(module) and not _POSITIONS.search(module)
        has_rows = info.shape[:1] == (embeddings.rows,)
        if name not in embeddings.names and is_suspicious and has_rows:
            raise CheckpointError(
                f"{label}: {name} has one row per token, and this command does not know its "
                "purpose",
                hint="Choose a model whose only such tensors are its input and output embeddings.",
            )
