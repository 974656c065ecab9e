"""The record of a transplant: how many rows came from where, as JSON and as a table."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from fusion_tokenizer.perplexity import Perplexity

REPORT = "transplant_report.json"
HEADINGS = ("rows", "count", "of the output")
_SCHEMA = 1


@dataclass
class Record:
    """The counts of a transplant, and what a measurement gave."""

    method: str
    rows: int
    rows_before: int
    tokens_before: int
    #: rows copied from the model, by how their tokens matched
    matched: Mapping[str, int]
    #: the model's token for each donor token that matched by its role
    by_role: Mapping[str, str]
    #: tokens that the model lacks
    new: int
    #: rows that belong to no token
    padding: int
    #: per embedding, the new tokens that the method left to the mean, by reason
    left_to_mean: dict[str, dict[str, int]] = field(default_factory=dict)
    #: the likelihood of a text before and after
    perplexity: dict[str, Perplexity] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    def add(self, tensor: str, left: Mapping[str, int]) -> None:
        """Add an embedding, and the new tokens whose rows in it are the mean."""
        self.left_to_mean[tensor] = {reason: count for reason, count in left.items() if count}

    def as_data(self) -> dict[str, Any]:
        """Return the record as JSON data."""
        return {"schema": _SCHEMA, **asdict(self)}

    def as_json(self) -> bytes:
        """Return the content of the report."""
        return json.dumps(self.as_data(), indent=2, ensure_ascii=False).encode() + b"\n"

    def table(self) -> Iterator[tuple[str, ...]]:
        """Yield the rows of a table, those of the input embeddings first."""
        yield from self._lines({f"kept: {how}": count for how, count in self.matched.items()})
        first, *others = [*self.left_to_mean.items()] or [("", {})]
        left = first[1]
        is_mean = self.method == "mean"
        approximated = 0 if is_mean else self.new - sum(left.values())
        yield from self._lines({f"new: {self.method}": self.new if is_mean else approximated})
        yield from self._lines({f"mean: {reason}": count for reason, count in left.items()})
        yield from self._lines({"mean: padding, no token": self.padding})
        for tensor, reasons in others:
            if reasons != left:
                yield from self._lines(
                    {f"mean in {tensor}: {reason}": count for reason, count in reasons.items()}
                )

    def _lines(self, counts: Mapping[str, int]) -> Iterator[tuple[str, ...]]:
        for label, count in counts.items():
            if count:
                yield label, f"{count:,}", f"{count / self.rows:.1%}"

    def describe(self) -> list[str]:
        """Return lines about the vocabulary, roles and likelihoods."""
        lines = [f"rows: {self.rows_before:,} before, {self.rows:,} after"]
        lines += [
            f"same role: {token} has the row of {twin}" for token, twin in self.by_role.items()
        ]
        lines += [
            f"{when}: {figures.bits_per_byte:.4f} bits per byte, perplexity {figures.per_byte:.3f} "
            f"per byte, {figures.tokens:,} tokens of {figures.bytes_per_token:.2f} bytes"
            for when, figures in self.perplexity.items()
        ]
        return lines
