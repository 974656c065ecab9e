"""Runs with kernels and without: the same files, and a record of what ran."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import save_file

from fusion_core import RunOptions, check, plan, run_fusion
from fusion_core.errors import IntegrityError, RecipeError
from fusion_core.weights import (
    CheckpointSource,
    Linear,
    MergedSource,
    Operands,
    StateDictSource,
    WeightSource,
)
from fusion_kernels.plugin import fusion_register_kernels

if TYPE_CHECKING:
    from collections.abc import Sequence

#: The memory of kernels, which `pcb` has in its survey alone.
_LOADED = 50 * 2**20
#: What a kernel that serves the merge saves: three tenths of the 56 MiB of torch's operations.
_SAVED = 17_616_078
_KERNELS = {
    function: (spec.name, spec.target)
    for spec in fusion_register_kernels()
    for function in spec.replaces
}
_METHODS: list[Any] = [
    "simple-average",
    "model-stock",
    "task-arithmetic",
    "ties",
    {"name": "dare", "rescale": "l1"},
    {"name": "della", "rescale": "l1"},
    "breadcrumbs",
    {"name": "sce", "density": 0.4},
    "magmax",
    "consensus",
    ["elect", "ties"],
]


@pytest.fixture
def models(tmp_path: Path) -> dict[str, str]:
    """Write a base in bf16 and three experts in bf16, fp16 and fp32, with an fp64 tensor each.

    A matrix has more than two blocks.
    """
    generator = torch.Generator().manual_seed(3)
    paths = {}
    dtypes = {
        "base": torch.bfloat16,
        "one": torch.bfloat16,
        "two": torch.float16,
        "three": torch.float32,
    }
    base = torch.randn(1100, 1000, generator=generator)
    for name, dtype in dtypes.items():
        tensors = {
            "matrix.weight": (base + 0.1 * torch.randn(1100, 1000, generator=generator)).to(dtype),
            "wide.weight": torch.randn(40, generator=generator, dtype=torch.float64),
            "steps": torch.tensor(3),
        }
        path = tmp_path / name / "model.safetensors"
        path.parent.mkdir()
        save_file(tensors, path)
        paths[name] = str(path.parent)
    return paths


def _run(algorithm: Any, models: dict[str, str], output: Path, workers: int) -> dict[str, Any]:
    base, *experts = models
    run_fusion(
        algorithm=algorithm,
        model_pool={"base": models[base], "models": {name: models[name] for name in experts}},
        output=output,
        options=RunOptions(evaluate=False, workers=workers),
    )
    provenance: dict[str, Any] = json.loads((output / "provenance.json").read_text())["predicate"]
    return provenance


@pytest.mark.sampled(6)
@pytest.mark.parametrize("algorithm", _METHODS, ids=str)
def test_a_run_has_the_same_tensors(
    algorithm: Any, models: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FUSION_KERNELS", "compiled")
    fast = _run(algorithm, models, tmp_path / "fast", workers=2)
    monkeypatch.setenv("FUSION_KERNELS", "torch")
    plain = _run(algorithm, models, tmp_path / "plain", workers=1)
    assert fast["outputs"]["tensors_blake3"] == plain["outputs"]["tensors_blake3"]
    assert plain["kernels"] == {}
    assert set(fast["kernels"].values()) == {1}  # the fp64 tensor is left to torch


def test_a_small_merge_does_not_wait_for_a_compiler(models: dict[str, str], tmp_path: Path) -> None:
    assert _run("ties", models, tmp_path / "out", workers=1)["kernels"] == {}


def test_an_unknown_value_of_the_environment_is_an_error(
    models: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FUSION_KERNELS", "off")
    with pytest.raises(RecipeError, match="FUSION_KERNELS: 'off'") as raised:
        _run("ties", models, tmp_path / "out", workers=1)
    assert "torch or compiled" in str(raised.value.hint)
    assert not (tmp_path / "out").exists()


def test_events_name_the_kernels_that_ran(
    models: dict[str, str], tmp_path: Path, run_fuse: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FUSION_KERNELS", "compiled")
    pool = json.dumps({"base": models["base"], "models": [models["one"]]})
    events = tmp_path / "events.jsonl"
    run_fuse(
        *("run", "--algo", "simple-average", "--set", f"model_pool={pool}", "--no-eval"),
        *("-o", str(tmp_path / "out"), "--events", str(events)),
    )
    written = [json.loads(line) for line in events.read_text().splitlines()]
    (kernels,) = (event["tensors"] for event in written if event["event"] == "kernels")
    assert kernels == {"fusion-kernels/average": 1}


@pytest.mark.parametrize(
    ("algorithm", "added"), [("ties", _LOADED - _SAVED), ("pcb", _LOADED), ("emr", 0)]
)
def test_a_check_counts_the_memory_of_kernels(
    algorithm: str, added: int, models: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = {"base": models["base"], "models": [models["one"], models["two"]]}
    planned = plan({"algorithm": algorithm, "model_pool": pool}, RunOptions(evaluate=False))
    merging = {}
    for kernels in ("compiled", "torch"):
        monkeypatch.setenv("FUSION_KERNELS", kernels)
        merging[kernels] = check(planned).memory.merge
    assert merging["compiled"] - merging["torch"] == added


def test_a_file_that_ends_early_raises_the_error_of_its_reader(
    models: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FUSION_KERNELS", "compiled")
    sources = _open(models)
    os.truncate(Path(models["two"]) / "model.safetensors", 2**19)
    for kernels in (_KERNELS, {}):
        merged = _sum(sources, kernels)
        with pytest.raises(IntegrityError, match=r"two.*ends inside tensor 'matrix.weight'"):
            merged.tensor("matrix.weight")


def test_a_kernel_that_reads_files_takes_two_blocks_at_once(
    models: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FUSION_KERNELS", "compiled")
    sources = _open(models)
    in_memory = [
        StateDictSource({name: source.tensor(name) for name in source.infos}) for source in sources
    ]
    first = {
        label: next(iter(merged.ranges("matrix.weight")))
        for label, merged in {
            "files": _sum(sources, _KERNELS),
            "memory": _sum(in_memory, _KERNELS),
            "torch": _sum(sources, {}),
        }.items()
    }
    assert first == {"files": (0, 2**20), "memory": (0, 2**19), "torch": (0, 2**19)}


def _open(models: dict[str, str]) -> list[WeightSource]:
    return [CheckpointSource(Path(path)) for path in models.values()]


def _sum(sources: Sequence[WeightSource], kernels: dict[str, tuple[str, str]]) -> MergedSource:
    base, *experts = sources
    operands = Operands(base, dict(zip("xyz", experts, strict=True)), kernels=kernels)
    return MergedSource(Linear((0.3, 0.3, 0.3)), operands)
