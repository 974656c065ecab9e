"""Configurations of mergekit's users in both tools, compared with the exact result, entry by entry.

Fifty configurations are random, from a fixed seed, for models of five architectures. The others are
files as people write them, `configurations/*.yml`: mergekit's own examples, written anew, and those
of a hub. mergekit runs every configuration twice: as it is, and in fp64, which is the exact result.

An entry of ours may be one unit in the last place of its dtype off, and one of fp32's for the terms
of which it is the sum: where they cancel, the result's own unit is smaller than their rounding.
Where mergekit computes in fp32, the same holds between both tools. Where it computes in half
precision, ours is the nearer one, or the configuration is a known difference.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
import yaml
from parity_configurations import generate
from parity_models import HUB, write_hub, write_models
from safetensors.torch import load_file

from fusion_core import run_fusion
from fusion_core.commands import load_recipe

PYTHON = Path(os.environ["FUSION_MERGEKIT"]) / "bin" / "python"
FILES = sorted(Path(__file__).with_name("configurations").glob("*.yml"))
GENERATED = {case.name: case for case in generate(50)}
NAMES = [*GENERATED, *(path.stem for path in FILES)]
#: configurations that drop entries at random
RANDOM = {"dare-ties-int8", "della-union"}
#: methods whose results depend on whole tensors, and which treat each expert of a mixture as one,
#: where mergekit has one packed tensor of all of them
BY_TENSOR = ("ties", "sce", "slerp", "nuslerp", "multislerp", "karcher", "model_stock", "arcee")
BY_TENSOR += ("breadcrumbs", "ramplus")
TEXTS = ["models are merged", "<|user|>whatever<|a|> the numbers</s>", ""]
FP32 = torch.finfo(torch.float32).eps


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write all models and configurations, and run mergekit on them."""
    root = tmp_path_factory.mktemp("parity")
    write_models(root)
    write_hub(root / "hub")
    for name, case in GENERATED.items():
        _write(root, name, [_locate(case.configuration, root / case.architecture)])
    for path in FILES:
        documents = yaml.safe_load_all(path.read_text())
        _write(root, path.stem, [_locate(document, root / "hub") for document in documents])
    script = Path(__file__).with_name("mergekit_recipes.py")
    subprocess.run([PYTHON, script, root], check=True)
    return root


def _write(root: Path, name: str, documents: list[dict[str, Any]]) -> None:
    exact = [{**document, "dtype": "float64", "out_dtype": "float64"} for document in documents]
    for stem, content in {name: documents, f"{name}.exact": exact}.items():
        text = yaml.safe_dump_all(content, sort_keys=False, explicit_start=len(content) > 1)
        (root / f"{stem}.yml").write_text(text)


def _locate(value: Any, folder: Path) -> Any:
    """Return a configuration with absolute paths, by which mergekit remembers models."""
    if isinstance(value, list):
        return [_locate(item, folder) for item in value]
    if not isinstance(value, dict):
        return value
    return {
        key: "+".join(
            str(folder / part) if part in {*HUB, "lora"} else part for part in item.split("+")
        )
        if key in {"model", "base_model", "source"} and isinstance(item, str)
        else _locate(item, folder)
        for key, item in value.items()
    }


@pytest.mark.parametrize("name", NAMES)
def test_a_configuration_gives_the_exact_result(
    directory: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(directory)
    run_fusion(load_recipe(f"{name}.yml"), output=f"ours/{name}")
    ours, theirs, exact = (
        _load(Path(run)) for run in (f"ours/{name}", f"theirs/{name}", f"theirs/{name}.exact")
    )
    assert ours.keys() == theirs.keys()
    rows = _match_rows(name)
    for key, tensor in ours.items():
        assert (tensor.dtype, tensor.shape) == (theirs[key].dtype, theirs[key].shape), key
        if name in RANDOM or _is_merged_otherwise(name, key):
            continue
        here, there = rows.get(key, (slice(None), slice(None)))
        reference = exact[key].double()[there]
        assert _count_units(tensor[here], reference) <= 1, key
        if _computes_in_fp32(name):
            other = theirs[key][there]
            assert _count_units(tensor[here].double() - other.double() + reference, reference, other.dtype) <= 1, key
    _check_side_files(name)
