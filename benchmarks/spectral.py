"""Spectral methods against their plain forms, on matrices of ViT-B/32's shapes, in one run.

    python benchmarks/spectral.py --experts 8 --blocks 1 --repeats 3

Weights are random; a block has four matrices of 768 x 768 and two of 3072 x 768, and the tower has
twelve alike, so ratios do not depend on `--blocks`. Timed, interleaved, with the same number of
threads and without files:

- `iso-c` against the SVD of each matrix's sum, and beside Newton-Schulz and one SVD of every
  expert's matrix;
- `tsv-m` against its authors' SVDs: one a matrix and expert, and two of the joined bases;
- `wudi` against its 2 K products a step (`--steps` of them).

Every result is compared with the plain one, relative to the largest entry. Prints medians and
ratios: times of different machines do not compare.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections import defaultdict
from typing import TYPE_CHECKING, Any

import torch

from fusion_core import merge

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

SHAPES = {"q": (768, 768), "k": (768, 768), "v": (768, 768), "out": (768, 768)}
SHAPES |= {"fc1": (3072, 768), "fc2": (768, 3072)}
Rows = dict[str, "Tensor"]


def main() -> None:
    """Time everything, compare, print the table."""
    options = _options()
    torch.set_num_threads(options.threads)
    rows = _task_vectors(options.experts, options.blocks)
    pairs = {
        "iso-c": ({"name": "iso-c"}, iso_c),
        "tsv-m": ({"name": "tsv-m"}, tsv_m),
        "wudi": (
            {"name": "wudi", "steps": options.steps},
            lambda tasks: wudi(tasks, options.steps),
        ),
    }
    print("| method | ours | plain | plain / ours | largest difference |\n|---|---|---|---|---|")
    for name, (section, plain) in pairs.items():
        _print(name, *_timed(rows, section, plain, options.repeats))
    polar = _seconds(lambda: [newton_schulz(each.sum(0)) for each in rows.values()])[0]
    every = _seconds(
        lambda: [torch.linalg.svd(row, full_matrices=False) for row in _matrices(rows)]
    )[0]
    print(f"\nPolar factors of all sums by Newton-Schulz take {polar:.2f} s.")
    print(f"An SVD of every expert's matrix takes {every:.2f} s.")


def _timed(
    rows: Rows, section: dict[str, Any], plain: Callable[[Tensor], Tensor], repeats: int
) -> tuple[list[float], list[float], float]:
    ours, theirs, worst = [], [], 0.0
    for _ in range(repeats):
        seconds, found = _seconds(lambda: _merged(rows, section))
        ours.append(seconds)
        seconds, expected = _seconds(lambda: {name: plain(each) for name, each in rows.items()})
        theirs.append(seconds)
        worst = max(_difference(found[name], each) for name, each in expected.items())
    return ours, theirs, worst


def _print(name: str, ours: list[float], plain: list[float], worst: float) -> None:
    one, other = statistics.median(ours), statistics.median(plain)
    print(f"| {name} | {one:.2f} s | {other:.2f} s | {other / one:.2f} | {worst:.0e} |", flush=True)


def _merged(rows: Rows, section: dict[str, Any]) -> Rows:
    experts: dict[str, Rows] = defaultdict(dict)
    for name, each in rows.items():
        for number, row in enumerate(each):
            experts[f"e{number}"][name] = row
    base = {name: torch.zeros_like(each[0]) for name, each in rows.items()}
    found = merge(section, {"base": base, "models": dict(experts)})
    return {name: found.tensor(name) for name in rows}


def iso_c(tasks: Tensor) -> Tensor:
    """By one SVD."""
    left, values, right = torch.linalg.svd(tasks.sum(0), full_matrices=False)
    return values.mean() * left @ right


def newton_schulz(matrix: Tensor) -> Tensor:
    """Return the polar factor, to 1e-4, by as many iterations of two products as that needs."""
    if matrix.shape[0] < matrix.shape[1]:
        return newton_schulz(matrix.mT).mT
    found, eye = matrix / matrix.norm(), torch.eye(matrix.shape[1])
    while (gram := found.mT @ found).sub(eye).norm() > 1e-4 * eye.norm():
        found = 1.5 * found - 0.5 * found @ gram
    return found


def tsv_m(tasks: Tensor) -> Tensor:
    """By an SVD an expert, and two of the joined bases."""
    kept = min(tasks.shape[1:]) // len(tasks)
    parts = [torch.linalg.svd(task, full_matrices=False) for task in tasks]
    left, _, turned = torch.linalg.svd(torch.cat([u[:, :kept] for u, _, _ in parts], 1), False)
    other, _, right = torch.linalg.svd(torch.cat([v[:kept] for _, _, v in parts]), False)
    values = torch.cat([s[:kept] for _, s, _ in parts])
    return (left @ turned * values) @ (other @ right)


def wudi(tasks: Tensor, steps: int) -> Tensor:
    """By autograd over all experts' products."""
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
    return [row for each in rows.values() for row in each]


def _seconds(work: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    found = work()
    return time.perf_counter() - start, found


def _difference(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max())


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--experts", type=int, default=8)
    parser.add_argument("--blocks", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


if __name__ == "__main__":
    main()
