"""How algorithms are written: checked by mypy and pyright, never run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, assert_type

from torch import Tensor, nn

from fusion_core import (
    Algorithm,
    AlgorithmSpec,
    ComponentConfig,
    Cut,
    ModelPool,
    Piece,
    RunContext,
    RunInfo,
    RunResult,
    Scan,
    TensorwiseAlgorithm,
    WeightSource,
    hookimpl,
)
from fusion_core.weights import Linear, Scope, sum_in_order


class ShrinkConfig(ComponentConfig):
    """Options."""

    factor: float = 0.5
    """How much is left."""
    tensors: Sequence[str] = ()
    """Which tensors."""


class Shrink(TensorwiseAlgorithm[ShrinkConfig]):
    """A method that needs no more than a piece."""

    config_class = ShrinkConfig

    def merge(self, piece: Piece) -> Tensor:
        """Options are typed, and so is everything of a piece."""
        assert_type(self.config, ShrinkConfig)
        assert_type(self.config.factor, float)
        assert_type(piece.base, Tensor)
        assert_type(piece.task_vectors, Tensor)
        assert_type(piece.names, tuple[str, ...])
        assert_type(piece.info.shape, tuple[int, ...])
        return piece.base + self.config.factor * sum_in_order(piece.task_vectors)


class Surveyed(Shrink):
    """A method that looks at the whole model first, and cuts by row."""

    @property
    def cut(self) -> Cut:
        """How finely tensors may be cut."""
        return Cut.ROW

    @property
    def scope(self) -> Scope:
        """What `survey` looks at."""
        return Scope.MODEL

    def survey(self, scan: Scan) -> float:
        """Return the largest magnitude: a scan gives what its fold returns."""
        largest = scan(_largest, max, 0.0)
        assert_type(largest, float)
        return largest


def _largest(piece: Piece) -> float:
    return float(piece.experts.abs().max())


class Chosen(Algorithm[ShrinkConfig]):
    """A method that needs the whole pool."""

    config_class = ShrinkConfig

    def run(self, pool: ModelPool[Any], context: RunContext) -> WeightSource | nn.Module:
        """What a pool and a run's context hold is typed."""
        assert_type(pool.base, WeightSource | None)
        assert_type(pool.experts, Mapping[str, WeightSource])
        assert_type(context.seed, int)
        context.save("notes.json", {"factor": self.config.factor})
        context.log(0, {"factor": self.config.factor})
        return context.merge(pool, Linear((self.config.factor,) * len(pool.experts)))


def made_from_a_file(path: Path) -> None:
    """`from_yaml` gives the class that it is called on."""
    assert_type(Shrink.from_yaml(path), Shrink)
    assert_type(Chosen(ShrinkConfig(factor=1)).config, ShrinkConfig)


def called_by_hand(pool: ModelPool[Any], base: nn.Module) -> None:
    """Options are keywords, and models a pool or a mapping."""
    assert_type(Shrink(factor=1).run(pool), WeightSource)
    assert_type(Shrink().run({"base": base, "models": {"a": {"w": Tensor()}}}), WeightSource)
    assert_type(Shrink().run(pool, RunContext()), WeightSource)


def wrong(piece: Piece) -> None:
    """What a type checker must refuse; an ignore that is not needed is an error, too."""
    Shrink(ComponentConfig())  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    print(Shrink().config.densty)  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue]
    piece.names = ("a",)  # type: ignore[misc]  # pyright: ignore[reportAttributeAccessIssue]
    AlgorithmSpec(name="x", summary="")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]


@hookimpl
def fusion_register_algorithms() -> Iterator[AlgorithmSpec]:
    """Hooks keep their types."""
    yield AlgorithmSpec(name="shrink", summary="Shrink.", target="a:B", config="a:C")


@hookimpl
def fusion_run_finished(run: RunInfo, result: RunResult) -> None:
    """And so does what they are given."""
    assert_type(run.path, Path | None)
    assert_type(result.weights, WeightSource)
    assert_type(result.model, nn.Module)


assert_type(list(fusion_register_algorithms()), list[AlgorithmSpec])
