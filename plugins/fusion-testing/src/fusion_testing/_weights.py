"""Checks of a model pool's sources: each model's own values, read again, in pieces, elsewhere."""

from __future__ import annotations

import json
import pickle
from itertools import combinations
from typing import TYPE_CHECKING, Any

import pytest
import torch

from fusion_core.recipe.config import AlignmentPolicy
from fusion_core.weights import Cut, WeightSource, as_weights
from fusion_testing._compare import differing_bytes
from fusion_testing._component import ComponentSuite
from fusion_testing._guards import digest
from fusion_testing._suite import advised, fail

if TYPE_CHECKING:
    from collections.abc import Callable

    from fusion_core.contracts.model_pool import ModelPool

    Pool = ModelPool[Any]


class WeightChecks(ComponentSuite):
    """What the sources of every model pool keep; a part of `ModelPoolSuite`."""

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
        rivals = [(name, each) for name, each in others if _files_of(each) != _files_of(first)]
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

    def test_sources_can_be_read_in_pieces(self, pool: Pool) -> None:
        """A range of a tensor holds what the whole tensor holds there, in the promised dtype."""
        for source in _sources(pool):
            for name in _a_few(source):
                _check_pieces(source, name)

    def test_matrices_fit_the_tensors(self, pool: Pool) -> None:
        """`matrices` declares the axes of tensors as they are stored, and always the same ones."""
        aligned = pool.aligned(AlignmentPolicy())
        with advised():
            layout, again = aligned.layout, aligned.layout
        if layout != again:
            fail(
                "`matrices` declares other matrices when it is asked again.",
                "Decide by the name, the shape and the models' configuration alone.",
            )
        for source in _sources(aligned):
            packed = layout.pack(layout.unpack(source))
            some = {name: source.tensor(name) for name in [*layout.slots][:3]}
            if differing_bytes({name: packed.tensor(name) for name in some}, some):
                fail(
                    "matrices that are taken out of a tensor and put back make another one.",
                    "Declare each element's place once.",
                )


def _files_of(source: WeightSource) -> dict[str, Any]:
    return {} if source.origin is None else dict(source.origin.files)


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
