"""Merge LoRA adapters of one base into one adapter, which PEFT loads.

python examples/peft_merge.py BASE ADAPTER ADAPTER OUTPUT [RANK]
"""

from __future__ import annotations

import sys
from pathlib import Path

from fusion_core import RunResult, run_fusion


def merge(
    base: str, adapters: dict[str, float], output: str, *, rank: int | None = None
) -> RunResult:
    """Write the weighted sum of adapters, given as directories with their weights.

    Without a rank, the result has the sum of the ranks and is exact. DoRA changes whole matrices,
    so it needs a rank. The result's summary states the error.
    """
    return run_fusion(
        algorithm={"name": "task-arithmetic", "scale": 1.0, "weights": list(adapters.values())},
        model_pool={"name": "checkpoints", "base": base, "models": list(adapters)},
        output={"path": output, "adapter": {"rank": rank}},
    )


if __name__ == "__main__":
    base, first, second, output, *rank = sys.argv[1:]
    result = merge(base, {first: 0.5, second: 0.5}, output, rank=int(rank[0]) if rank else None)
    print(*result.summary, sep="\n")
    print("written:", *sorted(path.name for path in Path(output).iterdir()))
