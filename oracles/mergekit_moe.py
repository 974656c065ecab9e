"""Make mixtures with mergekit, in its own virtual environment: `python mergekit_moe.py DIRECTORY`.

Reads `cases.json`, a mapping from folders to configurations of mergekit-moe, whose models are
subfolders. Writes mergekit's result to the subfolder `theirs`. mergekit builds the base in bf16 to
read its hidden states. Here it is fp32, as with us. This file runs where fusion-core is not
installed.
"""

from __future__ import annotations

import json
import os
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING
from unittest.mock import patch

import torch
from mergekit.moe import router
from mergekit.moe.config import MoEMergeConfig
from mergekit.options import MergeOptions
from mergekit.scripts.moe import build

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any


def main(directory: Path) -> None:
    """Run every case."""
    load = router.AutoModelForCausalLM.from_pretrained
    with patch.object(router.AutoModelForCausalLM, "from_pretrained", partial(load_in_fp32, load)):
        for folder, recipe in json.loads((directory / "cases.json").read_text()).items():
            os.chdir(directory / folder)  # the models are named relative to it
            options = MergeOptions(write_model_card=False, quiet=True)
            build(MoEMergeConfig.model_validate(recipe), "theirs", options, device="cpu")


def load_in_fp32(load: Callable[..., Any], path: str, **_: object) -> Any:
    """Load a model in fp32, whatever mergekit asks for."""
    return load(path, dtype=torch.float32)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
