"""Checks of a model pool's sources: distinct models, and repeatable reads of any range."""

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
    """Checks of every pool's sources; part of `ModelPoolSuite`."""

    def test_experts_differ_from_the_base_and_from_each_other(self, pool: Pool) -> None:
        """No two models of the pool have the same values."""
        models = {name: as_weights(source, pool.base) for name, source in pool.by_name.items()}
        for (one, weights), (other, other_weights) in combinations(models.items(), 2):
            if _are_equal(weights, other_weights):
                fail(
                    f"the models {one!r} and {other!r} have the same weights.",
                    "Open each expert's own weights, not the base's or another expert's.",
                )

    def test_sources_hold_the_same_values_again(self, make: Callable[[], Pool]) -> None:
        """A second pool and a pickled source have the same weights."""
        pool, second = make(), make()
        for name, source in pool.by_name.items():
            for copy in (second.by_name[name], _pickled(name, source)):
                for tensor in _a_few(source):
                    if digest(source.tensor(tensor)) != digest(copy.tensor(tensor)):
                        fail(
                            f"{tensor!r} of {name!r} has different values when read again.",
                            "Return stored values, and draw no random numbers in `read`.",
                        )

    def test_inputs_tell_models_apart(self, pool: Pool) -> None:
        """`inputs` changes if two experts from different files are exchanged."""
        (one, first), *others = pool.experts.items()
        different = [(name, s) for name, s in others if _files_of(s) != _files_of(first)]
        if not different:
            pytest.skip("no two experts come from different files")
        other, second = different[0]
        exchanged = pool.with_sources({one: second, other: first})
        if json.dumps(exchanged.inputs()) == json.dumps(pool.inputs()):
            fail(
                f"`inputs` does not change when the experts {one!r} and {other!r} are exchanged.",
                "Name every model's files, as ModelPool.inputs does.",
            )

    def test_sources_can_be_read_in_pieces(self, pool: Pool) -> None:
        """Ranges of a tensor have its values, and its dtype and shape match `infos`."""
        for source in _sources(pool):
            for name in _a_few(source):
                _check_pieces(source, name)

    def test_matrices_fit_the_tensors(self, pool: Pool) -> None:
        """`matrices` is repeatable and fits the stored tensors."""
        aligned = pool.aligned(AlignmentPolicy())
        with advised():
            layout, repeated = aligned.layout, aligned.layout
        if layout != repeated:
            fail(
                "`matrices` returns different results for the same tensors.",
                "Decide by the name, the shape and the models' configuration alone.",
            )
        for source in _sources(aligned):
            packed = layout.pack(layout.unpack(source))
            expected = {name: source.tensor(name) for name in [*layout.slots][:3]}
            if differing_bytes({name: packed.tensor(name) for name in expected}, expected):
                fail(
                    "taking the matrices out of a tensor and putting them back changes the tensor.",
                    "Declare every element in exactly one matrix.",
                )


def _files_of(source: WeightSource) -> dict[str, Any]:
    return {} if source.origin is None else dict(source.origin.files)


def _sources(pool: Pool) -> list[WeightSource]:
    return [*([] if pool.base is None else [pool.base]), *pool.experts.values()]


def _are_equal(one: WeightSource, other: WeightSource) -> bool:
    """Tell whether two models have the same values; stop at the first difference."""
    names = [info.name for info in one.infos.values() if info.dtype.is_floating_point]
    return all(
        name in other.infos and torch.equal(one.tensor(name), other.tensor(name).to(dtype))
        for name, dtype in ((name, one.infos[name].dtype) for name in names)
    )


def _pickled(name: str, source: WeightSource) -> WeightSource:
    """Return a pickled copy of a source."""
    try:
        copy: WeightSource = pickle.loads(pickle.dumps(source))  # noqa: S301 - pickled here
    except Exception as error:  # noqa: BLE001 - pickling can raise any error
        fail(
            f"the source of {name!r} cannot be pickled: {error}",
            "Store paths and names in sources, not open files or lambdas.",
        )
    return copy


def _a_few(source: WeightSource) -> list[str]:
    names = list(source.infos)
    return list(dict.fromkeys([*names[:3], names[len(names) // 2], names[-1]]))


def _check_pieces(source: WeightSource, name: str) -> None:
    info, whole = source.infos[name], source.tensor(name)
    if whole.dtype != info.dtype or tuple(whole.shape) != info.shape:
        fail(
            f"expected {name!r} as {info.dtype} of shape {list(info.shape)}, got {whole.dtype} of "
            f"shape {list(whole.shape)}.",
            "Return tensors as `infos` describes them.",
        )
    if source.cut is not Cut.ELEMENT:
        return
    middle = info.numel // 2
    halves = [source.read(name, 0, middle), source.read(name, middle, info.numel)]
    if differing_bytes({"": torch.cat(halves)}, {"": whole.reshape(-1)}):
        fail(
            f"the two halves of {name!r}, read separately, differ from the whole tensor.",
            "Return exactly the elements [start, stop) in row-major order.",
        )
