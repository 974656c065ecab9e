"""Transplant tokenizers with mergekit: `python mergekit_tokensurgeon.py DIRECTORY`.

Reads `cases.json`, a mapping from output folders to arguments. This file runs where fusion-core is
not installed.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from mergekit.scripts.tokensurgeon import main as tokensurgeon


def main(directory: Path) -> None:
    """Run every case."""
    for folder, arguments in json.loads((directory / "cases.json").read_text()).items():
        models = [str(directory / name) for name in ("model", "donor")]
        tokensurgeon([*models, str(directory / folder), *arguments], standalone_mode=False)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
