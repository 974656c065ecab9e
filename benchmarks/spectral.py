"""Compare spectral methods with their plain forms and FusionBench's, on ViT-B/32's matrices.

    python benchmarks/spectral.py --experts 8 --blocks 1 --repeats 3 --fusion-bench PATH/TO/VENV

Weights are random. A block has four matrices of 768 x 768 and two of 3072 x 768. The tower has
twelve equal blocks, so ratios do not depend on `--blocks`. Measured in processor time, interleaved,
with the same number of threads and without files:

- `iso-c` against the SVD of each matrix's sum, with the times of Newton-Schulz and of one SVD of
  every expert's matrix;
- `iso-cts`, `tsv-m`, `star` and `cart` against one SVD per matrix and expert, and those of the sum
  and of the joined bases where the authors take them;
- `wudi` against its 2 K products per step (`--steps` of them);
- FusionBench's own functions, if `--fusion-bench` names a virtual environment that has it.

Every result is compared with the plain one, relative to the largest entry. Prints medians and
ratios. Times of different machines do not compare.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import tempfile
import time
from collections import defaultdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file

from fusion_core import merge

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

SHAPES = {"q": (768, 768), "k": (768, 768), "v": (768, 768), "out": (768, 768)}
SHAPES |= {"fc1": (3072, 768), "fc2": (768, 3072)}
THEIRS = ("iso-c", "iso-cts", "tsv-m", "wudi")
Rows = dict[str, "Tensor"]


def main() -> None:
    """Time and compare all methods, and print the table."""
    options = _options()
    torch.set_num_threads(options.threads)
    rows = _task_vectors(options.experts, options.blocks)
    with tempfile.TemporaryDirectory() as directory:
        theirs = _FusionBench(Path(directory), rows, options) if options.fusion_bench else None
        _compare(rows, theirs, options)
        if theirs:
            theirs.stop()
    polar = _seconds(lambda: [newton_schulz(vectors.sum(0)) for vectors in rows.values()])[0]
    every = _seconds(
        lambda: [torch.linalg.svd(row, full_matrices=False) for row in _matrices(rows)]
    )[0]
    print(f"\nPolar factors of all sums by Newton-Schulz take {polar:.2f} s.")
    print(f"An SVD of every expert's matrix takes {every:.2f} s.")


def _compare(rows: Rows, theirs: _FusionBench | None, options: argparse.Namespace) -> None:
    plain: dict[str, Callable[[Tensor], Tensor]] = {
        "iso-c": iso_c,
        "iso-cts": iso_cts,
        "tsv-m": tsv_m,
        "star": star,
        "cart": cart,
        "wudi": partial(wudi, steps=options.steps),
    }
    headings = "method | ours | plain | plain / ours | largest difference"
    print(f"| {headings} | FusionBench | FusionBench / ours | largest difference |\n|" + "---|" * 8)
    for name in options.methods or plain:
        section = {"name": name} | ({"steps": options.steps} if name == "wudi" else {})
        taken: dict[str, list[float]] = defaultdict(list)
        for _ in range(options.repeats):
            merged = _timed(taken["ours"], partial(_merged, rows, section))
            expected = _timed(taken["plain"], partial(_apply, plain[name], rows))
            differences = [_worst(merged, expected)]
            if theirs and name in THEIRS:
                differences.append(_worst(theirs.merged(name, taken["theirs"]), expected))
        _print(name, taken, differences)


def _apply(plain: Callable[[Tensor], Tensor], rows: Rows) -> Rows:
    return {name: plain(vectors) for name, vectors in rows.items()}


def _timed(taken: list[float], work: Callable[[], Rows]) -> Rows:
    seconds, merged = _seconds(work)
    taken.append(seconds)
    return merged


def _worst(merged: Rows, expected: Rows) -> float:
    return max(_difference(merged[name], tensor) for name, tensor in expected.items())


def _print(name: str, taken: dict[str, list[float]], differences: list[float]) -> None:
    ours = statistics.median(taken.pop("ours"))
    cells = [name, f"{ours:.2f} s"]
    for times, worst in zip(taken.values(), differences, strict=True):
        other = statistics.median(times)
        cells += [f"{other:.2f} s", f"{other / ours:.2f}", f"{worst:.0e}"]
    print(f"| {' | '.join(cells)} |", flush=True)


class _FusionBench:
    """FusionBench in its own process, which makes one merge per request."""

    def __init__(self, directory: Path, rows: Rows, options: argparse.Namespace) -> None:
        self._found = directory / "found.safetensors"
        experts = {
            f"{number}/{name}": row.contiguous()
            for name, vectors in rows.items()
            for number, row in enumerate(vectors)
        }
        save_file(experts, directory / "experts.safetensors")
        script = Path(__file__).with_name("spectral_fusionbench.py")
        command = [options.fusion_bench / "bin" / "python", script, directory]
        command += [options.threads, options.steps]
        self._process = subprocess.Popen(
            [str(argument) for argument in command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            bufsize=1,
        )
        self._read_line("ready")

    def _read_line(self, wanted: str = "") -> str:
        """Read the next line of output, skipping those printed at import."""
        for line in self._process.stdout or ():
            word = line.strip()
            if word == wanted if wanted else word.replace(".", "").isdigit():
                return word
        raise SystemExit("FusionBench's process ended")

    def merged(self, name: str, taken: list[float]) -> Rows:
        """Return FusionBench's merge by a method, and record its time."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{name}\n")
        taken.append(float(self._read_line()))
        return load_file(self._found)

    def stop(self) -> None:
        """End the process."""
        self._process.communicate()


