"""Options of every method: forms that say the same give the same bytes."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import pytest
import torch

from fusion_core import AlgorithmSpec, merge
from fusion_core.planning.option_descriptions import describe_component_options
from fusion_core.plugins.manager import load_plugins
from fusion_core.plugins.ownership import COMPONENTS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fusion_core.plugins.components import Component

pytestmark = pytest.mark.plugins

OURS = {name for name in COMPONENTS if find_spec(name.replace("-", "_"))}
SHAPES = {
    "embed.weight": (9, 6),
    **{
        f"layers.{n}.{part}": shape
        for n in range(3)
        for part, shape in {"up.weight": (8, 6), "up.bias": (8,), "norm": (6,)}.items()
    },
    "head.weight": (9, 6),
}


def curves() -> Iterator[Any]:
    """Yield every method with the options that may follow depth, each with a number."""
    for component in load_plugins().components(AlgorithmSpec):
        if component.plugin.distribution not in OURS:
            continue
        for option in describe_component_options(component):
            if "by depth" in option.forms:
                number = option.default if isinstance(option.default, float) else 0.5
                yield pytest.param(
                    component, option.name, number, id=f"{component.spec.name}-{option.name}"
                )


def result(component: Component[AlgorithmSpec], options: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Run a method on tiny models with layers."""
    spec = component.spec
    draw = torch.Generator().manual_seed(0)
    names = [f"step-{number}" for number in range(min(3, spec.max_experts or 3))]
    base, *experts = (
        {name: torch.randn(shape, generator=draw) for name, shape in SHAPES.items()}
        for _ in range(len(names) + 1)
    )
    stage = {"name": spec.name, **options}
    if spec.cost == "matrices":
        stage |= {name: 3 for name in component.load_config().model_fields if name == "steps"}
    stages = {"transform": [stage, "simple-average"], "calibrate": ["simple-average", stage]}
    models = {"base": base, "models": dict(zip(names, experts, strict=True))}
    return merge(stages.get(spec.stage, [stage]), models).state_dict()


@pytest.mark.sampled(4)
@pytest.mark.parametrize(("component", "option", "number"), [*curves()])
def test_a_flat_curve_is_its_number(
    component: Component[AlgorithmSpec], option: str, number: float
) -> None:
    expected = result(component, {option: number})
    for curve in ([number], [number] * 4):
        merged = result(component, {"by_depth": {"outside": "all", option: curve}})
        assert merged.keys() == expected.keys()
        assert all(torch.equal(merged[name], values) for name, values in expected.items())


def test_most_methods_have_options_that_follow_depth() -> None:
    assert len({parameters.values[0].spec.name for parameters in curves()}) > 20
