"""The suite of model pools: lazy sources that agree, and merges of them that are models again."""

from __future__ import annotations

import json
import pickle
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from pydantic_core import PydanticSerializationError

from fusion_core.contracts.specs import TaskPoolSpec
from fusion_core.errors import AlignmentError, PluginError
from fusion_core.planning.options import RunOptions
from fusion_core.plugins.manager import load_plugins
from fusion_core.recipe.config import AlignmentPolicy
from fusion_core.running.run import run_fusion
from fusion_core.testing._bench import with_experts
from fusion_core.testing._compare import differing_bytes
from fusion_core.testing._elsewhere import ElsewhereError, call_elsewhere, describe_models
from fusion_core.testing._guards import digest, no_network
from fusion_core.testing._live_models import LiveModelSuite, a_float_of, check_weights
from fusion_core.testing._sources import without
from fusion_core.testing._suite import fail
from fusion_core.testing._tensorwise import Mean
from fusion_core.weights import CheckpointSource, Cut, WeightSource, as_weights
from fusion_core.weights.writing.target import is_plain

if TYPE_CHECKING:
    from collections.abc import Callable

    from fusion_core.contracts.model_pool import ModelPool
    from fusion_core.contracts.specs import ModelPoolSpec
    from fusion_core.plugins.components import Component
    from fusion_core.recipe.config import ComponentConfig

    Pool = ModelPool[Any]


class ModelPoolSuite(LiveModelSuite):
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
        try:
            options = config.model_dump(mode="json")
        except PydanticSerializationError:
            pytest.skip("the options hold live models, which no other process can have")
        recipe = [component.spec.target, component.spec.config, options]
        call = "fusion_core.testing._elsewhere:describe_models"
        try:
            there = call_elsewhere(call, *recipe, names=list(make().experts))
        except ElsewhereError as error:
            fail(f"the pool cannot be made in another process:\n{error}", "See above.")
        for what, value in json.loads(json.dumps(describe_models(*recipe))).items():
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

    def test_experts_differ_from_the_base_and_from_each_other(self, pool: Pool) -> None:
        """Every model of the pool has values of its own."""
        every = {name: as_weights(each, pool.base) for name, each in pool.by_name.items()}
        for (one, weights), (other, others) in combinations(every.items(), 2):
            if _are_equal(weights, others):
                fail(
                    f"the models {one!r} and {other!r} are the same.",
                    "Give each expert its own weights, and not the base's.",
                )

    def test_sources_hold_the_same_values_again(self, make: Callable[[], Pool]) -> None:
        """A pool that is made again, or sent to another process, has the same weights."""
        pool, again = make(), make()
        for name, source in pool.by_name.items():
            for copy in (again.by_name[name], _sent(name, source)):
                for tensor in _a_few(source):
                    if digest(source.tensor(tensor)) != digest(copy.tensor(tensor)):
                        fail(
                            f"{tensor!r} of {name!r} has other values when it is read again.",
                            "Return what is stored; draw nothing when weights are read.",
                        )

    def test_inputs_tell_models_apart(self, pool: Pool) -> None:
        """Where weights come from files, `inputs` changes with the files of an expert."""
        (one, first), *others = pool.experts.items()
        rivals = [
            (name, each) for name, each in others if dict(each.files()) != dict(first.files())
        ]
        if not rivals:
            pytest.skip("no two experts come from different files")
        other, second = rivals[0]
        if json.dumps(pool.with_sources({one: second, other: first}).inputs()) == json.dumps(
            pool.inputs()
        ):
            fail(
                "`inputs` stays the same when two experts are exchanged.",
                "Name each model's files, as ModelPool.inputs does.",
            )

    def test_what_is_said_of_models_is_by_their_names(self, pool: Pool) -> None:
        """`licences` and `beside` name the models of the pool."""
        for method, named in (("licences", pool.licences()), ("beside", pool.beside())):
            if strange := sorted(named.keys() - pool.by_name.keys()):
                fail(f"`{method}` names {strange[0]!r}.", "Use the names of base and experts.")

    def test_sources_can_be_read_in_pieces(self, pool: Pool) -> None:
        """A range of a tensor holds what the whole tensor holds there, in the promised dtype."""
        for source in _sources(pool):
            for name in _a_few(source):
                _check_pieces(source, name)

    def test_inputs_can_be_recorded(self, pool: Pool) -> None:
        """What identifies the inputs is JSON, for the provenance."""
        json.dumps(pool.inputs())

    def test_side_files_are_plain(self, pool: Pool) -> None:
        """Assets are files beside the weights, a folder at most around them; they exist."""
        for name, content in pool.assets().items():
            if not is_plain(name):
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


def _sources(pool: Pool) -> list[WeightSource]:
    return [*([] if pool.base is None else [pool.base]), *pool.experts.values()]


def _are_equal(one: WeightSource, other: WeightSource) -> bool:
    """Tell whether two models have the same values; stops at the first tensor that differs."""
    names = [info.name for info in one.infos.values() if info.dtype.is_floating_point]
    return all(
        name in other.infos and torch.equal(one.tensor(name), other.tensor(name).to(dtype))
        for name, dtype in ((name, one.infos[name].dtype) for name in names)
    )


def _sent(name: str, source: WeightSource) -> WeightSource:
    """Return a source as another process gets it."""
    try:
        sent: WeightSource = pickle.loads(pickle.dumps(source))  # noqa: S301 - made right here
    except Exception as error:  # noqa: BLE001 - whatever objects raise that cannot be pickled
        fail(
            f"the source of {name!r} cannot be sent to other processes: {error}",
            "Keep paths and names in it, and no open files or lambdas.",
        )
    return sent


def _a_few(source: WeightSource) -> list[str]:
    names = list(source.infos)
    return list(dict.fromkeys([*names[:3], names[len(names) // 2], names[-1]]))


def _check_pieces(source: WeightSource, name: str) -> None:
    info, whole = source.infos[name], source.tensor(name)
    if whole.dtype != info.dtype or tuple(whole.shape) != info.shape:
        fail(f"{name!r} is read as {whole.dtype} of {list(whole.shape)}.", "Say so in `infos`.")
    if source.cut is not Cut.ELEMENT:
        return
    middle = info.numel // 2
    halves = [source.read(name, 0, middle), source.read(name, middle, info.numel)]
    if differing_bytes({"": torch.cat(halves)}, {"": whole.reshape(-1)}):
        fail(f"two halves of {name!r} are not the whole.", "Read the range that is asked for.")


def _default_tasks(spec: ModelPoolSpec) -> tuple[str, ...]:
    if spec.default_task_pool is None:
        return ()
    try:
        return load_plugins().find(TaskPoolSpec, spec.default_task_pool).spec.tasks
    except PluginError as error:
        fail(f"the default task pool is not installed: {error}", "Name one that comes along.")
