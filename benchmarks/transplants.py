"""Compare the methods of `fuse transplant-tokenizer` by the bits per byte of what they make.

    python benchmarks/transplants.py --base HuggingFaceTB/SmolLM2-135M-Instruct

From one language model with a byte-level BPE tokenizer it makes

- a model that lacks a third of the donor's tokens: the first `--model-tokens` of the vocabulary,
- two donors with the first `--donor-tokens`, in another order: one with the base's embeddings
  (`same`), and one whose embeddings are a random projection of them to half the width, plus noise
  of half their spread (`noisy`).

The embeddings of the first donor are the best case. Only a donor from another training run shows
what two unrelated models give. The text is the documentation in this repository. With `--mergekit
VENV`, mergekit-tokensurgeon runs on the first donor too, and both processor times and peaks of
memory are printed.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

_ROOT = Path(__file__).parents[1]
_FUSE = "from fusion_core.cli.app import main; main()"
_INPUT = "model.embed_tokens.weight"
_METHODS = {
    "omp": ["omp"],
    "omp --no-center": ["omp", "--no-center"],
    "common-interpolation": ["common-interpolation"],
    "subword": ["subword"],
    "mean": ["mean"],
}


def main() -> None:
    """Make the models, transplant, and print a table."""
    options = _options()
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        text = directory / "text.txt"
        text.write_text(_documentation(options.bytes), encoding="utf-8")
        base = directory / "base"
        AutoTokenizer.from_pretrained(options.base).save_pretrained(base)
        AutoModelForCausalLM.from_pretrained(options.base, dtype="auto").save_pretrained(base)
        _cut(base, directory / "model", options.model_tokens)
        for kind in ("same", "noisy"):
            _cut(base, directory / kind, options.donor_tokens, kind)
        print("| donor | method | bits per byte before | after | processor time |")
        print("|---|---|---|---|---|")
        for kind in options.donors:
            for label, method in _METHODS.items():
                if kind == "same" or label in options.donor_methods:
                    _report(directory, kind, label, method)
        if options.donors:
            _report(directory, "base", "mean", ["mean"], note="reference: ")
        if options.mergekit is not None:
            _compare(directory, options.mergekit)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base", required=True)
    parser.add_argument("--model-tokens", type=int, default=16_384)
    parser.add_argument("--donor-tokens", type=int, default=24_576)
    parser.add_argument("--bytes", type=int, default=12_000)
    parser.add_argument("--donors", nargs="*", default=["same", "noisy"])
    parser.add_argument("--mergekit", type=Path)
    options = parser.parse_args()
    options.donor_methods = ["omp", "omp --no-center", "common-interpolation"]
    return options


def _documentation(size: int) -> str:
    pages = sorted((_ROOT / "docs" / "explanation").glob("*.md"))
    return "\n".join(page.read_text(encoding="utf-8") for page in pages)[:size]


def _cut(base: Path, directory: Path, count: int, kind: str = "") -> None:
    """Write the base with its first tokens only; a donor has them in another order."""
    directory.mkdir()
    generator = torch.Generator().manual_seed(0)
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        if (base / name).is_file():
            (directory / name).write_bytes((base / name).read_bytes())
    tokenizer = json.loads((base / "tokenizer.json").read_text(encoding="utf-8"))
    special = {token["id"] for token in tokenizer["added_tokens"]}
    order = torch.arange(count)
    if kind:
        movable = torch.tensor([number for number in range(count) if number not in special])
        order[movable] = movable[torch.randperm(len(movable), generator=generator)]
    new_id = {int(number): row for row, number in enumerate(order)}
    vocabulary = tokenizer["model"]["vocab"]
    known = {token for token, number in vocabulary.items() if number < count}
    tokenizer["model"]["vocab"] = {token: new_id[vocabulary[token]] for token in known}
    pairs = [
        merge.split(" ") if isinstance(merge, str) else merge
        for merge in tokenizer["model"]["merges"]
    ]
    tokenizer["model"]["merges"] = [pair for pair in pairs if {*pair, "".join(pair)} <= known]
    (directory / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    config = json.loads((base / "config.json").read_text(encoding="utf-8"))
    tensors = load_file(base / "model.safetensors")
    rows = tensors[_INPUT][order]
    if kind == "noisy":
        width = rows.shape[1] // 2
        projection = torch.randn(rows.shape[1], width, generator=generator) / width**0.5
        rows = rows.float() @ projection
        spread = (rows - rows.mean(0)).std()
        rows += spread / 2 * torch.randn(rows.shape, generator=generator)
        tensors, config["hidden_size"] = {}, width  # a donor needs nothing else
    save_file({**tensors, _INPUT: rows.contiguous()}, directory / "model.safetensors")
    (directory / "config.json").write_text(json.dumps({**config, "vocab_size": count}))


def _report(directory: Path, donor: str, label: str, method: list[str], note: str = "") -> None:
    output = directory / "output"
    arguments = ["transplant-tokenizer", str(directory / "model"), str(directory / donor)]
    if note:  # the base itself, measured as the model of a transplant
        arguments = [arguments[0], arguments[2], arguments[1]]
    arguments += ["-o", str(output), "--overwrite", "--json", "-q", "--method", *method]
    arguments += ["--text", str(directory / "text.txt")]
    command = [sys.executable, "-c", _FUSE, *arguments]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    report: dict[str, Any] = json.loads(done.stdout)
    figures = {when: value["bits_per_byte"] for when, value in report["perplexity"].items()}
    if note:
        print(f"| none | {note}the base with all its tokens | {figures['before']:.4f} | | |")
        return
    print(
        f"| {donor} | `{label}` | {figures['before']:.4f} | {figures['after']:.4f} | "
        f"{seconds:.0f} s |",
        flush=True,
    )


def _compare(directory: Path, environment: Path) -> None:
    """Run both programs without a measurement, and print processor times and peak memory."""
    model, donor = str(directory / "model"), str(directory / "same")
    ours = [sys.executable, "-c", _FUSE, "transplant-tokenizer", model, donor, "-q"]
    ours += ["-o", str(directory / "ours"), "--no-center", "--workers", "1"]
    theirs = [str(environment / "bin" / "mergekit-tokensurgeon"), model, donor]
    theirs += [str(directory / "theirs"), "-a", "omp", "-k", "64"]
    for label, command in (("ours", ours), ("mergekit", theirs)):
        seconds, peak = _measure(command)
        print(f"{label}: {seconds:.0f} s of processor time, peak {peak / 1e6:.0f} MB")
    rows = [
        load_file(directory / name / "model.safetensors")[_INPUT].float()
        for name in ("ours", "theirs")
    ]
    difference = (rows[0] - rows[1]).abs()
    print(f"largest difference of an entry {difference.max():.3g}, mean {difference.mean():.3g}")


def _measure(command: list[str]) -> tuple[float, int]:
    """Return the processor time and the peak memory of a command on one thread."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    code = (
        "import resource, subprocess, sys; subprocess.run(sys.argv[1:], check=True, "
        "stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL); "
        "usage = resource.getrusage(resource.RUSAGE_CHILDREN); "
        "print(usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *command],
        check=True,
        capture_output=True,
        text=True,
        env=environment,
    )
    seconds, peak = done.stdout.split()
    return float(seconds), int(peak)


if __name__ == "__main__":
    main()
