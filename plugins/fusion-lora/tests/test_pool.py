"""Adapters in the pool `checkpoints`: of live models, and from the hub."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from fusion_core.errors import FusionError
from fusion_core.weights import CheckpointSource, SerialExecutor
from pools_checkpoints import CheckpointsConfig, CheckpointsPool

if TYPE_CHECKING:
    from pathlib import Path

    from hub_server import HubServer


def pool(base: Any = None, /, **models: Any) -> CheckpointsPool:
    return CheckpointsPool(CheckpointsConfig(base=base, models=models))


def test_an_adapter_of_a_live_model_builds_a_live_model(tmp_path: Path) -> None:
    factors = {"lora_A": torch.ones(1, 2), "lora_B": torch.ones(2, 1)}
    tensors = {f"base_model.model.0.{part}.weight": factor for part, factor in factors.items()}
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 1, "lora_alpha": 3}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    base = nn.Sequential(nn.Linear(2, 2))
    opened = pool(base, a=str(tmp_path))
    built = opened.build(opened.experts["a"])
    assert torch.equal(built.state_dict()["0.weight"], base[0].weight + 3)


OFFLINE = """
import socket, sys
def refuse(*_): raise AssertionError("a socket was opened")
socket.socket.connect = socket.socket.connect_ex = socket.getaddrinfo = refuse
from fusion_core.cli.app import main
sys.argv[0] = "fuse"
main()
"""


def test_offline_a_run_with_an_adapter_from_the_hub_opens_no_socket(
    hub: HubServer, tmp_path: Path
) -> None:
    factors = {"lora_A": torch.ones(1, 2), "lora_B": torch.ones(2, 1)}
    tensors = {f"base_model.model.layer.{part}.weight": factor for part, factor in factors.items()}
    save_file({"layer.weight": torch.zeros(2, 2)}, tmp_path / "base.safetensors")
    save_file(tensors, tmp_path / "factors.safetensors")
    hub.add("org/base", {"model.safetensors": tmp_path / "base.safetensors"})
    files = {
        "adapter_model.safetensors": tmp_path / "factors.safetensors",
        "adapter_config.json": b'{"peft_type": "LORA", "r": 1, "lora_alpha": 3}',
        "README.md": b"---\nlicense: mit\n---\n",
    }
    hub.add("org/adapter", files)
    online = pool("org/base", a="org/adapter")
    assert online.cards() == {"base": {}, "a": {"licence": "mit"}}
    assert online.experts["a"].tensor("layer.weight").tolist() == [[3, 3], [3, 3]]
    online.base.prepare(SerialExecutor())
    hub.stop()
    flags = [
        "--set",
        "algorithm.density=1.0",
        "--set",
        "model_pool.base=org/base",
        "--set",
        "model_pool.models=[org/adapter]",
    ]
    done = subprocess.run(
        [sys.executable, "-c", OFFLINE, "run", "--algo", "ties", *flags, "-o", "out"],
        cwd=tmp_path,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    merged = CheckpointSource(tmp_path / "out").tensor("layer.weight")
    assert merged.tolist() == [[3, 3], [3, 3]]


@pytest.mark.parametrize("is_remote", [False, True])
def test_an_adapter_without_safetensors_is_named(
    hub: HubServer, tmp_path: Path, *, is_remote: bool
) -> None:
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    (tmp_path / "adapter_model.bin").write_bytes(b"x")
    hub.add_directory("org/adapter", tmp_path)
    given = "org/adapter" if is_remote else str(tmp_path)
    with pytest.raises(FusionError, match=r"adapter_model\.safetensors") as caught:
        pool({"layer.weight": torch.zeros(2, 2)}, a=given)
    advice = "adapter_model.bin" if is_remote else "Save the adapter again with PEFT"
    assert advice in (caught.value.hint or "")
