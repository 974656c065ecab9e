"""Merge some tensors of a model and leave the others, or merge some with other options.

`Selected` is an algorithm around another one, which sees a pool whose models hold nothing but the
tensors that it is to merge: it cannot read, survey or adapt the others, whatever kind of method it
is. What a recipe says about it is `fusion_core.recipe.patterns`.
"""

from __future__ import annotations

from copy import copy
from typing import TYPE_CHECKING, Any

from fusion_core.contracts.algorithm import Algorithm, RunContext
from fusion_core.contracts.model_pool import ModelPool
from fusion_core.errors import FusionError, RecipeError
from fusion_core.planning.result import as_source
from fusion_core.recipe.config import ComponentConfig
from fusion_core.weights import AlignedSource, RenamedSource, WeightSource

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence
    from pathlib import Path

    import torch
    from torch import nn

    from fusion_core.contracts.specs import AlgorithmSpec
    from fusion_core.contracts.task_pool import TaskPool
    from fusion_core.planning.resolving import Resolved
    from fusion_core.recipe.patterns import Selection


def created(resolved: Resolved[AlgorithmSpec]) -> Algorithm[Any]:
    """Make the algorithm that a recipe describes, merging what its `only` and `skip` leave.

    Raises `RecipeError` for overrides of a method that adapts on tasks: it searches once, for the
    whole model.
    """
    algorithm: Algorithm[Any] = resolved.create()
    selection = resolved.selection
    if selection == type(selection)():
        return algorithm
    if selection.overrides and resolved.component.spec.needs_tasks != "none":
        raise RecipeError(
            f"algorithm.overrides: {resolved.name} searches once for the whole model, with the "
            "same options",
            hint="Leave them out; only and skip work.",
        )
    return Selected(algorithm, selection, [*map(resolved.component.create, resolved.overridden)])


class Selected(Algorithm[ComponentConfig]):
    """Another algorithm, on some of the tensors; all others are the base's, or first expert's.

    Where there are overrides, the tensors of each are merged by themselves, as if they were a
    model: what the algorithm surveys over the model, it surveys over those of the same options.
    """

    def __init__(
        self,
        algorithm: Algorithm[Any],
        selection: Selection,
        overridden: Sequence[Algorithm[Any]] = (),
    ) -> None:
        super().__init__(algorithm.config)
        self.algorithm = algorithm
        self.selection = selection
        self._overridden = overridden

    def parts(self, pool: ModelPool[Any]) -> list[tuple[Algorithm[Any], SelectedPool]]:
        """Return each algorithm with the tensors that it merges.

        Raises `RecipeError` for a pattern that matches nothing.
        """
        groups = self.selection.groups(pool.reference.infos)
        return [
            (
                self.algorithm if number is None else self._overridden[number],
                SelectedPool(pool, names),
            )
            for number, names in groups.items()
        ]

    def tasks(self, pool: TaskPool[Any]) -> TaskPool[Any]:
        """Return the tasks as the algorithm sees them."""
        return self.algorithm.tasks(pool)

    def run(self, pool: ModelPool[Any], context: RunContext) -> WeightSource:
        """Let the algorithm merge what it is to see, and complete the result."""
        merged = pool.reference
        for algorithm, some in self.parts(pool):
            own = copy(context)  # not `replace`, which asks for every field
            own.side_files = {}
            merged = AlignedSource(as_source(algorithm.run(some, own), some), merged)
            if twice := own.side_files.keys() & context.side_files.keys():
                raise FusionError(
                    f"algorithm.overrides: each part of the merge would write {min(twice)!r}",
                    hint="Leave the overrides out: this method does not take them.",
                )
            context.side_files |= own.side_files
            context.saw_tasks |= own.saw_tasks
        return merged


class SelectedPool(ModelPool[ComponentConfig]):
    """Some tensors of another pool's models; a live model gets the others from the reference."""

    def __init__(self, pool: ModelPool[Any], names: Collection[str]) -> None:
        super().__init__(pool.config)
        self._pool = pool
        same = {name: name for name in names}
        self.base = None if pool.base is None else RenamedSource(pool.base, same)
        self.experts = {name: RenamedSource(each, same) for name, each in pool.experts.items()}

    def build(self, weights: WeightSource) -> nn.Module:
        """Return a live model: these weights, and the reference's for what is not merged.

        One of the pool's own models is built as it is, all of it.
        """
        for name, some in self.experts.items():
            if weights is some:
                return self._pool.build(self._pool.experts[name])
        return self._pool.build(AlignedSource(weights, self._pool.reference))

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
