"""Which way round a model keeps its matrices: (outputs, inputs), or as GPT-2's Conv1D does."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fusion_core.weights.source import WeightSource


def is_turned_beside(base: WeightSource, name: str) -> bool | None:
    """Tell whether the weights nearest to one are (inputs, outputs), None where nothing tells.

    A square weight itself does not, nor can what an adapter says of all of its modules together:
    PEFT saves what was right for the last of them. A bias is as long as there are outputs.
    """
    within = name.removesuffix(".weight")
    while within:
        within = within.rpartition(".")[0]
        found = set(_told_by_biases(base, f"{within}." if within else ""))
        if found:
            return found.pop() if len(found) == 1 else None
    return None


def _told_by_biases(base: WeightSource, prefix: str) -> Iterator[bool]:
    for name, info in base.infos.items():
        bias = base.infos.get(f"{name.removesuffix('.weight')}.bias")
        if bias is None or not name.startswith(prefix) or not name.endswith(".weight"):
            continue
        if len(info.shape) == 2 and info.shape[0] != info.shape[1]:  # noqa: PLR2004 - a matrix
            if bias.shape == info.shape[1:]:
                yield True
            elif bias.shape == info.shape[:1]:
                yield False
