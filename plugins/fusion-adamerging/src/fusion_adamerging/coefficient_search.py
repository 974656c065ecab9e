"""A search for the coefficients of a linear merge, and the files that record its result."""

from __future__ import annotations

import math
import tempfile
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from fusion_adamerging.coefficients import LEARNED_WITH, Coefficients
from fusion_adamerging.config import CoefficientSearchConfig
from fusion_adamerging.picture import draw_search
from fusion_adapting import (
    Adaptive,
    LiveMerge,
    Search,
    SearchStoppedError,
    count_live_memory,
    join_ranks,
)
from fusion_core.files import write_durably
from fusion_core.weights import is_matrix

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from torch import Tensor

    from fusion_adamerging.learnable import LearnableMerge
    from fusion_core import AdaptiveTask, ModelPool, RunContext, TensorInfo
    from fusion_core.weights import MergedSource

COEFFICIENTS, METRICS = "coefficients.json", "metrics.jsonl"
SearchConfigT = TypeVar("SearchConfigT", bound=CoefficientSearchConfig)
LearnedT = TypeVar("LearnedT", bound="LearnableMerge")


class CoefficientSearch(Adaptive[SearchConfigT], Generic[SearchConfigT, LearnedT]):
    """base + sum over experts of coefficients * task vector, learned from unlabeled data.

    Minimises the sum over tasks of the mean entropy of the merged model's predictions, or of their
    distance from the expert's predictions, with Adam (betas 0.9, 0.999). Floating-point tensors
    that are not parameters (running statistics), and parameters that no expert changed, keep the
    coefficient `init`. The result is a lazy linear combination, as in task arithmetic. If the
    search diverges or collapses, it raises `FusionError` and saves the last good coefficients next
    to the output.
    """

    #: the class of the learned tensors, unless `make_learned` builds them otherwise
    learns: type[LearnedT]

    def fallback(self, info: TensorInfo) -> str | None:
        """Name the treatment of tensors without rows, columns or components."""
        has_parts = {"row": len(info.shape) > 1, "column": len(info.shape) > 1, "tensor": True}
        if has_parts.get(self.config.grain, is_matrix(info.shape)):
            return None
        return "one coefficient per expert"

    def held_memory(self, model: int, pool: ModelPool[Any]) -> int:
        """Count the live model, gradients, and the task vectors in memory with their base.

        The singular vectors of `rank` and `adarank` come on top.
        """
        del model
        return count_live_memory(
            pool,
            storage=self.config.task_vectors,
            grain=self.config.grain,
            bf16_passes=self.config.precision == "bf16",
        )

    def make_learned(
        self,
        pool: ModelPool[Any],
        live: LiveMerge,
        tasks: Sequence[AdaptiveTask],
        context: RunContext,
    ) -> LearnedT:
        """Return the tensors to learn, with their initial values; `tasks` are adapted on."""
        del tasks
        return self.learns(live, list(pool.experts), context.device, self.config)

    def search(
        self, pool: ModelPool[Any], merged: MergedSource, context: RunContext
    ) -> tuple[Coefficients, LearnedT]:
        """Search from a lazy merge; return the coefficients by name and the learned tensors.

        Raises `SearchStoppedError` if the search diverges or collapses, after saving the last good
        coefficients.
        """
        merged.prepare(context.executor)
        ranks = join_ranks()
        tasks = self.adapted(pool, context)
        names, own_tasks = [task.name for task in tasks], ranks.share(tasks)
        counts = self.examples_by_task(tasks, context)
        self.warn_of_few(counts, context)
        objective = self.objective(pool, own_tasks, context)  # before the merge takes memory
        live = self._live_merge(pool, merged, context)
        learned = self.make_learned(pool, live, tasks, context)
        known = {name: int(count) for name, count in counts.items() if count < math.inf}
        options = {
            **self.learning_options(names, context),
            **({"adapt_split": "test"} if is_transductive(context) else {}),
            "examples": known,
            "task_vectors": live.count_storage(),
        }
        to_coefficients = partial(self._name_coefficients, live, merged, learned, options)
        if live.leaves:  # otherwise every expert equals the base
            passes = self.passes(live.model, own_tasks, context)
            passes = replace(passes, task_parameters=learned.task_parameters)
            store = self.store(
                context,
                experts=list(pool.experts),
                tasks=names,
                leaves=[list(leaf.names) for leaf in live.leaves],
            )
            search = Search(self.config, learned, passes, names, store, context, ranks)
            try:
                search.run(objective)
            except SearchStoppedError as error:
                raise _save_last_good(error, search, to_coefficients) from error
        coefficients = to_coefficients(learned.tensors)
        svg = draw_search(coefficients, context.metrics.steps, live.leaves, start=self.config.init)
        context.save("coefficients.svg", svg)
        return coefficients, learned

    def learning_options(self, tasks: Sequence[str], context: RunContext) -> dict[str, Any]:
        """Return what gives the coefficients their meaning: options, tasks and transforms."""
        options = self.config.model_dump(mode="json", include=LEARNED_WITH)
        transforms = {"transforms": list(context.transforms)} if context.transforms else {}
        return {**options, "tasks": list(tasks), **transforms}

    def _live_merge(
        self, pool: ModelPool[Any], merged: MergedSource, context: RunContext
    ) -> LiveMerge:
        scratch = context.state or Path(tempfile.gettempdir())
        return LiveMerge(
            pool,
            merged,
            context.device,
            storage=self.config.task_vectors,
            grain=self.config.grain,
            rows_in=scratch if context.transforms else None,
            bf16_passes=self.config.precision == "bf16",
        )

    def _name_coefficients(
        self,
        live: LiveMerge,
        merged: MergedSource,
        learned: LearnableMerge,
        options: Mapping[str, Any],
        tensors: Mapping[str, Tensor],
    ) -> Coefficients:
        """Return the coefficients that learned tensors stand for, by expert and tensor name."""
        start = dict.fromkeys(merged_shapes(merged), self.config.init)
        rows: dict[str, dict[str, Any]] = {expert: {**start} for expert in learned.experts}
        for leaf, values in live.by_leaf(learned.coefficients(tensors).cpu()):
            by_expert = values if leaf.shape else values.tolist()
            for row, value in zip(rows.values(), by_expert, strict=True):
                row.update(dict.fromkeys(leaf.names, value))
        return Coefficients.of(rows, options)


