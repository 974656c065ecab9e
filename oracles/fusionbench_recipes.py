"""Run configurations with FusionBench, in its own environment: `python fusionbench_recipes.py DIR`.

Runs every `*.yaml` in the directory, from inside it, as FusionBench's program does: it instantiates
`modelpool` and `method`, runs the method, and saves the merged model to `theirs/<name>`. A method
that returns one model per task saves them to `theirs/<name>/<task>`. This file runs where
fusion-core is not installed.
"""

from __future__ import annotations

import os
import sys
import traceback
from pathlib import Path
from typing import Any

import torch
from fusion_bench.utils import instantiate
from omegaconf import OmegaConf
from safetensors.torch import save_file


def main(directory: Path) -> None:
    """Run every configuration, and write the reason of those that fail."""
    os.chdir(directory)
    torch.set_num_threads(1)
    for path in sorted(Path.cwd().glob("*.yaml")):
        output = Path("theirs") / path.stem
        output.mkdir(parents=True)
        try:
            _run(path, output)
        except Exception:  # noqa: BLE001 - whatever it raises is the answer
            (output / "failure.txt").write_text(traceback.format_exc())


def _run(path: Path, output: Path) -> None:
    config = OmegaConf.load(path)
    torch.manual_seed(config.get("seed") or 0)
    pool = instantiate(config.modelpool, _recursive_=False)
    method = instantiate(config.method, _recursive_=False)
    merged = method.run(pool)
    if hasattr(merged, "set_task"):  # EMR: the model of each task
        for task in pool.model_names:
            merged.set_task(task)
            _save(merged.backbone, output / task)
    else:
        _save(merged, output)


def _save(model: Any, output: Path) -> None:
    output.mkdir(parents=True, exist_ok=True)
    state = {name: value.detach().contiguous() for name, value in model.state_dict().items()}
    save_file({name: value.clone() for name, value in state.items()}, output / "model.safetensors")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