def _merged(rows: Rows, section: dict[str, Any]) -> Rows:
    experts: dict[str, Rows] = defaultdict(dict)
    for name, vectors in rows.items():
        for number, row in enumerate(vectors):
            experts[f"e{number}"][name] = row
    base = {name: torch.zeros_like(vectors[0]) for name, vectors in rows.items()}
    merged = merge(section, {"base": base, "models": dict(experts)})
    return {name: merged.tensor(name) for name in rows}


def iso_c(tasks: Tensor) -> Tensor:
    """Merge by one SVD."""
    left, values, right = torch.linalg.svd(tasks.sum(0), full_matrices=False)
    return values.mean() * left @ right


def newton_schulz(matrix: Tensor) -> Tensor:
    """Return the polar factor to 1e-4, by iterations of two products each."""
    if matrix.shape[0] < matrix.shape[1]:
        return newton_schulz(matrix.mT).mT
    factor, eye = matrix / matrix.norm(), torch.eye(matrix.shape[1])
    while (gram := factor.mT @ factor).sub(eye).norm() > 1e-4 * eye.norm():
        factor = 1.5 * factor - 0.5 * factor @ gram
    return factor


def tsv_m(tasks: Tensor) -> Tensor:
    """Merge by one SVD per expert, and two of the joined bases."""
    rank = min(tasks.shape[1:]) // len(tasks)
    parts = [torch.linalg.svd(task, full_matrices=False) for task in tasks]
    left, _, turned = torch.linalg.svd(torch.cat([u[:, :rank] for u, _, _ in parts], 1), False)
    other, _, right = torch.linalg.svd(torch.cat([v[:rank] for _, _, v in parts]), False)
    values = torch.cat([s[:rank] for _, s, _ in parts])
    return (left @ turned * values) @ (other @ right)


def iso_cts(tasks: Tensor) -> Tensor:
    """Merge by SVDs of the sum, of each expert's remainder, and of the joined bases."""
    rank = min(tasks.shape[1:])
    per_task = min(round((rank - int(rank * 0.8)) / len(tasks)), rank // len(tasks))
    common = [
        component[..., : rank - per_task * len(tasks)] for component in _components(tasks.sum(0))
    ]
    outside = [task - common[0] @ (common[0].mT @ task) for task in tasks]
    parts = [[component[..., :per_task] for component in _components(task)] for task in outside] + [
        common
    ]
    left, values, right = (torch.cat(factors, -1) for factors in zip(*parts, strict=True))
    return values.mean() * _orthonormal(left) @ _orthonormal(right).mT


def _components(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    return left, values, right.mT


def _orthonormal(matrix: Tensor) -> Tensor:
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    return left @ right


def star(tasks: Tensor) -> Tensor:
    """Merge by one SVD per expert."""
    return torch.stack([_cut(task, 0.4) for task in tasks]).mean(0)


def _cut(task: Tensor, keep: float) -> Tensor:
    left, values, right = _components(task)
    rank = int((values.cumsum(0) < keep * values.sum()).sum()) + 1
    scaled = values[:rank] * (values.sum() / values[:rank].sum())
    return left[:, :rank] * scaled @ right[:, :rank].mT


def cart(experts: Tensor) -> Tensor:
    """Merge by one SVD per expert, of its difference from the mean."""
    centre, rank = experts.mean(0), int(0.08 * min(experts.shape[1:]))
    total = centre.clone()
    for expert in experts:
        left, values, right = _components(expert - centre)
        total += left[:, :rank] * values[:rank] @ right[:, :rank].mT
    return total


def wudi(tasks: Tensor, steps: int) -> Tensor:
    """Merge by autograd over all experts' products."""
    merged = tasks.sum(0).requires_grad_()
    optimizer = torch.optim.Adam([merged], lr=1e-5)
    squares = tasks.square().sum((1, 2))
    for _ in range(steps):
        optimizer.zero_grad()
        products = (merged - tasks) @ tasks.mT
        (products.square().sum((1, 2)) / squares).sum().backward()
        optimizer.step()
    return merged.detach()


def _task_vectors(experts: int, blocks: int) -> Rows:
    draw = torch.Generator().manual_seed(0)
    return {
        f"{block}.{name}": 1e-3 * torch.randn(experts, *shape, generator=draw)
        for block in range(blocks)
        for name, shape in SHAPES.items()
    }


def _matrices(rows: Rows) -> list[Tensor]:
    return [row for vectors in rows.values() for row in vectors]


def _seconds(work: Callable[[], Any]) -> tuple[float, Any]:
    start = time.process_time()
    result = work()
    return time.process_time() - start, result


def _difference(merged: Tensor, expected: Tensor) -> float:
    return float((merged - expected).abs().max() / expected.abs().max())


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--experts", type=int, default=8)
    parser.add_argument("--blocks", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--methods", nargs="+", help="names; default: all")
    parser.add_argument("--fusion-bench", type=Path, help="a virtual environment that has it")
    return parser.parse_args()


if __name__ == "__main__":
    main()
