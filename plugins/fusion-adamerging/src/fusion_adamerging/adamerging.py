"""AdaMerging (arXiv:2310.02575): coefficients learned without labels, on examples of the tasks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from fusion_adamerging.coefficients import LEARNED_WITH, Coefficients
from fusion_adamerging.config import AdaMergingConfig
from fusion_adamerging.objective import disagreement_with, entropy_of
from fusion_adamerging.picture import picture
from fusion_adamerging.search import Search
from fusion_adamerging.watch import SearchStoppedError
from fusion_core import Algorithm, RunContext, write_durably
from fusion_core.adapting import (
    Batches,
    LiveMerge,
    Passes,
    Ranks,
    StateStore,
    ask_teachers,
    joined_ranks,
)
from fusion_core.errors import FusionError, IntegrityError, RecipeError
from fusion_core.weights import Electing, Linear, MergedSource, Trimming

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from torch import Tensor

    from fusion_core import ModelPool, Progress, TaskPool
    from fusion_core.adapting import Grain, Objective

COEFFICIENTS, METRICS = "coefficients.json", "metrics.jsonl"
#: What shares a coefficient in the granularities that are finer than a tensor.
GRAINS: dict[str, Grain] = {"row": "row", "column": "column"}


class AdaMerging(Algorithm[AdaMergingConfig]):
    """base + sum over experts of lambda_kl * task vector, the lambdas learned from unlabeled data.

    Minimises the sum over tasks of the mean entropy of the merged model's predictions (or of their
    distance from each expert's), with Adam (betas 0.9, 0.999). A *layer* is one parameter tensor,
    by its canonical name; coefficients may be finer, one an output row or input column of each
    matrix. Floating-point tensors that are not parameters (running statistics) and
    parameters that no expert changed keep the coefficient `init`. Ends in the same lazy linear
    combination as task arithmetic. Raises `FusionError` where the search diverges or collapses, the
    last good coefficients then being kept beside the output.
    """

    config_class = AdaMergingConfig

    def tasks(self, pool: TaskPool[Any]) -> TaskPool[Any]:
        """Halve the test examples if adaptation is to see one half and evaluation the other."""
        if self.config.adapt_split != "holdout":
            return pool
        try:
            return pool.holdout()
        except RecipeError as error:
            hint = "Adapt on the pool's own unlabeled examples: --set algorithm.adapt_split=test"
            raise RecipeError(error.message, hint=hint) from error

    def run(self, pool: ModelPool[Any], context: RunContext) -> MergedSource:
        """Search (or load) the coefficients; the merge itself stays lazy."""
        experts = list(pool.experts)
        if self.config.trim:
            pool = context.transformed(pool, Trimming(self.config.density))
            pool = context.transformed(pool, Electing())
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
        search = self._search(pool, merged, context, joined_ranks())
        try:
            learned = search.run(
                lambda steps: self._objective(pool, search.passes, steps, context.progress)
            )
        except SearchStoppedError as error:
            raise self._rescued(error, search, merged) from error
        found = self._named(learned, search, merged)
        context.save("coefficients.svg", picture(found, context.metrics.steps, search.live.leaves))
        return found

    def _search(
        self, pool: ModelPool[Any], merged: MergedSource, context: RunContext, ranks: Ranks
    ) -> Search:
        if context.tasks is None:
            raise FusionError("adamerging needs tasks with unlabeled data")
        names = self._adapted(pool, context.tasks)
        if self.config.objective == "teacher":
            for name in names:
                pool.expert_of(name)  # refuses a task without one before anything is loaded
        dtypes = {info.dtype for info in merged.infos.values()}
        live = LiveMerge(
            pool,
            merged,
            context.device,
            storage=self.config.task_vectors,
            dtype=torch.float64 if torch.float64 in dtypes else torch.float32,
            grain=GRAINS.get(self.config.granularity, "tensor"),
        )
        passes = Passes(
            live.model,
            [context.tasks.adaptive(name) for name in ranks.own(names)],
            Batches(self.config.batch_size, context.seed),
            context.device,
            bf16=self.config.precision == "bf16",
            shared=self.config.shared_pass,
        )
        experts = list(pool.experts)
        leaves = [list(leaf.names) for leaf in live.leaves]
        search = {
            "options": self.config.model_dump(mode="json", exclude={"save_every"}),
            "seed": context.seed,
            "experts": experts,
            "tasks": names,
            "leaves": leaves,
        }
        store = StateStore(context.state, "search", search)
        return Search(self.config, live, passes, experts, names, store, context, ranks)

    def _adapted(self, pool: ModelPool[Any], tasks: TaskPool[Any]) -> list[str]:
        """Return the tasks to adapt on; raises `RecipeError` for one that is not there."""
        if self.config.tasks is not None:
            return [tasks[name].name for name in self.config.tasks]
        own = {pool.task_of(expert) for expert in pool.experts}
        return [name for name in tasks.names if name in own] or list(tasks.names)

    def _objective(
        self, pool: ModelPool[Any], passes: Passes, steps: range, progress: Progress
    ) -> Objective:
        """Return what is minimised; each task's expert says once what it predicts in all steps."""
        if self.config.objective == "entropy":
            return entropy_of
        return disagreement_with(ask_teachers(pool, passes, steps, progress))

    def _named(self, learned: Tensor, search: Search, merged: MergedSource) -> Coefficients:
        start = dict.fromkeys(_merged_shapes(merged), self.config.init)
        found: dict[str, dict[str, Any]] = {expert: {**start} for expert in search.experts}
        for leaf, rows in search.live.by_leaf(learned.cpu()):
            for row, own in zip(found.values(), rows if leaf.shape else rows.tolist(), strict=True):
                row.update(dict.fromkeys(leaf.names, own))
        return Coefficients.of(found, self._learning(search.tasks, search.context))

    def _rescued(
        self, error: SearchStoppedError, search: Search, merged: MergedSource
    ) -> SearchStoppedError:
        """Keep the last good coefficients and what was logged, and say where they are."""
        step, coefficients = search.good
        kept = ""
        if not search.ranks.rank:
            good = self._named(search.every(coefficients), search, merged)
            for name, content in good.files(COEFFICIENTS).items():
                path = search.context.rescue(name, content)
            log = search.context.rescue(METRICS, search.context.metrics.as_bytes())
            kept = (
                f"\nThose of step {step} were good and are in {path}, for algorithm.coefficients.\n"
                f"Every step's figures are in {log}."
            )
        search.ranks.gathered(None)  # torchrun ends the first rank as soon as another has failed
        return SearchStoppedError(error.message, hint=f"{error.hint}{kept}")


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
