"""What authors of plugins test with: conformance suites, tiny models and tasks, pytest fixtures.

    from fusion_core import AlgorithmSpec
    from fusion_testing import AlgorithmSuite

    class TestMedian(AlgorithmSuite):
        @pytest.fixture
        def spec(self) -> AlgorithmSpec:
            (found,) = plugin.fusion_register_algorithms()
            return found

Everything is imported when it is used: pytest loads the fixtures of this package in every session
of an environment in which fusion-testing is installed, and those sessions must not pay for torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fusion_testing._algorithm import AlgorithmSuite
    from fusion_testing._command import CommandSuite
    from fusion_testing._executor import ExecutorSuite
    from fusion_testing._format import FormatSuite
    from fusion_testing._model_pool import ModelPoolSuite
    from fusion_testing._models import MODELS, tiny_pool
    from fusion_testing._stages import CalibrationSuite, TransformSuite
    from fusion_testing._task_pool import TaskPoolSuite
    from fusion_testing._tasks import TinyTasks
    from fusion_testing._tensorwise import Mean
    from fusion_testing._texts import tiny_text_pool

_HOME_OF = {
    "AlgorithmSuite": "_algorithm",
    "CalibrationSuite": "_stages",
    "CommandSuite": "_command",
    "ExecutorSuite": "_executor",
    "FormatSuite": "_format",
    "MODELS": "_models",
    "Mean": "_tensorwise",
    "ModelPoolSuite": "_model_pool",
    "TaskPoolSuite": "_task_pool",
    "TransformSuite": "_stages",
    "TinyTasks": "_tasks",
    "tiny_pool": "_models",
    "tiny_text_pool": "_texts",
}

__all__ = [
    "MODELS",
    "AlgorithmSuite",
    "CalibrationSuite",
    "CommandSuite",
    "ExecutorSuite",
    "FormatSuite",
    "Mean",
    "ModelPoolSuite",
    "TaskPoolSuite",
    "TinyTasks",
    "TransformSuite",
    "tiny_pool",
    "tiny_text_pool",
]


def __getattr__(name: str) -> Any:  # noqa: ANN401 - any public object
    if name not in _HOME_OF:
        raise AttributeError(f"module 'fusion_testing' has no attribute {name!r}")
    return getattr(import_module(f"fusion_testing.{_HOME_OF[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
