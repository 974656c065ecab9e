"""Compare `fuse extract-lora` with the SVDs that it avoids, and `core-space` with dense matrices.

    python benchmarks/adapters.py --width 2048 --layers 2 --rank 16

Builds a base and an expert, shaped as a Llama's in bf16, and four adapters. Prints, measured in
processes of their own, one after the other:

- `fuse extract-lora` with `--rank` and with `--energy`, against `torch.linalg.svd` of the same
  differences, with processor times, peak memory above a process that imports torch, and the errors;
- `core-space` with TIES on adapters, with factors and with dense task vectors.

Ratios of processor times compare across machines with the same libraries; times do not.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

_EXPERTS = 4


def main() -> None:
    """Build the models, measure every child, and print the tables."""
    options = _options()
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        _build(directory, options)
        idle = _measure("import", directory, options)
        results = {
            child: _measure(child, directory, options)
            for child in ("svd", "rank", "energy", "dense", "factors")
        }
    for child, base in (("rank", "svd"), ("energy", "svd"), ("factors", "dense")):
        ours, theirs = results[child], results[base]
        ratio = theirs["cpu"] / ours["cpu"]
        print(
            f"{child}: {ours['cpu']:.1f} s of processor time, {ours['wall']:.1f} s; {base}: "
            f"{theirs['cpu']:.1f} s, {theirs['wall']:.1f} s; ratio {ratio:.1f}; peak above torch "
            f"{(ours['peak'] - idle['peak']) / 1e6:.0f} MB, {base} "
            f"{(theirs['peak'] - idle['peak']) / 1e6:.0f} MB; {ours['note']}; {theirs['note']}"
        )


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--width", type=int, default=2048)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--energy", type=float, default=0.5)
    parser.add_argument("--child")
    parser.add_argument("--directory", type=Path)
    options = parser.parse_args()
    if options.child:
        _run_child(options)
        raise SystemExit
    return options


def _build(directory: Path, options: argparse.Namespace) -> None:
    torch.manual_seed(0)
    width, base, expert = options.width, {}, {}
    shapes = {"self_attn.q_proj": (width, width), "self_attn.o_proj": (width, width)}
    shapes |= {"mlp.up_proj": (11 * width // 4, width), "mlp.down_proj": (width, 11 * width // 4)}
    names = {
        f"model.layers.{layer}.{module}": shape
        for layer in range(options.layers)
        for module, shape in shapes.items()
    } | {"model.embed_tokens": (16 * width, width)}
    for module, (height, columns) in names.items():
        weight = torch.randn(height, columns) * 0.02
        scales = 1 / torch.arange(1, 257)  # the spectrum of a task vector decays
        change = (torch.randn(height, 256) * scales) @ torch.randn(256, columns)
        base[f"{module}.weight"] = weight.bfloat16()
        expert[f"{module}.weight"] = (weight + 0.002 * change).bfloat16()
    for name, tensors in (("base", base), ("expert", expert)):
        (directory / name).mkdir()
        save_file(tensors, directory / name / "model.safetensors")
    for number in range(_EXPERTS):
        path = directory / f"adapter-{number}"
        path.mkdir()
        factors = {}
        for module, (height, columns) in names.items():
            if "embed" not in module:
                key = f"base_model.model.{module}.lora_"
                factors[f"{key}A.weight"] = torch.randn(options.rank, columns) * 0.01
                factors[f"{key}B.weight"] = torch.randn(height, options.rank) * 0.01
        save_file(factors, path / "adapter_model.safetensors")
        config = {"peft_type": "LORA", "r": options.rank, "lora_alpha": options.rank}
        (path / "adapter_config.json").write_text(json.dumps(config))


def _measure(child: str, directory: Path, options: argparse.Namespace) -> dict[str, Any]:
    values = [f"--{key}={getattr(options, key)}" for key in ("width", "layers", "rank", "energy")]
    command = [sys.executable, __file__, *values, "--child", child, "--directory", str(directory)]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    result: dict[str, Any] = json.loads(output.splitlines()[-1])
    return result


def _run_child(options: argparse.Namespace) -> None:
    started, cpu = time.perf_counter(), time.process_time()
    note = _CHILDREN[options.child](options)
    result = {
        "wall": time.perf_counter() - started,
        "cpu": time.process_time() - cpu,
        "peak": _read_peak(),
        "note": note,
    }
    print(json.dumps(result))


def _read_peak() -> int:
    """Return the peak memory of this process in bytes; `ru_maxrss` would include the parent's."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    line = next(line for line in status.splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def _take_svds(options: argparse.Namespace) -> str:
    error = size = 0.0
    paths = [options.directory / name / "model.safetensors" for name in ("base", "expert")]
    with safe_open(paths[0], "pt") as base, safe_open(paths[1], "pt") as expert:
        for name in base.keys():  # noqa: SIM118 - it is not a mapping
            change = expert.get_tensor(name).float() - base.get_tensor(name).float()
            values = torch.linalg.svd(change, full_matrices=False).S.double().square()
            error += values[options.rank :].sum().item()
            size += values.sum().item()
    return f"least error {(error / size) ** 0.5:.4f}"


def _extract(options: argparse.Namespace, *flags: str) -> str:
    from typer.testing import CliRunner

    from fusion_core.cli.app import app

    base, expert, out = (str(options.directory / name) for name in ("base", "expert", flags[0][2:]))
    command = ["extract-lora", expert, "--base", base, "-o", out, "-q", "--json", *flags]
    result = CliRunner().invoke(app, command, catch_exceptions=False)
    return f"error {json.loads(result.stdout)['relative_error']:.4f}"


def _merge(options: argparse.Namespace, *, dense: bool) -> str:
    from fusion_core import run_fusion
    from fusion_lora import LoraSource

    if dense:
        LoraSource.low_rank = lambda *_: None  # type: ignore[method-assign]
    models = [str(options.directory / f"adapter-{number}") for number in range(_EXPERTS)]
    weights = run_fusion(
        algorithm=["core-space", "ties"],
        model_pool={"base": str(options.directory / "base"), "models": models},
        output=options.directory / f"merged-{dense}",
    ).weights
    return f"sum of entries {weights.tensor('model.layers.0.self_attn.q_proj.weight').sum():.4f}"


_CHILDREN = {
    "import": lambda _: "",
    "svd": _take_svds,
    "rank": lambda options: _extract(options, f"--rank={options.rank}"),
    "energy": lambda options: _extract(options, f"--energy={options.energy}"),
    "dense": lambda options: _merge(options, dense=True),
    "factors": lambda options: _merge(options, dense=False),
}

if __name__ == "__main__":
    main()
