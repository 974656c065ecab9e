"""Measure the pools of the hub at full size: random ViT-B/32 weights through all of `fuse run`.

    python benchmarks/clip_hub.py --experts 2 --images 64

A hub on 127.0.0.1 serves a CLIPModel of ViT-B/32's shapes, its experts, and data sets of random
images, under the true ids. `task-arithmetic`, `ties` and `adamerging` with a few steps then run on
the pool `clip-vit-b32`, one process per method. The first run downloads, and the others use the
cache. transformers loads each output. Prints wall time and peak memory as Markdown. Accuracies
mean nothing, because weights are random.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import Executor, ProcessPoolExecutor
from io import BytesIO
from multiprocessing import get_context
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPVisionModel,
    PreTrainedTokenizerFast,
)

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from hub_server import HubServer  # noqa: E402 - a plugin of the tests

from pools_clip.families import families, load_data_set, task_sets  # noqa: E402

FAMILY = families()["clip-vit-b32"]
METHODS = ("task-arithmetic", "ties", "adamerging")


def files_of(directory: Path) -> dict[str, bytes | Path]:
    """Return the files of a model's repository."""
    return {path.name: path for path in directory.iterdir()}


def save_base(directory: Path) -> CLIPModel:
    """Save a complete CLIP with a tokenizer of few words."""
    torch.manual_seed(0)
    model = CLIPModel(CLIPConfig())
    words = {"<pad>": 0, "<unk>": 1, "a": 2, "photo": 3, "of": 4, "number": 5, "<eos>": 6}
    backend = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    tokens = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", eos_token="<eos>")
    for part in (model, tokens, CLIPImageProcessorPil()):
        part.save_pretrained(directory)
    return model


def images(count: int) -> bytes:
    """Return a parquet file of random pictures of ten classes."""
    rows = []
    for number in range(count):
        noise = torch.randint(0, 256, (96, 128, 3), dtype=torch.uint8).numpy()
        stream = BytesIO()
        Image.fromarray(noise).save(stream, "JPEG")
        rows.append({"image": {"bytes": stream.getvalue(), "path": None}, "label": number % 10})
    stream = BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), stream)
    return stream.getvalue()


def serve(directory: Path, tasks: list[str], count: int) -> HubServer:
    """Start a hub with all files that the pool requests."""
    hub = HubServer()
    model = save_base(directory / "base")
    hub.add(FAMILY.base, files_of(directory / "base"))
    for task, repository in FAMILY.experts(tasks).items():
        with torch.no_grad():
            for parameter in model.vision_model.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=1e-3)
        model.vision_model.save_pretrained(directory / task)
        hub.add(repository, files_of(directory / task))
        about = load_data_set(task)
        path = f"{about.config or 'data'}/test-00000-of-00001.parquet"
        hub.add(about.dataset, {path: images(count)}, kind="dataset")
    hub.start()
    return hub


def timed(command: list[str], environment: dict[str, str]) -> tuple[float, float]:
    """Run a command, and return its seconds and its peak memory in GB.

    A child's peak begins with its parent's memory, so this process must be small.
    """
    started = time.perf_counter()
    process = subprocess.Popen(command, env=environment)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise RuntimeError(f"{command} failed")
    scale = 1 if sys.platform == "darwin" else 1024
    return time.perf_counter() - started, usage.ru_maxrss * scale / 1e9


def measured(
    method: str, tasks: list[str], directory: Path, hub: HubServer, watch: Executor
) -> str:
    """Run a method as a user does, and return its row."""
    names = ",".join(tasks)
    command = [
        *(sys.executable, "-c", "from fusion_core.cli.app import main; main()"),
        *("run", "--algo", method, "--pool", "clip-vit-b32", "--tasks", names),
        *("--set", f"model_pool.tasks=[{names}]", "-o", str(directory / f"out-{method}")),
        *(("--set", "algorithm.steps=3") if method == "adamerging" else ()),
    ]
    environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": str(directory / "hf")}
    before = len(hub.asked("/resolve/", "GET"))
    seconds, peak = watch.submit(timed, command, environment).result()
    CLIPVisionModel.from_pretrained(directory / f"out-{method}")
    files = len(hub.asked("/resolve/", "GET")) - before
    return f"| {method} | {seconds:.0f} s | {peak:.2f} GB | {files} |"


def main() -> None:
    """Measure every method, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--experts", type=int, default=2)
    parser.add_argument("--images", type=int, default=64)
    options = parser.parse_args()
    tasks = ["mnist", "svhn", "eurosat", *task_sets()["ta8"]]
    tasks = list(dict.fromkeys(tasks))[: options.experts]
    small = ProcessPoolExecutor(1, mp_context=get_context("spawn"))
    with tempfile.TemporaryDirectory() as folder, small as watch:
        directory = Path(folder)
        hub = serve(directory, tasks, options.images)
        rows = [measured(method, tasks, directory, hub, watch) for method in METHODS]
        hub.stop()
    print(f"{len(tasks)} experts, {options.images} images per task\n")
    print("| method | wall time | peak memory | requests for files |\n|---|---|---|---|")
    print("\n".join(rows))


if __name__ == "__main__":
    main()
