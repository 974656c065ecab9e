"""The suite of executors: a merge has the same bytes on each, and what goes wrong is heard of."""

from __future__ import annotations

from concurrent.futures import Executor
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn

import pytest

from fusion_core.planning.run_options import RunOptions
from fusion_core.running.run import run_fusion
from fusion_testing._component import ComponentSuite
from fusion_testing._models import tiny_pool
from fusion_testing._suite import fail
from fusion_testing._tensorwise import Mean

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from fusion_core.plugins.components import Component


class ExecutorSuite(ComponentSuite):
    """What every executor keeps; `options` are those of one that this machine can start."""

    kind: ClassVar[type[Any]] = Executor

    @pytest.fixture
    def make(self, component: Component[Any], config: Any) -> Callable[[], Executor]:  # noqa: ANN401
        """Return what makes the executor."""
        return lambda: component.create(config)

    def test_a_merge_has_the_bytes_of_a_serial_one(
        self, component: Component[Any], options: Mapping[str, Any], tmp_path: Path
    ) -> None:
        """Files are merged to the same files."""
        models = [_written(tmp_path / name, seed) for seed, name in enumerate(("a", "b"))]
        chosen = {"name": component.qualified_name, **options}
        written = [
            _written(
                tmp_path / f"out-{number}",
                models=models,
                executor=executor,
                trust=frozenset(component.spec.trust),
            )
            for number, executor in enumerate((chosen, "serial"))
        ]
        found, expected = ((path / "model.safetensors").read_bytes() for path in written)
        if found != expected:
            fail(
                f"a merge on {component.spec.name!r} has other bytes than a serial one.",
                "Call what is submitted exactly once, with what it was submitted with.",
            )

    def test_what_work_raises_comes_back(self, make: Callable[[], Executor]) -> None:
        """An error in a worker is the error of its future, type and text included."""
        with make() as executor:
            error = executor.submit(_refuse, "no such tensor").exception()
        if not isinstance(error, LookupError) or "no such tensor" not in str(error):
            fail(
                f"LookupError('no such tensor') in a worker came back as {error!r}.",
                "Give the future what the work raised: future.set_exception(error).",
            )

    def test_it_can_be_made_again(self, make: Callable[[], Executor]) -> None:
        """A process merges more than once, and leaves each executor when it is done."""
        for _ in range(2):
            with make() as executor:
                try:
                    answer: object = executor.submit(abs, -1).result()
                except RuntimeError as error:
                    answer = error
            if answer != 1:
                fail(
                    f"asked for abs(-1), it answered {answer!r}.",
                    "Make a new executor each time, or let `shutdown` leave a shared one open.",
                )


def _written(
    path: Path,
    seed: int = 0,
    *,
    models: Any = None,  # noqa: ANN401
    executor: Any = "serial",  # noqa: ANN401
    trust: frozenset[str] = frozenset(),
) -> Path:
    """Write a merge: of tiny models, or of directories."""
    run_fusion(
        algorithm=Mean(Mean.config_class()),
        model_pool=tiny_pool("mlp", seed=seed) if models is None else {"models": models},
        output=path,
        options=RunOptions(executor=executor, evaluate=False, trust=trust),
    )
    return path


def _refuse(text: str) -> NoReturn:
    raise LookupError(text)
