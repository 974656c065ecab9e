"""Writes notebook.ipynb: notebook.py, in whose cells it is written, with what the cells show.

Run as `nox -s notebook`: it needs nbclient and ipykernel. A test compares the notebook's cells with
those of the file, and runs them.
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
    """Yield the kind and the text of each cell of a file in the percent format."""
    _, *parts = _MARK.split(source)
    for kind, text in zip(parts[::2], parts[1::2], strict=True):
        if kind:
            yield "markdown", re.sub(r"(?m)^# ?", "", text).strip()
        else:
            yield "code", text.strip()


def executed(source: str) -> str:
    """Return a notebook of a file's cells with what they show, the same whenever it is made."""
    import nbformat
    from nbclient import NotebookClient

    make = {"code": nbformat.v4.new_code_cell, "markdown": nbformat.v4.new_markdown_cell}
    made = nbformat.v4.new_notebook(metadata={"kernelspec": _KERNEL})
    made.cells = [
        make[kind](text, id=f"cell-{number}") for number, (kind, text) in enumerate(cells(source))
    ]
    with TemporaryDirectory() as place:
        os.environ["XDG_CACHE_HOME"] = place  # nothing is remembered of other runs
        where = {"metadata": {"path": place}}
        NotebookClient(made, record_timing=False, resources=where).execute()
    made.metadata = {"kernelspec": _KERNEL, "language_info": {"name": "python"}}
    for cell in made.cells:
        for output in cell.get("outputs", ()):
            _clean(output)
    return str(nbformat.writes(made)) + "\n"


def _clean(output: dict[str, Any]) -> None:
    """Leave out what differs from run to run: addresses in the text beside tables, random ids."""
    if output["output_type"] not in {"execute_result", "display_data"}:
        raise ValueError(f"a cell printed what the page should not have: {output}")
    data = output["data"]
    if len(data) > 1:
        del data["text/plain"]
    if "text/html" in data:
        data["text/html"] = re.sub(r"\bT_[0-9a-f]{5}_?", "table", data["text/html"])


def main() -> None:
    """Write the notebook."""
    NOTEBOOK.write_text(executed(SOURCE.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
