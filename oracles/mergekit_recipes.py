"""Run configurations with mergekit, in its own environment: `python mergekit_recipes.py DIRECTORY`.

Runs every `*.yml` in the directory, from inside it, and writes the result to `theirs/<name>`. A
file of several documents runs as `mergekit-multi` does. This file runs where fusion-core is not
installed.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import yaml
from mergekit.config import MergeConfiguration
from mergekit.graph import Executor
from mergekit.merge import run_merge
from mergekit.options import MergeOptions
from mergekit.scripts.multimerge import load_config, make_tasks

OPTIONS = {"write_model_card": False, "quiet": True, "random_seed": 0}


def main(directory: Path) -> None:
    """Run every configuration."""
    os.chdir(directory)
    options = MergeOptions(**OPTIONS, lora_merge_cache="cache")
    for path in sorted(Path.cwd().glob("*.yml")):
        text, output = path.read_text(), f"theirs/{path.stem}"
        if text.startswith("---"):
            between = f"between/{path.stem}"
            merges, uses = load_config(text, between)
            tasks = make_tasks(merges, uses, options, between, output, lazy=False)
            Executor(tasks, math_device="cpu", storage_device="cpu").execute()
        else:
            configuration = MergeConfiguration.model_validate(yaml.safe_load(text))
            run_merge(configuration, output, options)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
