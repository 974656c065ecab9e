"""The parts of a merge, run: what each algorithm sees of the models, and what it returned.

An algorithm whose part is some of the tensors gets a pool whose models hold nothing else: it cannot
read, survey or adapt the others, whatever kind of method it is.
"""

from __future__ import annotations

from copy import copy
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from fusion_core.contracts.model_pool import ModelPool
from fusion_core.errors import BrokenPluginError, FusionError
from fusion_core.recipe.config import ComponentConfig
from fusion_core.weights import (
    AlignedSource,
    RenamedSource,
    StateDictSource,
    WeightSource,
    as_weights,
)

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence
    from pathlib import Path

    from fusion_core.contracts.algorithm import Algorithm, RunContext
    from fusion_core.planning.selection import Part


def run_parts(parts: Sequence[Part], pool: ModelPool[Any], context: RunContext) -> WeightSource:
    """Return the lazy merge of a pool; what no part merges is the base's, or first expert's."""
    merged = pool.reference
    for part in parts:
        if part.names is None:
            merged = _run_part(part.algorithm, pool, context)
        else:
            some = SelectedPool(pool, part.names)
            merged = AlignedSource(_run_part(part.algorithm, some, context), merged)
    return merged


def _run_part(algorithm: Algorithm[Any], pool: ModelPool[Any], context: RunContext) -> WeightSource:
    """Run an algorithm; raises `FusionError` if it saves what another one has saved."""
    own = copy(context)  # not `replace`, which asks for every field
    own.side_files = {}
    merged = _as_source(algorithm.run(pool, own), pool)
    if twice := own.side_files.keys() & context.side_files.keys():
        raise FusionError(
            f"algorithm.overrides: each part of the merge would write {min(twice)!r}",
            hint="Leave the overrides out: this method does not take them.",
        )
    context.side_files |= own.side_files
    context.saw_tasks |= own.saw_tasks
    return merged


def _as_source(fused: WeightSource | nn.Module, pool: ModelPool[Any]) -> WeightSource:
    """Read an algorithm's result, which may be a live model, by the pool's tensor names.

    Raises `BrokenPluginError` for a result with other names or shapes than the pool's models.
    """
    expected = pool.reference.infos
    if isinstance(fused, nn.Module):
        fused = _live_source(fused, pool)
    wrong = [*fused.infos.keys() ^ expected.keys()] or [
        name for name, info in expected.items() if fused.infos[name].shape != info.shape
    ]
    if wrong:
        raise BrokenPluginError(
            f"the algorithm returned other tensors than its models have: {len(wrong)}, "
            f"among them {min(wrong)!r}"
        )
    return as_weights(fused, pool.base)


def _live_source(module: nn.Module, pool: ModelPool[Any]) -> WeightSource:
    """Read a live model's parameters and buffers; integers that it does not name are copied."""
    named = {**dict(module.named_buffers(remove_duplicate=False)), **pool.parameters(module)}
    live = {n: value.detach().cpu() for n, value in named.items() if n in pool.reference.infos}
    for name, info in pool.reference.infos.items():
        if name not in live and not info.dtype.is_floating_point:
            live[name] = pool.reference.tensor(name)
    return StateDictSource(live, label="the fused model")


class SelectedPool(ModelPool[ComponentConfig]):
    """Some tensors of another pool's models; a live model gets the others from the reference."""

    def __init__(self, pool: ModelPool[Any], names: Collection[str]) -> None:
        super().__init__(pool.config)
        self._pool = pool
        same = {name: name for name in pool.reference.infos if name in names}
        self.base = None if pool.base is None else RenamedSource(pool.base, same)
        self.experts = {name: RenamedSource(each, same) for name, each in pool.experts.items()}

    def build(
        self,
        weights: WeightSource,
        *,
        dtype: torch.dtype | None = torch.float32,
        device: torch.device | str = "cpu",
    ) -> nn.Module:
        """Return a live model: these weights, and the reference's for what is not merged.

        One of the pool's own models is built as it is, all of it.
        """
        for name, some in self.experts.items():
            if weights is some:
                return self._pool.build(self._pool.experts[name], dtype=dtype, device=device)
        whole = AlignedSource(weights, self._pool.reference)
        return self._pool.build(whole, dtype=dtype, device=device)

    def parameters(self, module: nn.Module) -> Mapping[str, nn.Parameter]:
        """Map the names of what is merged to the live parameters."""
        known = self.reference.infos
        return {n: each for n, each in self._pool.parameters(module).items() if n in known}

    def assets(self, *, dtype: torch.dtype | None = None) -> Mapping[str, bytes | Path]:
        """Return the other pool's side files."""
        return self._pool.assets(dtype=dtype)

    def task_of(self, expert: str) -> str:
        """Ask the other pool."""
        return self._pool.task_of(expert)

    def inputs(self) -> Mapping[str, Any]:
        """Identify the other pool's inputs."""
        return self._pool.inputs()
