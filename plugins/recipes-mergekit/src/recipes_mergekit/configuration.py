"""A configuration of mergekit as plain values."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True)
class Reference:
    """A model by path or hub id, perhaps with the adapter that is added to it."""

    path: str
    adapter: str | None = None

    def __str__(self) -> str:
        return self.path if self.adapter is None else f"{self.path}+{self.adapter}"


@dataclass(frozen=True)
class Source:
    """A model of a slice, or some of its layers, with its parameters."""

    model: Reference
    layers: tuple[int, int] | None
    parameters: Mapping[str, Any]


@dataclass(frozen=True)
class Slice:
    """Layers of the result, merged from the same number of layers of every source."""

    sources: tuple[Source, ...]
    base: Reference | None
    parameters: Mapping[str, Any]
    #: the slice's key in the file
    key: str

    @property
    def length(self) -> int:
        """The number of layers; 0 for whole models."""
        start, stop = self.sources[0].layers or (0, 0)
        return stop - start


@dataclass(frozen=True)
class TokenRow:
    """The embedding of a token that models lack."""

    #: None for zeros
    model: Reference | None
    #: the token whose embedding it is, by name or number; None for the token itself
    token: str | int | None
    force: bool


@dataclass(frozen=True)
class Tokens:
    """The tokenizer of the result."""

    #: `union`, `base` or a model
    source: Reference | str
    rows: Mapping[str, TokenRow]
    pad_to_multiple_of: int | None
    key: str


@dataclass(frozen=True)
class Configuration:
    """One merge. `models` are one slice of whole models."""

    method: str
    base: Reference | None
    slices: tuple[Slice, ...]
    parameters: Mapping[str, Any]
    dtype: str | None
    out_dtype: str | None
    tokens: Tokens | None
    chat_template: str | None
    #: the models of every module of a model with several; then there are no slices
    modules: Mapping[str, Slice] = field(default_factory=dict)
    #: the key of the document in the file, ending with a dot, or nothing
    prefix: str = ""

    @property
    def parts(self) -> tuple[Slice, ...]:
        """The slices, and the modules."""
        return (*self.slices, *self.modules.values())

    @property
    def has_ranges(self) -> bool:
        """Whether slices choose layers."""
        return self.slices[0].sources[0].layers is not None
