"""Conformance suites, tiny models and tasks, and pytest fixtures for authors of plugins.

    from fusion_core import AlgorithmSpec
    from fusion_testing import AlgorithmSuite

    class TestMedian(AlgorithmSuite):
        @pytest.fixture
        def spec(self) -> AlgorithmSpec:
            (spec,) = plugin.fusion_register_algorithms()
            return spec

pytest loads the fixtures of this package in every session, also in sessions that never use them.
So names are imported on first use, and such sessions do not wait for torch. The stub `__init__.pyi`
lists the names and the modules that define them.
"""

from fusion_core.commands import lazy_exports

__all__, __getattr__, __dir__ = lazy_exports(__name__, __file__)
