"""The suite of executors: merges have the bytes of a serial merge, and errors are reported."""

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
    """Checks that every executor must pass; `options` must work on this machine."""

    kind: ClassVar[type[Any]] = Executor

    @pytest.fixture
    def make(self, component: Component[Any], config: Any) -> Callable[[], Executor]:  # noqa: ANN401
        """Return the function that makes the executor."""
        return lambda: component.create(config)

    def test_a_merge_has_the_bytes_of_a_serial_one(
        self, component: Component[Any], options: Mapping[str, Any], tmp_path: Path
    ) -> None:
        """A merge of files writes the same files as a serial merge."""
        models = [_write_merge(tmp_path / name, seed) for seed, name in enumerate(("a", "b"))]
        chosen = {"name": component.qualified_name, **options}
        outputs = [
            _write_merge(
                tmp_path / f"out-{number}",
                models=models,
                executor=executor,
                trust=frozenset(component.spec.trust),
            )
            for number, executor in enumerate((chosen, "serial"))
        ]
        merged, expected = ((path / "model.safetensors").read_bytes() for path in outputs)
        if merged != expected:
            fail(
                f"the bytes of a merge by {component.spec.name!r} differ from a serial merge.",
                "Call each submitted function exactly once, with exactly its arguments.",
            )

    def test_what_work_raises_comes_back(self, make: Callable[[], Executor]) -> None:
        """An error in a worker becomes the error of its future, with the same type and text."""
        with make() as executor:
            error = executor.submit(_refuse, "no such tensor").exception()
        if not isinstance(error, LookupError) or "no such tensor" not in str(error):
            fail(
                f"expected LookupError('no such tensor') from a worker, got {error!r}.",
                "Pass the worker's error on: future.set_exception(error).",
            )

    def test_it_can_be_made_again(self, make: Callable[[], Executor]) -> None:
        """A process can make, use and close the executor more than once."""
        for _ in range(2):
            with make() as executor:
                try:
                    result: object = executor.submit(abs, -1).result()
                except RuntimeError as error:
                    result = error
            if result != 1:
                fail(
                    f"expected abs(-1) to return 1 on a second executor, got {result!r}.",
                    "Return a new executor each time, or do not close a shared one in `shutdown`.",
                )


def _write_merge(
    path: Path,
    seed: int = 0,
    *,
    models: Any = None,  # noqa: ANN401
    executor: Any = "serial",  # noqa: ANN401
    trust: frozenset[str] = frozenset(),
) -> Path:
    """Write a merge of tiny models, or of the given directories, to a directory."""
    run_fusion(
        algorithm=Mean(Mean.config_class()),
        model_pool=tiny_pool("mlp", seed=seed) if models is None else {"models": models},
        output=path,
        options=RunOptions(executor=executor, evaluate=False, trust=trust),
    )
    return path


def _refuse(text: str) -> NoReturn:
    raise LookupError(text)
