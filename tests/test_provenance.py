from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING

import pytest
import torch
from safetensors.torch import save_file

from fusion_core import provenance
from fusion_core.checkpoints import CheckpointsPool
from fusion_core.checkpoints_config import CheckpointsConfig
from fusion_core.config import AlignmentPolicy
from fusion_core.plugins import load_plugins
from fusion_core.weights import CheckpointSource, StateDictSource, source

if TYPE_CHECKING:
    from pathlib import Path

STATE = {"b": torch.arange(6.0).reshape(2, 3), "a": torch.tensor(3), "e": torch.zeros(0, 2)}


def test_the_tensors_digest_is_over_names_dtypes_shapes_and_bytes() -> None:
    digest = hashlib.sha256()
    digest.update(b"a\0torch.int64\0[]\0" + (3).to_bytes(8, "little"))
    digest.update(
        b"b\0torch.float32\0[2, 3]\0" + bytes(STATE["b"].view(torch.uint8).flatten().tolist())
    )
    digest.update(b"e\0torch.float32\0[0, 2]\0")
    assert provenance.tensor_digest(StateDictSource(STATE)) == digest.hexdigest()


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
def test_every_change_changes_the_digest(change: dict[str, torch.Tensor]) -> None:
    one = provenance.tensor_digest(StateDictSource(STATE))
    assert one != provenance.tensor_digest(StateDictSource({**STATE, **change}))


def test_the_digest_depends_on_neither_order_nor_blocks_nor_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = provenance.tensor_digest(StateDictSource(STATE))
    assert provenance.tensor_digest(StateDictSource(dict(reversed(STATE.items())))) == one
    save_file(STATE, tmp_path / "model.safetensors")
    assert provenance.tensor_digest(CheckpointSource(tmp_path)) == one
    monkeypatch.setattr(source, "BLOCK", 2)
    assert provenance.tensor_digest(StateDictSource(STATE)) == one


def test_outputs_are_hashed_one_by_one(tmp_path: Path) -> None:
    save_file(STATE, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_bytes(b"{}")
    (tmp_path / "folder").mkdir()
    found = provenance.outputs(tmp_path)
    assert list(found["files"]) == ["config.json", "model.safetensors"]
    assert found["files"]["config.json"] == {
        "bytes": 2,
        "sha256": hashlib.sha256(b"{}").hexdigest(),
    }
    assert found["tensors_sha256"] == provenance.tensor_digest(StateDictSource(STATE))


def test_every_tensor_is_accounted_for() -> None:
    expert = {**STATE, "head": torch.ones(1), "other": torch.ones(1)}
    pool = CheckpointsPool(CheckpointsConfig(base=STATE, models={"x": expert, "y": expert}))
    aligned = pool.aligned(AlignmentPolicy(extra="drop"))
    found = provenance.counts(aligned, StateDictSource(STATE))
    assert found == {"merged": 2, "copied": 1, "dropped": 2}


def test_the_environment_names_versions_and_the_plugins_in_use() -> None:
    found = provenance.environment(
        {"fusion-core", "fusion-ties"}, load_plugins().plugins, torch.device("cpu")
    )
    assert found["versions"].keys() == {"fusion-core", "python", "torch"}
    assert found["versions"]["torch"] == torch.__version__
    assert found["plugins"] == {"fusion-core": "0.1.0", "fusion-ties": "0.1.0"}
    assert found["device"] == "cpu"
    json.dumps(found)


def test_a_statement_keeps_timings_apart() -> None:
    found = provenance.statement({"a": 1}, {"seconds": 2})
    assert found == {"schema": 1, "a": 1, "timings": {"seconds": 2}}
