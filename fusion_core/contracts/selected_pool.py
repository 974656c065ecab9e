"""A view of a pool that shows only some tensors of its models."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from fusion_core.contracts.model_pool import ModelPool
from fusion_core.recipe.config import ComponentConfig
from fusion_core.weights import AlignedSource, Layout, RenamedSource, WeightSource

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping
    from pathlib import Path

    from torch import nn

    from fusion_core.weights.matrices import Matrices


class SelectedPool(ModelPool[ComponentConfig]):
    """Some tensors of another pool's models; live models get all others from the reference."""

    def __init__(self, pool: ModelPool[Any], names: Collection[str]) -> None:
        super().__init__(pool.config)
        self._pool, self.merges_stored = pool, pool.merges_stored
        same = {name: name for name in pool.reference.infos if name in names}
        self.base = None if pool.base is None else RenamedSource(pool.base, same)
        self.experts = {name: RenamedSource(expert, same) for name, expert in pool.experts.items()}

    def build(
        self,
        weights: WeightSource,
        *,
        dtype: torch.dtype | None = torch.float32,
        device: torch.device | str = "cpu",
    ) -> nn.Module:
        """Return a live model with these weights, completed from the reference.

        An expert of this pool is built with all tensors of its own.
        """
        for name, expert in self.experts.items():
            if weights is expert:
                return self._pool.build(self._pool.experts[name], dtype=dtype, device=device)
        whole = AlignedSource(weights, self._pool.reference)
        return self._pool.build(whole, dtype=dtype, device=device)

    def parameters(self, module: nn.Module) -> Mapping[str, nn.Parameter]:
        """Map the selected tensor names to parameters of a live model.

        A parameter that holds several tensors is included if one of them is selected.
        """
        names = {*self.reference.infos, *self.live_layout.slots}
        parameters = self._pool.parameters(module)
        return {name: parameters[name] for name in parameters if name in names}

    @property
    def live_layout(self) -> Layout:
        """The positions of the selected matrices in live parameters."""
        whole, matrices = self._pool.live_layout, self.layout.slots.values()
        selected = {*self.reference.infos, *(slot.name for slots in matrices for slot in slots)}
        slots = {
            name: slots
            if name in selected
            else tuple(slot for slot in slots if slot.name in selected)
            for name, slots in whole.slots.items()
        }
        slots = {name: chosen for name, chosen in slots.items() if chosen}
        return Layout(slots, {name: whole.shapes[name] for name in slots})

    def matrices(self, name: str, shape: tuple[int, ...]) -> Matrices:
        """Return what the whole pool declares."""
        return self._pool.matrices(name, shape)

    def assets(self, *, dtype: torch.dtype | None = None) -> Mapping[str, bytes | Path]:
        """Return the whole pool's side files."""
        return self._pool.assets(dtype=dtype)

    def task_of(self, expert: str) -> str:
        """Return the task that the whole pool names for an expert."""
        return self._pool.task_of(expert)

    def expert_of(self, task: str) -> WeightSource:
        """Return the whole pool's expert, with all its tensors."""
        return self._pool.expert_of(task)

    def inputs(self) -> Mapping[str, Any]:
        """Identify the whole pool's inputs."""
        return self._pool.inputs()
