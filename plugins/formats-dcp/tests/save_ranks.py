"""Save distributed checkpoints from four ranks, as a training job does. Run as a program.

The ranks are forked, so that torch is imported once.
"""

from __future__ import annotations

import os
import sys
import warnings
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.state_dict import get_state_dict
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Replicate, Shard, distribute_tensor, init_device_mesh

RANKS = 4
_PLACEMENTS = {
    "rows": [Shard(0), Replicate()],
    "columns": [Replicate(), Shard(1)],
    "blocks": [Shard(0), Shard(1)],
    "inner": [Shard(1), Shard(2)],
    "same": [Replicate(), Replicate()],
    "few": [Shard(0), Shard(0)],
}


def save(rank: int, folder: Path) -> None:
    store = dist.FileStore(str(folder / "store"), RANKS)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=RANKS)
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "tensor"))
    torch.manual_seed(0)
    whole = {
        "rows": torch.randn(10, 6),
        "columns": torch.randn(5, 7).bfloat16(),
        "blocks": torch.randn(7, 9),
        "inner": torch.randn(3, 8, 5),
        "same": torch.randn(4),
        "few": torch.randn(1, 3),
    }
    sharded = {n: distribute_tensor(t, mesh, _PLACEMENTS[n]) for n, t in whole.items()}
    moments = {"rows": {"exp_avg": sharded["rows"]}}
    state = {"model": sharded, "optim": {"state": moments}, "step": 3}
    dcp.save(state, checkpoint_id=folder / "mesh")
    dcp.async_save(state, checkpoint_id=folder / "async").result()  # type: ignore[union-attr]
    if hasattr(dcp, "HuggingFaceStorageWriter"):  # since torch 2.8
        writer = dcp.HuggingFaceStorageWriter(str(folder / "safetensors"), save_distributed=True)
        dcp.save(sharded, storage_writer=writer)
        save_trained(folder, rank)
    if rank == 0:
        torch.save(whole, folder / "mesh.pt")
    dist.barrier()
    dist.destroy_process_group()


def save_trained(folder: Path, rank: int) -> None:
    """Save a model of FSDP2, which older versions of torch train on GPUs alone."""
    model = nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 3))
    trained = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    fully_shard(model, mesh=init_device_mesh("cpu", (RANKS,)))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0, weight_decay=0.0)
    model(torch.randn(2, 6)).sum().backward()
    optimizer.step()
    weights, moments = get_state_dict(model, optimizer)
    dcp.save({"app": {"model": weights, "optim": moments}}, checkpoint_id=folder / "fsdp")
    if rank == 0:
        torch.save(trained, folder / "fsdp.pt")


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    children = []
    for number in range(RANKS):
        child = os.fork()
        if child == 0:
            save(number, Path(sys.argv[1]))
            sys.stdout.flush()
            os._exit(0)
        children.append(child)
    if any(os.waitpid(child, 0)[1] for child in children):
        sys.exit("a rank failed")
