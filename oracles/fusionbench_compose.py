"""Compose FusionBench's configurations with Hydra, in its own environment.

    python fusionbench_compose.py OUTPUT

writes, for every file of the groups `method`, `modelpool` and `taskpool` of the installed release,
the composed configuration with FusionBench's own program, without and with resolved interpolations,
or the reason why Hydra or OmegaConf refuses it. This file runs where fusion-core is not installed.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import fusion_bench_config
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

TREE = Path(next(iter(fusion_bench_config.__path__)))
GROUPS = ("method", "modelpool", "taskpool")


def main(output: Path) -> None:
    """Write what Hydra composes, by group and name."""
    configurations: dict[str, Any] = {}
    with initialize_config_dir(str(TREE), version_base=None):
        for group in GROUPS:
            for path in sorted((TREE / group).rglob("*.yaml")):
                name = path.relative_to(TREE / group).with_suffix("").as_posix()
                configurations[f"{group}={name}"] = _compose(f"{group}={name}", group)
    output.write_text(json.dumps({"tree": str(TREE), "configurations": configurations}))


def _compose(override: str, group: str) -> Any:
    try:
        config = compose("fabric_model_fusion", [override])
        whole = OmegaConf.to_container(config)
    except Exception as error:  # noqa: BLE001 - whatever Hydra raises
        return str(error)
    try:
        resolved = OmegaConf.to_container(config[group], resolve=True)
    except Exception as error:  # noqa: BLE001
        resolved = str(error)
    composed = {key: whole[key] for key in (*GROUPS, "seed", "fast_dev_run")}
    return {"composed": composed, "resolved": resolved}


if __name__ == "__main__":
    main(Path(sys.argv[1]))