def _save_last_good(
    error: SearchStoppedError,
    search: Search,
    to_coefficients: Callable[[Mapping[str, Tensor]], Coefficients],
) -> SearchStoppedError:
    """Save the last good coefficients and the log; return the error with their paths."""
    step, good = search.good
    paths = ""
    if not search.ranks.rank:
        context = search.context
        files = to_coefficients(good).files(COEFFICIENTS)
        *_, path, log = rescue({**files, METRICS: context.metrics.as_bytes()}, context.output)
        paths = (
            f"\nThe coefficients of step {step} were good. To merge with them: "
            f"algorithm.coefficients={path}\nThe metrics of every step are in {log}."
        )
    search.ranks.gather(None)  # torchrun ends the first rank as soon as another has failed
    return SearchStoppedError(error.message, hint=f"{error.hint}{paths}")


def rescue(files: Mapping[str, bytes], output: Path | None) -> list[Path]:
    """Write files of a run that fails next to its output, as `<output>.<name>`; return the paths.

    A run without an output gets a temporary directory for them.
    """
    if output is None:
        folder, prefix = Path(tempfile.mkdtemp(prefix="fusion-")), ""
    else:
        folder, prefix = output.parent, f"{output.name}."
    paths = {folder / f"{prefix}{name}": content for name, content in files.items()}
    for path, content in paths.items():
        write_durably(path, content)
    return [*paths]


def is_transductive(context: RunContext) -> bool:
    """Tell whether the unlabeled examples are those that the run measures."""
    return context.tasks is not None and context.tasks.transductive


def merged_shapes(merged: MergedSource) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the tensors that have coefficients."""
    infos = merged.infos.items()
    return {name: info.shape for name, info in infos if info.dtype.is_floating_point}
