"""Whether models agree in what lies beside their weights.

An `Agreement` keeps the differences, because a run aligns its models several times. Policies judge
them afterwards.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

from fusion_core.weights.aligning._models import Model, Models
from fusion_core.weights.aligning.side_files import TABLE

if TYPE_CHECKING:
    from collections.abc import Mapping

    from fusion_core.recipe.config import AlignmentPolicy
    from fusion_core.weights.aligning._comparison import Policy
    from fusion_core.weights.aligning._difference import Difference, Doubt
    from fusion_core.weights.reading.assets import Files
    from fusion_core.weights.source import WeightSource


class Agreement:
    """What models say of themselves, compared with the first that says something."""

    def __init__(
        self,
        base: WeightSource | None,
        models: Mapping[str, WeightSource],
        files: Mapping[str, Files],
    ) -> None:
        """`models` has the base first, if there is one; `files` lie beside them."""
        named = {name: Model(name, each, files.get(name, {})) for name, each in models.items()}
        self._models = Models(base, named)

    def judged(self, policy: AlignmentPolicy) -> tuple[list[Difference], list[str]]:
        """Return what the policies make of the doubts: errors and warnings."""
        errors: list[Difference] = []
        warnings: list[str] = []
        for kind, setting in (("config", policy.config), ("tokenizer", policy.tokenizer)):
            for doubt in () if setting == "ignore" else getattr(self, f"_{kind}"):
                if doubt.serious and setting == "error":
                    errors.append(doubt.as_difference(f"alignment.{kind}=warn"))
                else:
                    warnings.append(str(doubt))
        return errors, warnings

    @cached_property
    def _config(self) -> list[Doubt]:
        return self._doubts("config")

    @cached_property
    def _tokenizer(self) -> list[Doubt]:
        return self._doubts("tokenizer")

    def _doubts(self, policy: Policy) -> list[Doubt]:
        rows = (row for row in TABLE if row.policy == policy)
        return [doubt for row in rows for doubt in row.find(self._models)]
