"""Run FusionBench's spectral merges for `spectral.py`, in its own virtual environment.

    python spectral_fusionbench.py DIRECTORY THREADS STEPS

reads `experts.safetensors` and prints `ready`. For each name of a method on its input, it merges,
writes `found.safetensors`, and prints the seconds of processor time.
"""

from __future__ import annotations

import contextlib
import io
import sys
import time
from collections import defaultdict
from pathlib import Path

import torch
from fusion_bench.method.isotropic_merging.iso_utils import iso_c, iso_cts
from fusion_bench.method.task_singular_vector.utils import TSVM_utils
from fusion_bench.method.wudi.wudi import wudi_merging
from safetensors.torch import load_file, save_file


def main(directory: Path, threads: int, steps: int) -> None:
    """Merge by each requested method."""
    torch.set_num_threads(threads)
    experts: dict[str, dict[str, torch.Tensor]] = defaultdict(dict)
    for key, value in load_file(directory / "experts.safetensors").items():
        expert, _, name = key.partition("/")
        experts[expert][name] = value
    rows = [experts[expert] for expert in sorted(experts)]
    methods = {
        "iso-c": lambda: iso_c(rows, accelerator="cpu"),
        "iso-cts": lambda: iso_cts(rows, 0.8, accelerator="cpu"),
        "tsv-m": lambda: TSVM_utils.compute_and_sum_svd_mem_reduction(rows, accelerator="cpu"),
        "wudi": lambda: wudi_merging(rows, accelerator="cpu", iter_num=steps),
    }
    _say("ready")
    for line in sys.stdin:
        started = time.process_time()
        with contextlib.redirect_stdout(io.StringIO()):
            merged = methods[line.strip()]()
        seconds = time.process_time() - started
        merged = {name: value.detach().contiguous() for name, value in merged.items()}
        save_file(merged, directory / "found.safetensors")
        _say(str(seconds))


def _say(word: str) -> None:
    sys.stdout.write(f"{word}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(int, sys.argv[2:]))
