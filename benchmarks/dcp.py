"""Compare an average of distributed checkpoints with the same average of safetensors.

    python benchmarks/dcp.py --size 1 --models 8 --repeats 3

Four ranks save the same random weights as rows (as FSDP does), as columns (as tensor parallelism
does) and as one safetensors file. The *floor* is `cat` of the inputs from the page cache, plus
writing and syncing as many bytes as the output has. Prints times without start-up, each side
measured in one run, and peak memory above that of Python with torch. On a busy machine, compare
processor times.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path

from measuring import MB, Measures, child, headings, row

LAYOUTS = ("safetensors", "rows", "columns")
RANKS, WIDTH = 4, 2048


def main() -> None:
    """Write the models, measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=float, default=1.0, help="GB of all models together")
    parser.add_argument("--models", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--directory", help="where models and averages are written")
    parser.add_argument("--save", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.save:
        folder, count, tensors = arguments.save
        save_models(Path(folder), int(count), int(tensors))
        return
    tensors = max(1, round(arguments.size * 1e9 / arguments.models / (2 * WIDTH**2)))
    with tempfile.TemporaryDirectory(dir=arguments.directory) as name:
        folder = Path(name)
        child(Path(__file__), "--save", name, str(arguments.models), str(tensors))
        measures = Measures(folder)
        measures.measure("bare", [sys.executable, "-c", "import torch"])
        for _ in range(arguments.repeats):
            for layout in LAYOUTS:
                measure(measures, folder, layout, arguments.models)
        print_table(measures)


def measure(measures: Measures, folder: Path, layout: str, count: int) -> None:
    """Measure an average of one layout, and the floor of its files."""
    models = {f"step-{step}": str(folder / layout / f"step-{step}") for step in range(count)}
    recipe = {
        "algorithm": {"name": "run-average", "schedule": "1-sqrt"},
        "model_pool": {"name": "checkpoints", "models": models},
    }
    measures.fuse_run("ours", layout, recipe)
    files = [str(file) for model in models.values() for file in Path(model).iterdir()]
    measures.copy(f"floor {layout}", files)


def print_table(measures: Measures) -> None:
    """Print times and peaks by layout, and the load of the machine."""
    columns = ("floor", "ours", "ours / floor", "CPU: floor, ours", "CPU / safetensors")
    print(headings(("layout", *columns, "peak above torch")))
    for layout in LAYOUTS:
        floor, ours = f"floor {layout}", f"ours {layout}"
        seconds = (measures.seconds(floor), measures.seconds(ours))
        cpu = (measures.cpu(floor), measures.cpu(ours))
        above = (measures.peak(ours) - measures.peak("bare")) / MB
        cells = (
            *(f"{time:.2f} s" for time in seconds),
            f"{seconds[1] / seconds[0]:.2f}",
            ", ".join(f"{time:.1f} s" for time in cpu),
            f"{cpu[1] / measures.cpu('ours safetensors'):.2f}",
            f"{above:.0f} MB",
        )
        print(row((layout, *cells)))
    print(f"load: {os.getloadavg()[1]:.1f}")


def save_models(folder: Path, count: int, tensors: int) -> None:
    """Save every model in all layouts, from four processes."""
    import torch  # only here: a child's peak memory begins with its parent's

    torch.set_num_threads(1)
    children = []
    for rank in range(RANKS):
        process = os.fork()
        if process == 0:
            save_rank(folder, rank, count, tensors)
            os._exit(0)
        children.append(process)
    if any(os.waitpid(process, 0)[1] for process in children):
        sys.exit("a rank failed")


def save_rank(folder: Path, rank: int, count: int, tensors: int) -> None:
    """Save one rank's part of every model."""
    import torch
    import torch.distributed as dist
    import torch.distributed.checkpoint as dcp
    from safetensors.torch import save_file
    from torch.distributed.tensor import Shard, distribute_tensor, init_device_mesh

    store = dist.FileStore(str(folder / "store"), RANKS)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=RANKS)
    mesh = init_device_mesh("cpu", (RANKS,))
    for step in range(count):
        draw = torch.Generator().manual_seed(step)
        whole = {
            f"layers.{number}.weight": torch.randn(WIDTH, WIDTH, generator=draw).bfloat16()
            for number in range(tensors)
        }
        for layout, dimension in (("rows", 0), ("columns", 1)):
            parts = {
                name: distribute_tensor(tensor, mesh, [Shard(dimension)])
                for name, tensor in whole.items()
            }
            dcp.save({"model": parts}, checkpoint_id=folder / layout / f"step-{step}")
        if rank == 0:
            target = folder / "safetensors" / f"step-{step}"
            target.mkdir(parents=True)
            save_file(whole, target / "model.safetensors")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
