"""A transplant: planned from two tokenizers, and carried out as a lazy source."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from fusion_tokenizer.approximation import (
    Approximation,
    combine_nothing,
    combine_pieces,
    combine_shared,
)
from fusion_tokenizer.matching import Matches, match_tokens
from fusion_tokenizer.plan import RowPlan
from fusion_tokenizer.record import Record
from fusion_tokenizer.side_files import compose_files
from fusion_tokenizer.source import TransplantedSource

if TYPE_CHECKING:
    from pathlib import Path

    from fusion_core import Progress
    from fusion_tokenizer.approximation import Which
    from fusion_tokenizer.models import Pair
    from fusion_tokenizer.options import TransplantOptions


@dataclass(frozen=True)
class Transplant:
    """The donor's tokens matched with the model's rows; no row is computed yet."""

    pair: Pair
    options: TransplantOptions
    matches: Matches
    #: the side files of the output
    files: dict[str, bytes | Path]
    warnings: tuple[str, ...]

    @classmethod
    def plan(cls, pair: Pair, options: TransplantOptions) -> Transplant:
        """Match the tokens and compose the side files.

        Raises `CheckpointError` for a configuration that cannot be translated.
        """
        rows = -(-pair.donor.rows // options.multiple) * options.multiple
        matches = match_tokens(
            pair.model.vocabulary,
            pair.donor.vocabulary,
            model_rows=pair.embeddings.rows,
            count=rows,
            roles=options.match_roles,
        )
        files, warnings = compose_files(pair.model, pair.donor, rows, options.chat_template)
        return cls(pair, options, matches, files, tuple(warnings))

    def record(self) -> Record:
        """Return the counts that are known before any row is computed."""
        donor, model = self.pair.donor.vocabulary, self.pair.model.vocabulary
        return Record(
            method=self.options.method,
            rows=len(self.matches.rows),
            rows_before=self.pair.embeddings.rows,
            matched=dict(self.matches.counts),
            by_role=dict(self.matches.by_role),
            new=len(self.matches.new),
            padding=len(self.matches.rows) - len(set(donor.ids.values())),
            tokens_before=len(model.ids),
            warnings=list(self.warnings),
        )

    def carry_out(self, progress: Progress) -> tuple[TransplantedSource, Record]:
        """Compute the combinations for new tokens, and return the lazy model.

        Raises `AlignmentError` if the models share too few tokens for the method.
        """
        embeddings, record = self.pair.embeddings, self.record()
        inputs = self._approximate(progress, is_output=False)
        record.add(embeddings.input, inputs.left)
        plans = {embeddings.input: self._rows(inputs)}
        if embeddings.output is not None:
            outputs = inputs if self._is_shared else self._approximate(progress, is_output=True)
            record.add(embeddings.output, outputs.left)
            plans[embeddings.output] = self._rows(outputs)
        if embeddings.bias is not None:
            plans[embeddings.bias] = self._rows(inputs).without_combinations()
            record.add(embeddings.bias, {"a bias is not combined": len(self.matches.new)})
        ids = sorted({*self.pair.model.vocabulary.ids.values()})
        token_rows = torch.tensor([number for number in ids if number < embeddings.rows])
        return TransplantedSource(embeddings, plans, token_rows), record

    @property
    def _is_shared(self) -> bool:
        """Whether the combinations at the input serve the output too."""
        donor = self.pair.donor.embeddings
        if self.pair.embeddings.is_tied:
            return True
        if self.options.needs_donor_weights:
            assert donor is not None  # noqa: S101 - opened for such a method
            return donor.is_tied
        return self.options.subword_weights == "mean"

    def _approximate(self, progress: Progress, *, is_output: bool) -> Approximation:
        options, matches = self.options, self.matches
        if options.needs_donor_weights:
            donor = self.pair.donor.embeddings
            assert donor is not None  # noqa: S101 - opened for such a method
            name = (donor.output if is_output else None) or donor.input
            matrix = donor.matrix(name)
            return combine_shared(matrix, matches, options, self.pair.executor, progress)
        if options.method == "subword":
            # A causal model reads the last piece last, and predicts the first piece first.
            end: Which = "first" if is_output else "last"
            return combine_pieces(
                self.pair.model.vocabulary,
                self.pair.donor.vocabulary,
                matches,
                self.pair.embeddings.rows,
                end if options.subword_weights == "ends" else "all",
            )
        return combine_nothing(matches, zero=options.method == "zero")

    def _rows(self, approximation: Approximation) -> RowPlan:
        return RowPlan(self.matches.rows, approximation.slots, approximation.combinations)
