"""The suite of model pools: lazy sources that agree, and merges of them that are models again."""

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
from fusion_testing._elsewhere import ElsewhereError, call_elsewhere, describe_models
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
    """What every model pool keeps; `options` make a pool with a few small models."""

    def test_making_a_pool_reads_no_weights(
        self, make: Callable[[], Pool], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Listing, checking and planning a run look at headers only."""

        def refuse(source: CheckpointSource, name: str, *_: int) -> None:
            fail(
                f"making the pool read tensor {name!r} of {source.describe()}.",
                "Keep sources as they are; read in `build` only.",
            )

        monkeypatch.setattr(CheckpointSource, "read", refuse)
        pool = make()
        pool.aligned(AlignmentPolicy())

    def test_the_pool_is_the_same_in_another_process(
        self, make: Callable[[], Pool], component: Component[Any], config: ComponentConfig
    ) -> None:
        """Experts come in the same order, with the same identity, wherever the pool is made."""
        pool = make()
        options = _options_of(config)
        recipe = [component.spec.target, component.spec.config, options]
        call = "fusion_testing._elsewhere:models_elsewhere"
        try:
            there = call_elsewhere(call, *recipe, names=list(pool.experts))
        except ElsewhereError as error:
            fail(f"the pool cannot be made in another process:\n{error}", "See above.")
        for what, value in json.loads(json.dumps(describe_models(pool))).items():
            if there[what] != value:
                fail(
                    f"{what} differs in another process: {value} here, {there[what]} there.",
                    "Keep names in a tuple or list, never in a set; use hashlib, not hash().",
                )

    def test_experts_are_there_and_in_a_fixed_order(self, make: Callable[[], Pool]) -> None:
        """Results are summed in the order of `experts`, so it is part of the result."""
        first, second = list(make().experts), list(make().experts)
        if not first:
            fail("the pool has no experts.", "Set `experts` in the constructor.")
        if first != second:
            fail(f"the order differs from one time to the next: {first}, {second}.", "Sort them.")

    def test_models_fit_together(self, pool: Pool) -> None:
        """Every expert has the base's tensors in the same shapes."""
        pool.aligned(AlignmentPolicy())

    def test_an_expert_that_lacks_a_tensor_is_refused_by_name(self, pool: Pool) -> None:
        """Alignment is not weakened: a missing tensor is an error that names it."""
        tensor = a_float_of(pool)
        *others, last = pool.experts
        lacking = {last: without(pool.experts[last], tensor)}
        spoiled = with_experts(pool, {**{name: pool.experts[name] for name in others}, **lacking})
        if pool.base is None and not others:
            pytest.skip("the only model has nothing to be compared with")
        try:
            spoiled.aligned(AlignmentPolicy())
        except AlignmentError as error:
            if tensor in error.message:
                return
        fail(f"an expert without {tensor!r} was accepted.", "Do not override `aligned`.")

    def test_what_is_said_of_models_is_by_their_names(self, pool: Pool) -> None:
        """`licences` and `side_files` name the models of the pool."""
        for method, named in (("licences", pool.licences()), ("side_files", pool.side_files())):
            if strange := sorted(named.keys() - pool.by_name.keys()):
                fail(f"`{method}` names {strange[0]!r}.", "Use the names of base and experts.")

    def test_inputs_can_be_recorded(self, pool: Pool) -> None:
        """What identifies the inputs is JSON, for the provenance."""
        json.dumps(pool.inputs())

    def test_side_files_are_plain(self, pool: Pool) -> None:
        """Assets are files beside the weights, a folder at most around them; they exist."""
        for name, content in pool.assets().items():
            if not is_side_file_name(name):
                fail(f"the asset {name!r} is not a plain file name.", "Use one folder at most.")
            if not isinstance(content, bytes) and not Path(content).is_file():
                fail(f"the asset {name!r} is {content}, which is not a file.", "Give what exists.")

    def test_every_expert_has_a_task_of_the_default_task_pool(
        self, pool: Pool, spec: ModelPoolSpec
    ) -> None:
        """`task_of` names tasks that the pool's own task pool has."""
        known = _default_tasks(spec)
        for expert in pool.experts if known else ():
            if pool.task_of(expert) not in known:
                fail(
                    f"expert {expert!r} belongs to task {pool.task_of(expert)!r}, and "
                    f"{spec.default_task_pool} has {', '.join(known)}.",
                    "Write `task_of`, or call experts like their tasks.",
                )

    def test_a_merge_is_a_model_of_the_pool(self, pool: Pool, tmp_path: Path) -> None:
        """The mean of the experts, written as a directory, is read and built like an expert."""
        result = run_fusion(
            algorithm=Mean(),
            model_pool=pool,
            output={"path": str(tmp_path / "merged")},
            options=RunOptions(evaluate=False),
        )
        again = CheckpointSource(tmp_path / "merged")
        if found := differing_bytes(again.state_dict(), result.weights.state_dict()):
            fail(f"the directory differs from the result: {found}.", "Leave assets to `assets`.")
        check_weights(pool, pool.build(again), again)

    def test_it_works_offline_if_it_says_so(
        self, make: Callable[[], Pool], spec: ModelPoolSpec
    ) -> None:
        """A pool declared `offline` opens no connection."""
        if spec.offline:
            with no_network("the pool"):
                make().aligned(AlignmentPolicy())


def _options_of(config: ComponentConfig) -> dict[str, Any]:
    """Return options as JSON's data; skips the check for live models, which stay in a process."""
    try:
        options = config.model_dump(mode="json")
        survive = validate(type(config), options) == config
    except (PydanticSerializationError, FusionError):
        survive = False
    if not survive:
        pytest.skip("the options hold live models, which no other process can have")
    return options


def _default_tasks(spec: ModelPoolSpec) -> tuple[str, ...]:
    if spec.default_task_pool is None:
        return ()
    try:
        return load_plugins().find(TaskPoolSpec, spec.default_task_pool).spec.tasks
    except PluginError as error:
        fail(f"the default task pool is not installed: {error}", "Name one that comes along.")
