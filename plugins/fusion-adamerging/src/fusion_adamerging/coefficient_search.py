"""A search for the coefficients of a linear merge, and the files that keep what it finds."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import torch

from fusion_adamerging.adaptive import Adaptive
from fusion_adamerging.coefficients import LEARNED_WITH, Coefficients
from fusion_adamerging.config import CoefficientsConfig
from fusion_adamerging.picture import picture
from fusion_adamerging.search import Search
from fusion_adamerging.watch import SearchStoppedError
from fusion_adapting import LiveMerge, joined_ranks
from fusion_core.weights import is_matrix

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from torch import Tensor

    from fusion_adamerging.learned import LearnedMerge
    from fusion_core import AdaptiveTask, ModelPool, RunContext, TensorInfo
    from fusion_core.weights import MergedSource

COEFFICIENTS, METRICS = "coefficients.json", "metrics.jsonl"
CoefficientsT = TypeVar("CoefficientsT", bound=CoefficientsConfig)
LearnedT = TypeVar("LearnedT", bound="LearnedMerge")


class CoefficientSearch(Adaptive[CoefficientsT], Generic[CoefficientsT, LearnedT]):
    """base + sum over experts of coefficients * task vector, learned from unlabeled data.

    Minimises the sum over tasks of the mean entropy of the merged model's predictions (or of their
    distance from each expert's), with Adam (betas 0.9, 0.999). Floating-point tensors that are not
    parameters (running statistics) and parameters that no expert changed keep the coefficient
    `init`. Ends in the same lazy linear combination as task arithmetic. Raises `FusionError` where
    the search diverges or collapses, the last good coefficients then being kept beside the output.
    """

    #: what is learned, unless `learned` makes it of more
    learns: type[LearnedT]

    def fallback(self, info: TensorInfo) -> str | None:
        """Say which tensors have no rows, columns or components to give coefficients to."""
        shares = {"row": len(info.shape) > 1, "column": len(info.shape) > 1, "tensor": True}
        if shares.get(self.config.grain, is_matrix(info.shape)):
            return None
        return "one coefficient per expert"

    def held_memory(self, model: int, experts: int) -> int:
        """Count the live model, its gradient and, unless they are read anew, the task vectors.

        The base stays with the task vectors. Singular vectors (`rank`, `adarank`) come on top.
        """
        held = {"fp32": 1 + experts, "bf16": 1 + experts / 2, "disk": 0}[self.config.task_vectors]
        return int(model * (2 + held))

    def learned(
        self,
        pool: ModelPool[Any],
        live: LiveMerge,
        tasks: Sequence[AdaptiveTask],
        context: RunContext,
    ) -> LearnedT:
        """Return what is learned, as it is at first; `tasks` are adapted on."""
        del tasks
        return self.learns(live, list(pool.experts), context.device, self.config)

    def searched(
        self, pool: ModelPool[Any], merged: MergedSource, context: RunContext
    ) -> tuple[Coefficients, LearnedT]:
        """Search from a lazy merge on; return the coefficients by name, and all that was learned.

        Raises `SearchStoppedError` where the search goes wrong, what was good being kept.
        """
        merged.prepare(context.executor)
        ranks = joined_ranks()
        tasks = self.adapted(pool, context)
        live = self._live(pool, merged, context)
        learned = self.learned(pool, live, tasks, context)
        name = partial(self._named, live, merged, learned, self.learning(_names(tasks), context))
        if live.leaves:  # else every expert is the base
            passes = self.passes(live.model, ranks.own(tasks), context)
            passes = replace(passes, own=learned.own)
            store = self.store(
                context,
                experts=list(pool.experts),
                tasks=_names(tasks),
                leaves=[list(leaf.names) for leaf in live.leaves],
            )
            search = Search(self.config, learned, passes, _names(tasks), store, context, ranks)
            try:
                search.run(lambda steps: self.objective(pool, passes, steps, context))
            except SearchStoppedError as error:
                raise _rescued(error, search, name) from error
        found = name(learned.tensors)
        drawn = picture(found, context.metrics.steps, live.leaves, start=self.config.init)
        context.save("coefficients.svg", drawn)
        return found, learned

    def learning(self, tasks: Sequence[str], context: RunContext) -> dict[str, Any]:
        """Say what coefficients are learned for, and on what: what they mean depends on it."""
        options = self.config.model_dump(mode="json", include=LEARNED_WITH)
        after = {"transforms": list(context.transforms)} if context.transforms else {}
        return {**options, "tasks": list(tasks), **after}

    def _live(self, pool: ModelPool[Any], merged: MergedSource, context: RunContext) -> LiveMerge:
        dtypes = {info.dtype for info in merged.infos.values()}
        return LiveMerge(
            pool,
            merged,
            context.device,
            storage=self.config.task_vectors,
            dtype=torch.float64 if torch.float64 in dtypes else torch.float32,
            grain=self.config.grain,
        )

    def _named(
        self,
        live: LiveMerge,
        merged: MergedSource,
        learned: LearnedMerge,
        learning: Mapping[str, Any],
        tensors: Mapping[str, Tensor],
    ) -> Coefficients:
        start = dict.fromkeys(merged_shapes(merged), self.config.init)
        found: dict[str, dict[str, Any]] = {expert: {**start} for expert in learned.experts}
        for leaf, rows in live.by_leaf(learned.every(tensors).cpu()):
            for row, own in zip(found.values(), rows if leaf.shape else rows.tolist(), strict=True):
                row.update(dict.fromkeys(leaf.names, own))
        return Coefficients.of(found, learning)


def _rescued(
    error: SearchStoppedError, search: Search, name: Callable[[Mapping[str, Tensor]], Coefficients]
) -> SearchStoppedError:
    """Keep the last good coefficients and what was logged, and say where they are."""
    step, good = search.good
    kept = ""
    if not search.ranks.rank:
        for file, content in name(good).files(COEFFICIENTS).items():
            path = search.context.rescue(file, content)
        log = search.context.rescue(METRICS, search.context.metrics.as_bytes())
        kept = (
            f"\nThose of step {step} were good, and adamerging takes them: "
            f"algorithm.coefficients={path}\nEvery step's figures are in {log}."
        )
    search.ranks.gathered(None)  # torchrun ends the first rank as soon as another has failed
    return SearchStoppedError(error.message, hint=f"{error.hint}{kept}")


def _names(tasks: Sequence[AdaptiveTask]) -> list[str]:
    return [task.name for task in tasks]


def merged_shapes(merged: MergedSource) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the tensors that have coefficients."""
    infos = merged.infos.items()
    return {name: info.shape for name, info in infos if info.dtype.is_floating_point}
