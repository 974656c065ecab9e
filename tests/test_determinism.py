"""One recipe, one result: whatever the workers, the executor, the shards and the blocks.

Every installed algorithm is run; `nox -s fuzz` tries three times as many settings of each.
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from fusion_core import run_fusion
from fusion_core.commands import read_provenance
from fusion_core.contracts.specs import AlgorithmSpec
from fusion_core.planning.run_options import RunOptions
from fusion_core.plugins.manager import load_plugins
from fusion_core.weights import source

pytestmark = pytest.mark.plugins


@dataclass(frozen=True)
class Setting:
    """How a run is carried out: nothing that may change its result."""

    executor: str
    workers: int | None
    shard_size: int = 5_000_000_000
    #: elements in a block; the smaller, the more pieces a tensor is cut into
    block: int = source.BLOCK


FIRST = Setting("serial", None)
OTHERS = [Setting("threads", 2, shard_size=1, block=700)]
NIGHTLY = [
    Setting(executor, workers, shard, block)
    for (executor, workers), shard, block in itertools.product(
        [("serial", None), ("threads", 2), ("threads", 4)],
        [5_000_000_000, 9_000],
        [source.BLOCK, 999],
    )
]
SETTINGS = OTHERS + (NIGHTLY if "FUSION_NIGHTLY" in os.environ else [])
#: Variants beyond an algorithm's defaults, and options that have none.
OPTIONS: dict[str, list[dict[str, Any]]] = {
    "ties": [{"scope": "model"}, {"scope": "tensor", "density": 0.37}],
    **{name: [{"steps": 2, "batch_size": 2}] for name in ("adamerging", "adarank", "symerge")},
    "surgery": [{"steps": 20, "examples": 16}],
    "passthrough": [{"model": "a"}],
    "stack": [{"slices": [{"model": "a", "layers": [0, 2]}, {"model": "b", "layers": [0, 2]}]}],
    "fisher": [{"samples": 4}],
    **{
        name: [{"samples": 8}] for name in ("cat", "featcal", "lot", "regmean", "regmean-plus-plus")
    },
    **{name: [{"steps": 20}] for name in ("doge", "wudi")},
}
#: Needs directories of a known architecture. Its own suite compares executors.
_OF_ARCHITECTURES = {"moe"}
ALGORITHMS = [
    (component.spec, options)
    for component in load_plugins().components(AlgorithmSpec)
    if component.spec.name not in _OF_ARCHITECTURES
    for options in OPTIONS.get(component.spec.name, [{}])
]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Write a base and four experts, in two dtypes, of tensors that any block cuts."""
    directory = tmp_path_factory.mktemp("models")
    generator = torch.Generator().manual_seed(0)
    shapes = {
        "layers.0.matrix": (50, 60),
        "layers.1.wide": (3, 1999),
        "vector": (2500,),
        "scalar": (),
        "last": (9, 9),
    }

    def normal(shape: tuple[int, ...]) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    base = {name: normal(shape) for name, shape in shapes.items()}
    paths = {}
    for model in ("base", "a", "b", "c", "d"):
        state = {n: v if model == "base" else v + 0.1 * normal(v.shape) for n, v in base.items()}
        state["layers.1.wide"] = state["layers.1.wide"].bfloat16()
        paths[model] = str(directory / f"{model}.safetensors")
        save_file({**state, "steps": torch.tensor(3)}, paths[model])
    return paths


def digest(
    spec: AlgorithmSpec, options: dict[str, Any], files: dict[str, str], setting: Setting, out: Path
) -> str:
    """Run an algorithm and return the digest of its tensors."""
    models = {name: path for name, path in files.items() if name != "base"}
    count = min(3, spec.max_experts or 3)
    pool: Any = {"base": files["base"], "models": dict(list(models.items())[:count])}
    if spec.needs_tasks != "none":
        pool = {"name": "mini8", "tasks": ["optdigits", "latin"]}
    stage, ties = {"name": spec.name, **options}, {"name": "ties"}
    pipelines = {"transform": [stage, ties], "merge": stage, "calibrate": [ties, stage]}
    run_fusion(
        algorithm=pipelines[spec.stage],
        model_pool=pool,
        output={"path": str(out), "shard_size": setting.shard_size},
        options=RunOptions(executor=setting.executor, workers=setting.workers, evaluate=False),
    )
    return _digest_of(out)


@pytest.mark.sampled(16)
@pytest.mark.parametrize(
    ("spec", "options"), ALGORITHMS, ids=[f"{s.name} {o or ''}" for s, o in ALGORITHMS]
)
def test_a_result_does_not_depend_on_how_it_was_computed(
    files: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    spec: AlgorithmSpec,
    options: dict[str, Any],
) -> None:
    digests = {}
    for number, setting in enumerate([FIRST, *SETTINGS]):
        monkeypatch.setattr(source, "BLOCK", setting.block)
        digests[setting] = digest(spec, options, files, setting, tmp_path / str(number))
    assert len(set(digests.values())) == 1, digests


def test_the_digest_tells_results_apart(files: dict[str, str], tmp_path: Path) -> None:
    spec = next(spec for spec, _ in ALGORITHMS if spec.name == "task-arithmetic")
    one = digest(spec, {"scale": 0.3}, files, FIRST, tmp_path / "one")
    other = digest(spec, {"scale": 0.3001}, files, FIRST, tmp_path / "other")
    assert one != other


#: Methods that compute every entry by itself: no matrix product, whose rounding depends on kernels.
BY_ENTRY: list[Any] = [
    "simple-average",
    "task-arithmetic",
    "model-stock",
    "ties",
    "dare",
    "della",
    "sce",
    "magmax",
    "breadcrumbs",
    "consensus",
    "emr",
    "ram",
]
_CHILD = """
import json, sys
from fusion_core import RunOptions, run_fusion

for recipe in json.load(sys.stdin):
    run_fusion(recipe, options=RunOptions(evaluate=False))
"""


def test_methods_that_work_by_entry_give_the_same_bytes_on_other_processors(
    files: dict[str, str], tmp_path: Path
) -> None:
    here, there = (
        [_recipe_of(name, files, tmp_path / folder / name) for name in BY_ENTRY]
        for folder in ("here", "there")
    )
    for recipe in here:
        run_fusion(recipe, options=RunOptions(evaluate=False))
    # fused multiply-add is missing from these kernels, and vectors are shorter
    other = {"ATEN_CPU_CAPABILITY": "default", "MKL_CBWR": "COMPATIBLE"}
    command, asked = [sys.executable, "-c", _CHILD], json.dumps(there)
    subprocess.run(command, input=asked, text=True, check=True, env={**os.environ, **other})
    different = [
        name
        for name, *outputs in zip(BY_ENTRY, here, there, strict=True)
        if len({_digest_of(Path(recipe["output"]["path"])) for recipe in outputs}) > 1
    ]
    assert different == []


def _recipe_of(algorithm: str, files: dict[str, str], output: Path) -> dict[str, Any]:
    base, *experts = files
    pool = {"base": files[base], "models": {name: files[name] for name in experts}}
    return {
        "algorithm": algorithm,
        "model_pool": {"name": "checkpoints", **pool},
        "output": {"path": str(output)},
        "seed": 3,
    }


def _digest_of(output: Path) -> str:
    return str(read_provenance(output).outputs.tensors_blake3)
