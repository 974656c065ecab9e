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
The stub `__init__.pyi` lists the names and their homes.
"""

from fusion_core._exports import lazy_exports

__all__, __getattr__ = lazy_exports(__name__, __file__)


def __dir__() -> list[str]:
    return __all__
