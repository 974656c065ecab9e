"""Run the cells of notebook.py and write them with their outputs to notebook.ipynb.

`nox -s notebook` runs this script, which needs nbclient and ipykernel. `tests/test_notebook.py`
compares the notebook's cells with the file and runs them.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

HERE = Path(__file__).parent
SOURCE, NOTEBOOK = HERE / "notebook.py", HERE / "notebook.ipynb"
_MARK = re.compile(r"(?m)^# %%(?: \[(markdown)\])?\n")
_KERNEL = {"name": "python3", "display_name": "Python 3", "language": "python"}


def cells(source: str) -> Iterator[tuple[str, str]]:
    """Yield the type and the text of each cell of a file in the percent format."""
    _, *parts = _MARK.split(source)
    for kind, text in zip(parts[::2], parts[1::2], strict=True):
        if kind:
            yield "markdown", re.sub(r"(?m)^# ?", "", text).strip()
        else:
            yield "code", text.strip()


def execute(source: str) -> str:
    """Execute the cells and return the notebook as JSON. Equal cells give equal text."""
    import nbformat
    from nbclient import NotebookClient

    new_cell = {"code": nbformat.v4.new_code_cell, "markdown": nbformat.v4.new_markdown_cell}
    notebook = nbformat.v4.new_notebook(metadata={"kernelspec": _KERNEL})
    notebook.cells = [
        new_cell[kind](text, id=f"cell-{number}")
        for number, (kind, text) in enumerate(cells(source))
    ]
    with TemporaryDirectory() as directory:
        os.environ["XDG_CACHE_HOME"] = directory  # measurements of other runs are not reused
        resources = {"metadata": {"path": directory}}
        NotebookClient(notebook, record_timing=False, resources=resources).execute()
    notebook.metadata = {"kernelspec": _KERNEL, "language_info": {"name": "python"}}
    for cell in notebook.cells:
        for output in cell.get("outputs", ()):
            _normalise(output)
    return str(nbformat.writes(notebook)) + "\n"


def _normalise(output: dict[str, Any]) -> None:
    """Remove the parts that differ between runs: object addresses and random table ids."""
    if output["output_type"] not in {"execute_result", "display_data"}:
        raise ValueError(f"a cell has an output that the page must not show: {output}")
    data = output["data"]
    if len(data) > 1:
        del data["text/plain"]
    if "text/html" in data:
        data["text/html"] = re.sub(r"\bT_[0-9a-f]{5}_?", "table", data["text/html"])


def main() -> None:
    """Write the notebook."""
    NOTEBOOK.write_text(execute(SOURCE.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
