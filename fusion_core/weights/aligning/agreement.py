"""Whether models agree in their side files.

An `Agreement` keeps the differences, because a run aligns its models several times. Policies judge
them afterwards.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from fusion_core.weights.aligning._models import Model, Models
from fusion_core.weights.aligning.side_files import TABLE

if TYPE_CHECKING:
    from collections.abc import Mapping

    from fusion_core.recipe.config import AlignmentPolicy
    from fusion_core.weights.aligning._comparison import Policy
    from fusion_core.weights.aligning._difference import Difference
    from fusion_core.weights.reading.assets import Files
    from fusion_core.weights.source import WeightSource


class Agreement:
    """The differences between the side files of models."""

    def __init__(
        self,
        base: WeightSource | None,
        models: Mapping[str, WeightSource],
        files: Mapping[str, Files],
    ) -> None:
        """Take the models, the base first if there is one, and their side files by name."""
        by_name = {
            name: Model(name, source, files.get(name, {})) for name, source in models.items()
        }
        self._models = Models(base, by_name)
        self._differences: dict[Policy, list[Difference]] = {}

    def judged(self, policy: AlignmentPolicy) -> tuple[list[Difference], list[str]]:
        """Return the differences that the policies make errors, and warnings for the others."""
        errors: list[Difference] = []
        warnings: list[str] = []
        settings: dict[Policy, str] = {"config": policy.config, "tokenizer": policy.tokenizer}
        for kind, setting in settings.items():
            if setting == "ignore":
                continue
            for difference in self._compare(kind):
                if difference.is_serious and setting == "error":
                    errors.append(replace(difference, remedy=f"alignment.{kind}=warn"))
                else:
                    warnings.append(str(difference))
        return errors, warnings

    def _compare(self, kind: Policy) -> list[Difference]:
        if kind not in self._differences:
            rows = [row for row in TABLE if row.policy == kind]
            self._differences[kind] = [
                difference for row in rows for difference in row.find(self._models)
            ]
        return self._differences[kind]
