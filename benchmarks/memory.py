"""Compare the peak memory of every method that needs no data with the estimate of `fuse check`.

    nox -s memory -- --sizes small middle --methods tsv-m ties

Each merge runs in its own process. Its peak is measured above the same process just before the
merge, and compared with the estimate without "Python and torch". A merge that compiled kernels, as
a machine's first one does, is repeated. Exits with 1 if an estimate is off by more than a factor of
1.3 and is not called a lower bound.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from measuring import MB, child, headings, row

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    #: a method's name, a size, the number of workers, and a recipe
    Case = tuple[str, str, int, dict[str, Any]]

_CHILDREN = Path(__file__).with_name("memory_children.py")
#: The largest accepted factor, and a difference that the allocator can cause.
_FACTOR, _SMALL = 1.3, 30 * MB
#: Options that a method needs, or that shorten it without changing its memory.
_OPTIONS: dict[str, dict[str, Any]] = {
    "wudi": {"steps": 30},
    "doge": {"steps": 30},
    "moe": {"gate": "random"},
    "passthrough": {"model": "x"},
    "stack": {"slices": [{"model": "x", "layers": [0, 2]}, {"model": "y", "layers": [1, 3]}]},
}
_EXPERTS = ("x", "y", "z")


def main() -> None:
    """Measure all methods, and print a table."""
    arguments = _parsed()
    with tempfile.TemporaryDirectory(dir=arguments.directory) as name:
        models = arguments.models or Path(name)
        missing = [size for size in arguments.sizes if not (models / size).exists()]
        child(_CHILDREN, "build", str(models), *missing)
        print(headings(["method", "size", "estimated", "taken", "ratio", "verdict"]))
        verdicts = [_shown(*case, Path(name)) for case in _cases(arguments, models)]
    if "off" in verdicts:
        sys.exit(f"{verdicts.count('off')} estimates are off by more than a factor of {_FACTOR}")


def _parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", nargs="+", default=["small", "middle", "large"])
    parser.add_argument("--methods", nargs="+", help="default: every method without data")
    parser.add_argument("--workers", type=int, nargs="+", default=[2])
    parser.add_argument("--directory", help="where models and merges are written")
    parser.add_argument("--models", type=Path, help="keep the models there for another time")
    return parser.parse_args()


def _cases(arguments: argparse.Namespace, models: Path) -> Iterator[Case]:
    known = json.loads(child(_CHILDREN, "methods"))
    for size in arguments.sizes:
        for name in arguments.methods or known:
            stages, most = known[name]
            names = _EXPERTS[:most]
            for workers in arguments.workers:
                yield name, size, workers, _recipe(stages, models / size, names)


def _recipe(stages: Sequence[str], models: Path, experts: Sequence[str]) -> dict[str, Any]:
    return {
        "algorithm": [{"name": stage, **_OPTIONS.get(stage, {})} for stage in stages],
        "model_pool": {
            "name": "checkpoints",
            "base": str(models / "base"),
            "models": {name: str(models / name) for name in experts},
        },
    }


def _shown(name: str, size: str, workers: int, recipe: dict[str, Any], directory: Path) -> str:
    """Run a recipe in its own process, print a row, and return the verdict."""
    path, output = directory / "recipe.json", directory / "merged"
    path.write_text(json.dumps({**recipe, "output": {"path": str(output)}}))
    measured = _merged(path, output, workers)
    if measured["compiles"]:
        measured = _merged(path, output, workers)
    estimate, taken = measured["estimate"], measured["peak"] - measured["bare"]
    verdict = _verdict(estimate, taken, at_least=measured["at_least"])
    label = size if workers == 2 else f"{size}, {workers} workers"
    cells = [name, label, f"{estimate / MB:,.0f} MB", f"{taken / MB:,.0f} MB"]
    print(row([*cells, f"{taken / estimate:.2f}", verdict]), flush=True)
    return verdict


def _merged(recipe: Path, output: Path, workers: int) -> dict[str, Any]:
    measured: dict[str, Any] = json.loads(child(_CHILDREN, "merge", str(recipe), str(workers)))
    shutil.rmtree(output)
    return measured


def _verdict(estimate: int, taken: int, *, at_least: bool) -> str:
    ratio = max(taken / estimate, estimate / taken)
    if ratio <= _FACTOR or abs(taken - estimate) <= _SMALL:
        return "within"
    return "at least" if at_least and taken >= estimate else "off"


if __name__ == "__main__":
    main()
