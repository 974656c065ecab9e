"""An expert and its base, opened and aligned for the extraction of an adapter."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from fusion_core import AlignmentPolicy, ExecutorSpec
from fusion_core.commands import load_plugins
from fusion_core.errors import AlignmentError
from fusion_core.weights import RenamedSource, as_weights, select_names
from fusion_lora.extraction import Extraction
from fusion_lora.reading.live_names import find_live_names
from pools_checkpoints import CheckpointsConfig, CheckpointsPool

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from concurrent.futures import Executor

    from fusion_core import WeightSource
    from fusion_lora.options import ExtractionOptions

#: Files next to the weights do not matter here, and a vocabulary may have grown.
_POLICY = AlignmentPolicy(config="ignore", tokenizer="ignore", vocab="pad")


@dataclass(frozen=True)
class Pair:
    """The weights of a fine-tuned model and of its base, under the names of the live model."""

    model: WeightSource
    base: WeightSource
    #: the names of tensors to which the expert adds rows
    grown: frozenset[str]
    executor: Executor
    #: the facts of both models' cards
    cards: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def plan(
        self,
        options: ExtractionOptions,
        *,
        only: Sequence[str] = (),
        skip: Sequence[str] = (),
        whole: Sequence[str] = (),
    ) -> Extraction:
        """Return the extraction that patterns on tensor names ask for.

        Raises `RecipeError` for a pattern that matches nothing, and `AlignmentError` for embeddings
        with more rows than the base's that are not stored whole.
        """
        names = self.base.infos.keys()
        chosen = select_names(only, names, "--only") if only else set(names)
        skipped = select_names(skip, names, "--skip") if skip else set()
        stored = select_names(whole, names, "--save-whole") if whole else set()
        select_names([*options.ranks.patterns], names, "--rank-pattern")
        if missing := sorted(self.grown - stored):
            raise AlignmentError(
                f"{missing[0]} has more rows than the base's ({len(missing)} tensors): factors "
                "cannot add rows",
                hint=f"Store them whole: {' '.join(f'--save-whole {name}' for name in missing)}",
            )
        return Extraction(
            self.model, self.base, options.ranks, chosen - skipped, stored, options.dtype
        )


def open_pair(expert: str, base: str, blocked: frozenset[str] = frozenset()) -> Pair:
    """Open a model and its base, without the plugins in `blocked`.

    Raises the errors of the pool `checkpoints`.
    """
    plugins = load_plugins(blocked)
    with plugins.active():
        pool = CheckpointsPool(CheckpointsConfig(base=base, models={"expert": expert}))
        aligned = pool.aligned(_POLICY)
    assert pool.base is not None  # noqa: S101 - named above
    assert aligned.base is not None  # noqa: S101
    original = pool.base.infos
    grown = {
        name
        for name, info in aligned.base.infos.items()
        if name in original and original[name].shape != info.shape
    }
    model = as_weights(aligned.experts["expert"], aligned.base)  # it may be an adapter
    live = find_live_names(pool.base)
    names = {live.get(stored, stored): stored for stored in aligned.base.infos}
    threads = plugins.find(ExecutorSpec, "threads")
    executor: Executor = threads.create(threads.load_config()())
    return Pair(
        RenamedSource(
            model, {name: stored for name, stored in names.items() if stored in model.infos}
        ),
        RenamedSource(aligned.base, names),
        frozenset(live.get(stored, stored) for stored in grown),
        executor,
        pool.cards(),
    )
