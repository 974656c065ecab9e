from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING

import pytest
import torch
from blake3 import blake3
from safetensors.torch import save_file

from fusion_core.planning.run_plan import count_tensors
from fusion_core.plugins.manager import load_plugins
from fusion_core.recipe.config import AlignmentPolicy
from fusion_core.running import _provenance as provenance
from fusion_core.weights import (
    CheckpointSource,
    StateDictSource,
    materialise,
    source,
    stage_output,
)
from pools_checkpoints import CheckpointsConfig, CheckpointsPool

if TYPE_CHECKING:
    from pathlib import Path

    from conftest import Site
    from fusion_core.weights import WeightSource

pytestmark = pytest.mark.plugins

STATE = {"b": torch.arange(6.0).reshape(2, 3), "a": torch.tensor(3), "e": torch.zeros(0, 2)}


def tensors_digest(tensors: WeightSource, output: Path, shard_size: int = 10**9) -> str:
    with stage_output(output) as staging:
        materialise(tensors, staging, shard_size=shard_size)
        return staging.tensors_digest


def test_tensors_digest_covers_names_dtypes_shapes_and_bytes(tmp_path: Path) -> None:
    def of_bytes(data: bytes) -> str:
        return blake3(data).hexdigest()

    lines = (
        f"a I64 [] {of_bytes((3).to_bytes(8, 'little'))}\n"
        f"b F32 [2,3] {of_bytes(bytes(STATE['b'].view(torch.uint8).flatten().tolist()))}\n"
        f"e F32 [0,2] {of_bytes(b'')}\n"
    )
    assert tensors_digest(StateDictSource(STATE), tmp_path / "out") == of_bytes(lines.encode())


@pytest.mark.parametrize(
    "change",
    [
        {"a": torch.tensor(4)},
        {"a": torch.tensor(3, dtype=torch.int32)},
        {"b": STATE["b"].reshape(3, 2)},
        {"b": STATE["b"].flatten()},
        {"c": torch.tensor(3)},
        {"e": torch.zeros(2, 0)},
    ],
)
def test_every_change_of_a_tensor_changes_the_digest(
    tmp_path: Path, change: dict[str, torch.Tensor]
) -> None:
    one = tensors_digest(StateDictSource(STATE), tmp_path / "out")
    assert one != tensors_digest(StateDictSource({**STATE, **change}), tmp_path / "out")


def test_digest_is_independent_of_order_blocks_and_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "out"
    one = tensors_digest(StateDictSource(STATE), output)
    assert tensors_digest(StateDictSource(dict(reversed(STATE.items()))), output) == one
    assert tensors_digest(StateDictSource(STATE), output, shard_size=1) == one
    save_file(STATE, tmp_path / "model.safetensors")
    assert tensors_digest(CheckpointSource(tmp_path), output) == one
    monkeypatch.setattr(source, "BLOCK", 2)
    assert tensors_digest(StateDictSource(STATE), output) == one


@pytest.mark.parametrize("shard_size", [1, 10**9])
def test_every_output_file_is_hashed(tmp_path: Path, shard_size: int) -> None:
    with stage_output(tmp_path / "out") as staging:
        materialise(StateDictSource(STATE), staging, shard_size=shard_size)
        staging.add("config.json", b"{}")
        outputs = provenance.describe_outputs(staging)
        assert outputs["tensors_blake3"] == staging.tensors_digest
        staging.commit(overwrite=False)
    written = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert list(outputs["files"]) == sorted(written)
    for name, content in written.items():
        header = 8 + int.from_bytes(content[:8], "little")
        is_shard = name.endswith(".safetensors")
        key, hashed = ("header_sha256", content[:header]) if is_shard else ("sha256", content)
        digest = hashlib.sha256(hashed).hexdigest()
        assert outputs["files"][name] == {"bytes": len(content), key: digest}


def test_every_tensor_is_counted() -> None:
    expert = {**STATE, "head": torch.ones(1), "other": torch.ones(1)}
    pool = CheckpointsPool(CheckpointsConfig(base=STATE, models={"x": expert, "y": expert}))
    aligned = pool.aligned(AlignmentPolicy(extra="drop"))
    counts = count_tensors(aligned, StateDictSource(STATE))
    assert counts == {"merged": 2, "copied": 1, "dropped": 2}


def test_environment_names_versions_and_used_plugins() -> None:
    environment = provenance.describe_environment(
        {"fusion-core", "fusion-ties"}, load_plugins().plugins, torch.device("cpu")
    )
    assert environment["versions"].keys() == {"fusion-core", "python", "torch"}
    assert environment["versions"]["torch"] == torch.__version__
    assert environment["plugins"] == {"fusion-core": "0.1.0", "fusion-ties": "0.1.0"}
    assert environment["device"] == "cpu"
    json.dumps(environment)


def test_environment_names_libraries_of_plugins(site: Site) -> None:
    core = "fusion-core>=0.1"
    site.install("line-base", "", version="0.3", requires=(core,), entry_points={})
    site.install("line-tools", "", version="0.2", requires=(core, "line_base"), entry_points={})
    site.install("line-method", "", requires=(core, "line-tools>=0.1", "torch"))
    environment = provenance.describe_environment(
        {"line-method"}, load_plugins().plugins, torch.device("cpu")
    )
    assert environment["plugins"] == {"line-base": "0.3", "line-method": "1.0", "line-tools": "0.2"}
    environment = provenance.describe_environment(
        {"pools-mini"}, load_plugins().plugins, torch.device("cpu")
    )
    libraries = {"fusion-adapting", "pools-checkpoints"}
    assert environment["plugins"].keys() == {*libraries, "pools-clip", "pools-mini"}


def test_statement_separates_timings() -> None:
    statement = provenance.build_statement({"a": 1}, {"seconds": 2})
    assert statement == {"schema": 1, "a": 1, "timings": {"seconds": 2}}
