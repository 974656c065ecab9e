"""What `methods.py` needs torch for, as programs of their own: it must stay small itself."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from llama import WIDE, Llama
from safetensors.torch import save_file

from fusion_core.weights import CheckpointSource

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_VOCABULARY = 32_000


def build(directory: str, gigabytes: str) -> None:
    """Write a base and three experts of so many gigabytes each."""
    shape = _llama(float(gigabytes) * 1e9 / WIDE)
    write_models(Path(directory), shape, ["base", "x", "y", "z"])


def write_models(
    directory: Path, shape: Llama, names: Sequence[str], *, dtype: torch.dtype = torch.bfloat16
) -> None:
    """Write a model of random weights and, under the names after its own, experts of it."""
    generator = torch.Generator().manual_seed(0)
    base = {n: _normal(size, generator).mul_(0.02).to(dtype) for n, size in shape.tensors.items()}
    save(directory / names[0], base, shape.config)
    for name in names[1:]:
        expert = {
            key: _normal(value.shape, generator).mul_(0.001).add_(value).to(dtype)
            for key, value in base.items()
        }
        save(directory / name, expert, shape.config)


def _llama(parameters: float) -> Llama:
    """Return the sizes of a Llama of about so many parameters."""
    hidden = next((each for each in (2048, 1024, 512) if _layers(each, parameters) >= 8), 256)
    layers = max(1, _layers(hidden, parameters))
    return Llama(hidden, hidden * 11 // 4, layers, 16, 2, _VOCABULARY)


def _layers(hidden: int, parameters: float) -> int:
    return round((parameters - 2 * _VOCABULARY * hidden) / (hidden * hidden * 10.5))


def _normal(shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    return torch.randn(shape, generator=generator)


def save(directory: Path, tensors: dict[str, torch.Tensor], config: dict[str, object]) -> None:
    """Write a model's directory, without a tokenizer."""
    directory.mkdir()
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    (directory / "config.json").write_text(json.dumps(config))


def registered() -> None:
    """Print all streamed methods that need no data, with their stages, as JSON."""
    from fusion_linear import plugin as linear
    from fusion_ties import plugin as ties

    specs = [*linear.fusion_register_algorithms(), *ties.fusion_register_algorithms()]
    kept = ("name", "stage", "max_experts")
    print(json.dumps([{each: getattr(spec, each) for each in kept} for spec in specs]))


def compare(directory: str, *arguments: str) -> None:
    """Say how far the two merges differ, entries that tie an edge in an expert left out."""
    sources = {
        name: CheckpointSource(Path(directory) / name)
        for name in (
            *(argument for argument in arguments if argument[0] not in "01"),
            "ours",
            "theirs",
        )
    }
    edges = [float(argument) for argument in arguments if argument not in sources]
    total = ties = unequal = 0
    worst = 0.0
    for name, info in sources["ours"].infos.items():
        values = {each: source.tensor(name).flatten().float() for each, source in sources.items()}
        clear = ~_tied(values, edges, info.numel)
        mine, his = values["ours"][clear], values["theirs"][clear]
        difference = (mine - his).abs()
        total, ties = total + info.numel, ties + info.numel - len(mine)
        unequal += int(difference.count_nonzero())
        # Of the value, or of a thousandth of the largest: what is nearly zero says nothing.
        worst = max(worst, float((difference / his.abs().clamp_min_(his.abs().max() / 1e3)).max()))
    print(_verdict(ties / total, unequal, total, worst))


def _verdict(tied: float, unequal: int, total: int, worst: float) -> str:
    compared = f", {1 - tied:.1%} compared" if tied else ""
    if not unequal:
        return f"equal{compared}"
    return f"{unequal / total:.1g} differ, by {worst:.0e} at most{compared}"


def _tied(values: dict[str, torch.Tensor], edges: list[float], numel: int) -> torch.Tensor:
    """Mark entries whose magnitude in an expert is one at which some are kept and some are not."""
    tied = torch.zeros(numel, dtype=torch.bool)
    for name in ("x", "y", "z") if edges else ():
        magnitudes = values[name].sub(values["base"]).abs_()
        for edge in edges:
            threshold = magnitudes.kthvalue(numel - max(1, int(edge * numel)) + 1).values
            tied |= magnitudes == threshold
    return tied


def plan(directory: str) -> None:
    """Time what happens before the first weight is read, for 20,000 tensors in four models."""
    from fusion_core.planning.run_options import RunOptions
    from fusion_core.running.run import run_fusion

    models = {}
    for name in ("base", "x", "y", "z"):
        path = Path(directory) / f"many-{name}.safetensors"
        save_file({f"layers.{n}.weight": torch.zeros(2, 2) for n in range(20_000)}, path)
        models[name] = str(path)

    class FirstReadError(Exception):
        pass

    def read(*_: object) -> None:
        raise FirstReadError

    CheckpointSource.read = read  # type: ignore[assignment,method-assign]
    started = time.perf_counter()
    try:
        run_fusion(
            algorithm={"name": "ties", "scope": "tensor"},
            model_pool={"name": "checkpoints", "base": models.pop("base"), "models": models},
            output=Path(directory) / "planned",
            options=RunOptions(executor="serial"),
        )
    except FirstReadError:
        print(f"20,000 tensors in 4 models planned in {time.perf_counter() - started:.2f} s")


if __name__ == "__main__":
    children: dict[str, Callable[..., None]] = {
        each.__name__: each for each in (build, compare, plan, registered)
    }
    children[sys.argv[1]](*sys.argv[2:])
