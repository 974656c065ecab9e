"""The docs' notebook has the cells of its source, and those run; `nox -s notebook` makes it."""

from __future__ import annotations

import json
import re
import runpy
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.plugins

TUTORIALS = Path(__file__).parents[1] / "docs" / "tutorials"
SOURCE = (TUTORIALS / "notebook.py").read_text(encoding="utf-8")


def test_the_notebook_is_made_of_its_source() -> None:
    notebook: Any = json.loads((TUTORIALS / "notebook.ipynb").read_text(encoding="utf-8"))
    cells = runpy.run_path(str(TUTORIALS / "make_notebook.py"))["cells"]
    stored = [(cell["cell_type"], "".join(cell["source"])) for cell in notebook["cells"]]
    assert stored == list(cells(SOURCE)), "run: nox -s notebook"
    outputs = [cell["outputs"] for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert [len(output) for output in outputs] == [1] * len(outputs)  # each shows one thing


@pytest.mark.thorough
def test_its_cells_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    quick = re.sub(r'"limit": \d+', '"limit": 8', SOURCE)
    quick = re.sub(r'"steps": \d+', '"steps": 2', quick)
    assert quick != SOURCE
    names: dict[str, Any] = {}
    exec(compile(quick, "notebook.py", "exec"), names)
    assert len(names["plot"](names["learned"]).axes) == 2
    assert len(names["trials"].finished) == 8
    written = {path.name for path in tmp_path.iterdir()}
    assert written == {"merged", "sweeps.sqlite", "sweeps.sqlite.claims"}
