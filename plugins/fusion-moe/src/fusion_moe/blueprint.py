"""The tensors of a mixture, and where each of them comes from."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

from fusion_core import TensorInfo
from fusion_core.errors import AlignmentError
from fusion_core.weights import Columns, Layout, Matrices, Rows, Stacked
from fusion_moe.targets import PARTS

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from fusion_moe.targets import Target

_IN_LAYER = re.compile(r"(model\.layers\.(\d+)\.)(.+)")
_OUTSIDE = ("model.embed_tokens.weight", "model.norm.weight", "lm_head.weight")
#: A buffer of old files, which models compute themselves.
_COMPUTED = "self_attn.rotary_emb.inv_freq"
EMBEDDINGS = _OUTSIDE[0]


@dataclass(frozen=True)
class Origin:
    """Where a tensor of the mixture comes from: a model, the name there, and a factor."""

    model: str
    name: str
    factor: float = 1.0


@dataclass(frozen=True)
class Router:
    """A tensor that the method computes: one row per expert, or a constant."""

    info: TensorInfo
    #: the layer's position among the layers
    position: int
    #: the experts whose rows it holds; none for zeros
    experts: tuple[str, ...]


@dataclass(frozen=True)
class Blueprint:
    """The plan of a mixture: made from headers, and checked."""

    target: Target
    #: the tensors of the dense base
    infos: Mapping[str, TensorInfo]
    #: the experts that the router chooses from, in order
    experts: tuple[str, ...]
    shared: str | None
    is_packed: bool
    factors: Mapping[str, float]

    def check(self) -> None:
        """Raise `AlignmentError` for a tensor that the target cannot hold, or one that it lacks."""
        for name in self.infos:
            if name not in _OUTSIDE and not self._holds_in_layer(name):
                raise AlignmentError(
                    f"the base's tensor {name!r} does not fit into a mixture of type "
                    f"{self.target.name}, which would lose it",
                    hint="Set algorithm.target to an architecture that has such a tensor, or leave "
                    "it out of all models. Names begin as save_pretrained writes them: "
                    "model.layers.0.",
                )
        needed = [*(f"mlp.{part}.weight" for part in PARTS), *self.target.needed_tensors]
        complete = [prefix + name for prefix in self.layers for name in needed]
        missing = [name for name in (*complete, EMBEDDINGS) if name not in self.infos]
        if missing or not self.layers:
            name = missing[0] if missing else "model.layers.0.mlp.gate_proj.weight"
            raise AlignmentError(
                f"the base lacks the tensor {name!r}, which a mixture is made of",
                hint="Name a model with its embeddings and complete layers, as save_pretrained "
                "writes it.",
            )

    def _holds_in_layer(self, name: str) -> bool:
        match = _IN_LAYER.fullmatch(name)
        feed_forward = [f"mlp.{part}.weight" for part in PARTS]
        held = {*self.target.layer_tensors, *feed_forward, _COMPUTED}
        return match is not None and match[3] in held

    @cached_property
    def layers(self) -> Mapping[str, int]:
        """The layers' numbers by the beginnings of their tensors' names, in order."""
        matches = filter(None, map(_IN_LAYER.fullmatch, self.infos))
        numbers = {match[1]: int(match[2]) for match in matches}
        return dict(sorted(numbers.items(), key=lambda item: item[1]))

    @property
    def attention(self) -> frozenset[str]:
        """The tensors of an attention module."""
        matches = filter(None, map(_IN_LAYER.fullmatch, self.infos))
        names = (match[3] for match in matches)
        return frozenset(name.removeprefix("self_attn.") for name in names if "attn." in name)

    @property
    def hidden(self) -> int:
        """The width of hidden states."""
        return self.infos[EMBEDDINGS].shape[1]

    @cached_property
    def origins(self) -> Mapping[str, Origin]:
        """The origins of all tensors that are copied, by their names in the mixture."""
        return dict(self._list_origins())

    def _list_origins(self) -> Iterator[tuple[str, Origin]]:
        for name in self.infos:
            match = _IN_LAYER.fullmatch(name)
            prefix, inner = (match[1], match[3]) if match else ("", name)
            part = inner.removeprefix("mlp.").removesuffix(".weight")
            if inner == _COMPUTED:
                continue
            if part not in PARTS:
                yield name, Origin("base", name)
                continue
            for number, expert in enumerate(self.experts):
                stored = self.target.expert_name(str(number), part, is_packed=self.is_packed)
                yield prefix + stored, self._from_expert(expert, name, part)
            if self.shared is not None:
                stored = f"{prefix}{self._block}.{self.target.shared}.{part}.weight"
                yield stored, self._from_expert(self.shared, name, part)

    def _from_expert(self, expert: str, name: str, part: str) -> Origin:
        return Origin(expert, name, self.factors.get(expert, 1.0) if part == PARTS[-1] else 1.0)

    @cached_property
    def routers(self) -> Mapping[str, Router]:
        """The tensors that the method computes, by name."""
        return {router.info.name: router for router in self._list_routers()}

    def _list_routers(self) -> Iterator[Router]:
        target = self.target
        for position, prefix in enumerate(self.layers):
            dtype = self.infos[f"{prefix}mlp.{PARTS[0]}.weight"].dtype
            block = f"{prefix}{self._block}"
            shape = len(self.experts), self.hidden
            yield Router(TensorInfo(f"{block}.gate.weight", shape, dtype), position, self.experts)
            if target.router_bias is not None:
                name = f"{block}.gate.{target.router_bias}"
                yield Router(TensorInfo(name, (len(self.experts),), dtype), position, ())
            if target.shared_gate is not None and self.shared is not None:
                name = f"{block}.{target.shared_gate}.weight"
                info = TensorInfo(name, (1, self.hidden), dtype)
                yield Router(info, position, (self.shared,))

    @property
    def _block(self) -> str:
        return self.target.block(is_packed=self.is_packed)

    @property
    def matrices(self) -> dict[str, TensorInfo]:
        """The tensors of the mixture with one matrix per expert."""
        copied = {
            name: replace(self.infos[origin.name], name=name)
            for name, origin in self.origins.items()
        }
        return {**copied, **{name: router.info for name, router in self.routers.items()}}

    @cached_property
    def layout(self) -> Layout:
        """The positions of experts in packed tensors; empty if each matrix is stored by itself."""
        slots, shapes = {}, {}
        for prefix in self.layers if self.is_packed else ():
            info = self.infos[f"{prefix}mlp.{PARTS[0]}.weight"]
            size, count = info.shape[0], len(self.experts)
            block: Sequence[tuple[str, Rows, int, str]] = (
                ("gate_up_proj", Rows(gate_proj=size, up_proj=size), self.hidden, "{part}"),
                ("down_proj", Rows(self.hidden), size, "down_proj"),
            )
            for name, rows, columns, part in block:
                packed = f"{prefix}mlp.experts.{name}"
                shape = count, rows.size, columns
                template = prefix + self.target.expert_name("{index}", part, is_packed=True)
                matrices = Matrices((Stacked(count), rows, Columns(columns)), template)
                slots[packed] = matrices.slots(TensorInfo(packed, shape, info.dtype))
                shapes[packed] = shape
        return Layout(slots, shapes)

    @property
    def tensors(self) -> dict[str, TensorInfo]:
        """The tensors of the mixture as they are stored."""
        owners = {slot.name: name for name, slots in self.layout.slots.items() for slot in slots}
        stored: dict[str, TensorInfo] = {}
        for name, info in self.matrices.items():
            owner = owners.get(name, name)
            shape = self.layout.shapes.get(owner, info.shape)
            stored[owner] = TensorInfo(owner, shape, info.dtype)
        return stored
