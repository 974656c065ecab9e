"""What a sweep returns: its results, which show themselves in a notebook."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fusion_core.commands import import_optional
from fusion_sweep.plots import plot
from fusion_sweep.results import Results
from fusion_sweep.shown import as_html

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: Points in the table of a notebook.
_SHOWN = 10


class Found(Results):
    """What a sweep found so far: trials of it that are finished, and that failed."""

    def to_dataframe(self) -> Any:  # noqa: ANN401 - pandas' own
        """Return `rows` as a data frame of pandas; raises `FusionError` without pandas."""
        return import_optional("pandas", "to_dataframe").DataFrame(self.rows())

    def plot(self) -> Figure:
        """Return a picture of how the first objective moves with what is swept over.

        By matplotlib: a line, with standard deviations over seeds; a map of two options; or dots, a
        panel an option. Raises `FusionError` without it, and if no trial is finished.
        """
        return plot(self.ranked())

    def _repr_html_(self) -> str:
        """Show in a notebook what the command prints."""
        return as_html(self, _SHOWN)
