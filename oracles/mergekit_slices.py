"""Stack layers with mergekit, in its virtual environment: `python mergekit_slices.py DIRECTORY`.

Reads `cases.json`, a mapping from folders to slices. A slice has a model (a subfolder) and a range
of layers. Writes mergekit's result to the subfolder `theirs`. This file runs where fusion-core is
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
    for folder, slices in json.loads((directory / "cases.json").read_text()).items():
        sources = [
            {"model": str(directory / folder / model), "layer_range": layers}
            for model, layers in slices
        ]
        recipe = {
            "merge_method": "passthrough",
            "slices": [{"sources": [source]} for source in sources],
        }
        options = MergeOptions(copy_tokenizer=False, write_model_card=False, quiet=True)
        configuration = MergeConfiguration.model_validate(recipe)
        run_merge(configuration, str(directory / folder / "theirs"), options)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
