"""Make more sets of experts from the shipped base: ``experts.py --out DIR --seeds 4 5``.

Each seed gets a folder of eight checkpoints, made like the shipped ones. They are used in studies
over several seeds (``benchmarks/study.py``) and are not shipped.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import assets
import finetune
import model as clip
import tasks as data
import torch
from make import DATA, FINETUNING, NONCE_WORDS
from transformers import CLIPModel, PreTrainedTokenizerFast


def main() -> None:
    """Fine-tune and write all sets."""
    options = _options()
    torch.set_num_threads(options.threads)
    tasks, _ = data.build(NONCE_WORDS)
    base = CLIPModel.from_pretrained(
        DATA / "base", attn_implementation="eager", dtype=torch.float32
    )
    words = PreTrainedTokenizerFast.from_pretrained(DATA / "base")
    heads = clip.heads(base, words, tasks)
    for seed in options.seeds:
        for task in tasks:
            expert = finetune.finetune(base, heads[task.name], task, FINETUNING, seed)
            expert = clip.as_shipped(expert)
            assets.write_expert(options.out / str(seed) / task.name, base, expert)
            right = clip.accuracy(base, heads, task, expert)
            print(f"seed {seed} {task.name}: {right:.1f}", flush=True)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", required=True)
    parser.add_argument("--threads", type=int, default=2)
    return parser.parse_args()


if __name__ == "__main__":
    main()
