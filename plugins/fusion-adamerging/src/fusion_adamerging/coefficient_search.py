"""Coefficients of a linear merge: learned or loaded, named, written, and merged with."""

from __future__ import annotations

from abc import abstractmethod
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from fusion_adamerging.adaptive import Adaptive
from fusion_adamerging.coefficients import LEARNED_WITH, Coefficients
from fusion_adamerging.config import CoefficientsConfig
from fusion_adamerging.picture import picture
from fusion_adamerging.search import Search
from fusion_adamerging.watch import SearchStoppedError
from fusion_core import write_durably
from fusion_core.adapting import LiveMerge, joined_ranks
from fusion_core.errors import IntegrityError
from fusion_core.weights import Linear

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from torch import Tensor

    from fusion_adamerging.learned import LearnedMerge
    from fusion_core import AdaptiveTask, ModelPool, RunContext
    from fusion_core.adapting import Grain
    from fusion_core.weights import MergedSource

COEFFICIENTS, METRICS = "coefficients.json", "metrics.jsonl"
CoefficientsT = TypeVar("CoefficientsT", bound=CoefficientsConfig)


class CoefficientSearch(Adaptive[CoefficientsT]):
    """base + sum over experts of coefficients * task vector, learned from unlabeled data.

    Minimises the sum over tasks of the mean entropy of the merged model's predictions (or of their
    distance from each expert's), with Adam (betas 0.9, 0.999). Floating-point tensors that are not
    parameters (running statistics) and parameters that no expert changed keep the coefficient
    `init`. Ends in the same lazy linear combination as task arithmetic. Raises `FusionError` where
    the search diverges or collapses, the last good coefficients then being kept beside the output.
    """

    @property
    @abstractmethod
    def grain(self) -> Grain:
        """What shares a coefficient."""

    @abstractmethod
    def learned(
        self, live: LiveMerge, experts: Sequence[str], device: torch.device
    ) -> LearnedMerge:
        """Return what is learned, as it is at first."""

    def run(self, pool: ModelPool[Any], context: RunContext) -> MergedSource:
        """Search (or load) the coefficients; the merge itself stays lazy."""
        experts = list(pool.experts)
        merged = context.merged(pool, Linear((self.config.init,) * len(experts)))
        if self.config.coefficients is None:
            found = self._searched(pool, merged, context)
        else:
            found = self._loaded(self.config.coefficients, experts, merged, context)
        files = found.files(COEFFICIENTS)
        _check_still(files[COEFFICIENTS], context.state)
        for name, content in files.items():
            context.save(name, content)
        return context.merged(pool, Linear(found.by_tensor(experts)))

    def _loaded(
        self, path: str, experts: Sequence[str], merged: MergedSource, context: RunContext
    ) -> Coefficients:
        found = Coefficients.load(path, experts=experts, shapes=_merged_shapes(merged))
        found.check_fits(path, self._learning([], context))
        return found

    def _learning(self, tasks: Sequence[str], context: RunContext) -> dict[str, Any]:
        """Say what coefficients are learned for, and on what: what they mean depends on it."""
        options = self.config.model_dump(mode="json", include=LEARNED_WITH)
        after = {"transforms": list(context.transforms)} if context.transforms else {}
        return {**options, "tasks": list(tasks), **after}

    def _searched(
        self, pool: ModelPool[Any], merged: MergedSource, context: RunContext
    ) -> Coefficients:
        merged.prepare(context.executor)
        ranks = joined_ranks()
        tasks = self.adapted(pool, context)
        live = self._live(pool, merged, context)
        learned = self.learned(live, list(pool.experts), context.device)
        name = partial(self._named, live, merged, learned, self._learning(_names(tasks), context))
        if live.leaves:  # else every expert is the base
            passes = self.passes(live.model, ranks.own(tasks), context)
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
        return found

    def _live(self, pool: ModelPool[Any], merged: MergedSource, context: RunContext) -> LiveMerge:
        dtypes = {info.dtype for info in merged.infos.values()}
        return LiveMerge(
            pool,
            merged,
            context.device,
            storage=self.config.task_vectors,
            dtype=torch.float64 if torch.float64 in dtypes else torch.float32,
            grain=self.grain,
        )

    def _named(
        self,
        live: LiveMerge,
        merged: MergedSource,
        learned: LearnedMerge,
        learning: Mapping[str, Any],
        tensors: Mapping[str, Tensor],
    ) -> Coefficients:
        start = dict.fromkeys(_merged_shapes(merged), self.config.init)
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
            f"\nThose of step {step} were good and are in {path}, for algorithm.coefficients.\n"
            f"Every step's figures are in {log}."
        )
    search.ranks.gathered(None)  # torchrun ends the first rank as soon as another has failed
    return SearchStoppedError(error.message, hint=f"{error.hint}{kept}")


def _names(tasks: Sequence[AdaptiveTask]) -> list[str]:
    return [task.name for task in tasks]


def _check_still(content: bytes, state: Path | None) -> None:
    """Keep the coefficients for a run that goes on; raises `IntegrityError` if they have changed.

    What that run has written already was merged with those.
    """
    if state is None:
        return
    kept = state / COEFFICIENTS
    if kept.is_file() and kept.read_bytes() != content:
        raise IntegrityError(
            "the coefficients are not those that the stopped run has merged with",
            hint="Give algorithm.coefficients the same content, or leave --resume out.",
        )
    write_durably(kept, content, parents=True)


def _merged_shapes(merged: MergedSource) -> dict[str, tuple[int, ...]]:
    infos = merged.infos.items()
    return {name: info.shape for name, info in infos if info.dtype.is_floating_point}
