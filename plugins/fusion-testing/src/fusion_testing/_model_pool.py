"""The suite of model pools: lazy sources, aligned models, and merges that build."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from pydantic_core import PydanticSerializationError

from fusion_core.contracts.specs import TaskPoolSpec
from fusion_core.errors import AlignmentError, FusionError, PluginError
from fusion_core.planning.run_options import RunOptions
from fusion_core.plugins.manager import load_plugins
from fusion_core.recipe.config import AlignmentPolicy
from fusion_core.recipe.validation import validate
from fusion_core.running.run import run_fusion
from fusion_core.weights import CheckpointSource
from fusion_core.weights.writing.output_path import is_side_file_name
from fusion_testing._bench import with_experts
from fusion_testing._compare import differing_bytes
from fusion_testing._elsewhere import call_elsewhere, describe_models
from fusion_testing._guards import no_network
from fusion_testing._live_models import LiveModelSuite, a_float_of, check_weights
from fusion_testing._sources import without
from fusion_testing._suite import fail
from fusion_testing._tensorwise import Mean
from fusion_testing._weights import WeightChecks

if TYPE_CHECKING:
    from collections.abc import Callable

    from fusion_core.contracts.model_pool import ModelPool
    from fusion_core.contracts.specs import ModelPoolSpec
    from fusion_core.plugins.components import Component
    from fusion_core.recipe.config import ComponentConfig

    Pool = ModelPool[Any]


class ModelPoolSuite(WeightChecks, LiveModelSuite):
    """Checks that every model pool must pass; `options` should give a few small models."""

    def test_making_a_pool_reads_no_weights(
        self, make: Callable[[], Pool], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Making and aligning a pool reads headers only, so plans and checks are fast."""

        def refuse(source: CheckpointSource, name: str, *_: int) -> None:
            fail(
                f"making the pool read tensor {name!r} of {source.describe()}.",
                "Return lazy sources, and read weights only in `build`.",
            )

        monkeypatch.setattr(CheckpointSource, "read", refuse)
        pool = make()
        pool.aligned(AlignmentPolicy())

    def test_the_pool_is_the_same_in_another_process(
        self, make: Callable[[], Pool], component: Component[Any], config: ComponentConfig
    ) -> None:
        """The order and identity of experts are the same in every process."""
        pool = make()
        options = _options_of(config)
        recipe = [component.spec.target, component.spec.config, options]
        call = "fusion_testing._elsewhere:models_elsewhere"
        remote = call_elsewhere(call, *recipe, names=list(pool.experts))
        for what, value in json.loads(json.dumps(describe_models(pool))).items():
            if remote[what] != value:
                fail(
                    f"{what} differs in another process: expected {value}, got {remote[what]}.",
                    "Keep names in a tuple or list, not in a set. Use hashlib, not hash().",
                )

    def test_experts_are_there_and_in_a_fixed_order(self, make: Callable[[], Pool]) -> None:
        """The pool has experts in a fixed order, on which the rounding of sums depends."""
        first, second = list(make().experts), list(make().experts)
        if not first:
            fail("the pool has no experts.", "Set `self.experts` in the constructor.")
        if first != second:
            fail(
                f"the order of experts changes: {first} and then {second}.",
                "Keep the order of the options, or sort the names.",
            )

    def test_models_fit_together(self, pool: Pool) -> None:
        """Every expert has the base's tensors with the same shapes."""
        pool.aligned(AlignmentPolicy())

    def test_an_expert_that_lacks_a_tensor_is_refused_by_name(self, pool: Pool) -> None:
        """A missing tensor is an error that names it."""
        tensor = a_float_of(pool)
        *others, last = pool.experts
        lacking = {last: without(pool.experts[last], tensor)}
        spoiled = with_experts(pool, {**{name: pool.experts[name] for name in others}, **lacking})
        if pool.base is None and not others:
            pytest.skip("the pool has only one model")
        try:
            spoiled.aligned(AlignmentPolicy())
        except AlignmentError as error:
            if tensor in error.message:
                return
        fail(
            f"expected an error for an expert without the tensor {tensor!r}.",
            "Do not override `aligned`.",
        )

    def test_what_is_said_of_models_is_by_their_names(self, pool: Pool) -> None:
        """The keys of `cards` and `side_files` are names of models."""
        for method, named in (("cards", pool.cards()), ("side_files", pool.side_files())):
            if unknown := sorted(named.keys() - pool.by_name.keys()):
                fail(
                    f"`{method}` has an unknown model {unknown[0]!r}.",
                    "Use 'base' and the names of the experts as keys.",
                )

    def test_inputs_can_be_recorded(self, pool: Pool) -> None:
        """`inputs` is JSON data, for the provenance."""
        json.dumps(pool.inputs())

    def test_side_files_are_plain(self, pool: Pool) -> None:
        """Assets are existing files, with at most one folder in their names."""
        for name, content in pool.assets().items():
            if not is_side_file_name(name):
                fail(
                    f"the asset name {name!r} is not a plain file name.",
                    "Use a file name with at most one folder.",
                )
            if not isinstance(content, bytes) and not Path(content).is_file():
                fail(
                    f"the asset {name!r} is missing: {content}.",
                    "Return the path of an existing file, or bytes.",
                )

    def test_every_expert_has_a_task_of_the_default_task_pool(
        self, pool: Pool, spec: ModelPoolSpec
    ) -> None:
        """`task_of` returns names of tasks in the pool's default task pool."""
        known = _default_tasks(spec)
        for expert in pool.experts if known else ():
            if pool.task_of(expert) not in known:
                fail(
                    f"`task_of({expert!r})` is {pool.task_of(expert)!r}, but "
                    f"{spec.default_task_pool} has only {', '.join(known)}.",
                    "Override `task_of`, or give experts the names of their tasks.",
                )

    def test_a_merge_is_a_model_of_the_pool(self, pool: Pool, tmp_path: Path) -> None:
        """The mean of the experts, written to a directory, can be read and built again."""
        result = run_fusion(
            algorithm=Mean(),
            model_pool=pool,
            output={"path": str(tmp_path / "merged")},
            options=RunOptions(evaluate=False),
        )
        written = CheckpointSource(tmp_path / "merged")
        if difference := differing_bytes(written.state_dict(), result.weights.state_dict()):
            fail(
                f"the written merge differs from the result in memory: {difference}.",
                "Do not return weight files from `assets`.",
            )
        check_weights(pool, pool.build(written), written)

    def test_it_works_offline_if_it_says_so(
        self, make: Callable[[], Pool], spec: ModelPoolSpec
    ) -> None:
        """A pool declared `offline` opens no network connection."""
        if spec.offline:
            with no_network("the pool"):
                make().aligned(AlignmentPolicy())


def _options_of(config: ComponentConfig) -> dict[str, Any]:
    """Return options as JSON data; skip the check if they hold live models."""
    try:
        options = config.model_dump(mode="json")
        is_serialisable = validate(type(config), options) == config
    except (PydanticSerializationError, FusionError):
        is_serialisable = False
    if not is_serialisable:
        pytest.skip("the options hold live models, which cannot be sent to another process")
    return options


def _default_tasks(spec: ModelPoolSpec) -> tuple[str, ...]:
    if spec.default_task_pool is None:
        return ()
    try:
        return load_plugins().find(TaskPoolSpec, spec.default_task_pool).spec.tasks
    except PluginError as error:
        fail(
            f"the default task pool of the spec is not installed: {error}",
            "Name a task pool of this package or of one that it requires.",
        )
