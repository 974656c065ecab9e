"""Merge models of different tokenizers with mergekit: `python mergekit_tokens.py DIRECTORY`.

Reads `cases.json`, a mapping from output folders to recipes. This file runs where fusion-core is
not installed.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from mergekit.config import MergeConfiguration
from mergekit.merge import run_merge
from mergekit.options import MergeOptions


def main(directory: Path) -> None:
    """Run every case."""
    options = MergeOptions(write_model_card=False, quiet=True)
    for folder, recipe in json.loads((directory / "cases.json").read_text()).items():
        configuration = MergeConfiguration.model_validate(recipe)
        run_merge(configuration, str(directory / folder), options)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
