"""Checks of `ModelPool.build`: it must make complete live models from any weights of the pool.

Weights may come from a checkpoint without buffers, a merge that is computed on reading, or an
expert that is stored as its difference from the base.
"""

from __future__ import annotations

import warnings
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar

import pytest
import torch

from fusion_core.contracts.live_models import named_tensors, tensors_of
from fusion_core.contracts.model_pool import ModelPool
from fusion_core.errors import FusionError
from fusion_core.weights import WeightSource, as_weights
from fusion_testing._compare import differing_bytes
from fusion_testing._component import ComponentSuite
from fusion_testing._guards import untouched_globals
from fusion_testing._sources import as_delta, doubled, flattened, shifted, without
from fusion_testing._suite import fail

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch import Tensor, nn

    from fusion_core.plugins.components import Component
    from fusion_core.recipe.config import ComponentConfig

    Pool = ModelPool[Any]

_USE_BUILD_MODEL = "Build the model with `fusion_core.build_model`"

_CHANGES: dict[str, Callable[[WeightSource, str], WeightSource]] = {
    "missing": without,
    "extra": lambda source, tensor: doubled(source, tensor, name=f"{tensor}.again"),
    "shape": flattened,
}


class LiveModelSuite(ComponentSuite):
    """Checks of the live models that a pool builds; part of `ModelPoolSuite`."""

    kind: ClassVar[type[Any]] = ModelPool

    @pytest.fixture
    def make(self, component: Component[Any], config: ComponentConfig) -> Callable[[], Pool]:
        """Return the function that makes a new pool."""
        return lambda: component.load_class()(config)

    @pytest.fixture
    def pool(self, make: Callable[[], Pool]) -> Pool:
        """Return the pool."""
        return make()

    def test_a_live_model_has_the_weights(self, pool: Pool) -> None:
        """`build` returns a model in evaluation mode with all tensors of the source."""
        model = _build(pool, pool.reference)
        if any(part.training for part in model.modules()):
            fail(
                "`build` returned a model in training mode.",
                "Call eval() on the model before returning it.",
            )
        check_weights(pool, model, pool.reference)

    def test_every_expert_is_built_from_its_own_weights(self, pool: Pool) -> None:
        """`build` of an expert's source returns that expert, in evaluation mode."""
        for name, source in pool.experts.items():
            model = _build(pool, source)
            if any(part.training for part in model.modules()):
                fail(
                    f"`build` returned the expert {name!r} in training mode.",
                    "Call eval() on the model before returning it.",
                )
            check_weights(pool, model, as_weights(source, pool.base))

    def test_a_live_model_has_the_weights_that_it_is_built_from(self, pool: Pool) -> None:
        """`build` uses the values of the given source, also if they differ from the files."""
        source = shifted(pool.reference)
        check_weights(pool, _build(pool, source), source)

    def test_every_tensor_of_a_live_model_has_values(self, pool: Pool) -> None:
        """No parameter or buffer is left on the meta device or uninitialised."""
        first = _values(_build(pool, pool.reference))
        with _filled_memory():
            second = _values(_build(pool, pool.reference))
        if difference := differing_bytes(first, second):
            fail(
                f"two models built from the same weights differ, so memory is uninitialised: "
                f"{difference}.",
                f"{_USE_BUILD_MODEL}, which keeps the constructor's values for buffers that the "
                "weights lack. to_empty() loses them.",
            )

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
    def test_a_live_model_has_the_dtype_that_is_asked_for(
        self, pool: Pool, dtype: torch.dtype
    ) -> None:
        """`build(dtype=...)` converts all weights to the dtype."""
        model = _build(pool, pool.reference, dtype=dtype)
        for name, live in named_tensors(pool, model).items():
            if live.is_floating_point() and name in pool.reference.infos and live.dtype != dtype:
                fail(
                    f"`build(dtype={dtype})` returned {name!r} in {live.dtype}.",
                    f"{_USE_BUILD_MODEL}, and pass `dtype` to it.",
                )
        check_weights(pool, model, pool.reference)

    def test_a_live_model_is_on_the_device_that_is_asked_for(self, pool: Pool) -> None:
        """`build(device=...)` puts all tensors there; the check uses the meta device."""
        for name, tensor in tensors_of(_build(pool, pool.reference, device="meta")).items():
            if not tensor.is_meta:
                fail(
                    f"`build(device='meta')` returned {name!r} on {tensor.device}.",
                    f"{_USE_BUILD_MODEL}, and pass `device` to it.",
                )

    def test_differences_are_built_as_the_models_that_they_make(self, pool: Pool) -> None:
        """`build` adds the base to an expert stored as a difference, such as a LoRA adapter."""
        if pool.base is None:
            pytest.skip("the pool has no base")
        for expert in pool.experts.values():
            delta = as_delta(as_weights(expert, pool.base), pool.base)
            check_weights(pool, _build(pool, delta), as_weights(delta, pool.base))

    def test_a_pool_with_merges_in_the_places_of_models_builds_those(self, pool: Pool) -> None:
        """`build` uses the current sources of the pool, which may be merges of other recipes."""
        sources = pool.by_name.items()
        merges = {name: shifted(as_weights(source, pool.base)) for name, source in sources}
        inner = pool.with_sources(merges)
        for name, source in merges.items():
            check_weights(inner, _build(inner, inner.by_name[name]), source)
        if inner.base is not None:
            delta = as_delta(next(iter(pool.by_name.values())), inner.base)
            check_weights(inner, _build(inner, delta), as_weights(delta, inner.base))

    def test_live_models_are_independent(self, pool: Pool) -> None:
        """Training a live model changes neither the pool nor another live model."""
        before = pool.reference.state_dict()
        model, other = pool.build(pool.reference), pool.build(pool.reference)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(1)
        check_weights(pool, other, pool.reference)
        if difference := differing_bytes(before, pool.reference.state_dict()):
            fail(
                f"changing a live model changed its source: {difference}.",
                "Copy the weights in `build`.",
            )

    @pytest.mark.parametrize("problem", _CHANGES)
    def test_building_refuses_what_does_not_fit(self, pool: Pool, problem: str) -> None:
        """A missing, unexpected or misshapen tensor is an error that names the tensor."""
        tensor = a_float_of(pool)
        try:
            pool.build(_CHANGES[problem](pool.reference, tensor))
        except FusionError as error:
            if tensor in str(error) or tensor.rpartition(".")[2] in str(error):
                return
            fail(
                f"the error does not name the tensor {tensor!r}: {error}",
                "Name the tensor in the message.",
            )
        except Exception as error:  # noqa: BLE001 - the pool's libraries can raise any error
            fail(
                f"expected a FusionError from `build` for a tensor that is wrong ({problem}), got "
                f"{type(error).__name__}: {error}",
                f"{_USE_BUILD_MODEL}, or raise AlignmentError with the tensor's name.",
            )
        fail(
            f"expected an error from `build` for a tensor that is wrong ({problem}), got a model.",
            f"{_USE_BUILD_MODEL}, or load the weights with strict=True.",
        )

    def test_building_leaves_global_state_alone(self, pool: Pool) -> None:
        """`build` does not change global state, such as random numbers."""
        pool.build(pool.reference)  # libraries may change global state on their first import
        with untouched_globals("`build`"):
            pool.build(pool.reference)


def _build(pool: Pool, source: WeightSource, **options: Any) -> nn.Module:  # noqa: ANN401
    """Build a live model; fail if `build` raises an error."""
    try:
        return pool.build(source, **options)
    except Exception as error:  # noqa: BLE001 - the pool's libraries can raise any error
        kind = "differences from the base" if source.is_delta else "weights"
        arguments = "".join(f", {name}={value}" for name, value in options.items())
        return fail(
            f"`build({kind}{arguments})` raised {type(error).__name__}: {error}",
            f"{_USE_BUILD_MODEL}, and pass dtype, device and base=self.base to it.",
        )


def check_weights(pool: Pool, model: nn.Module, source: WeightSource) -> None:
    """Fail unless the parameters and buffers of a live model equal the tensors of a source."""
    known = source.infos.keys() | pool.live_layout.slots.keys()
    if unknown := sorted(pool.parameters(model).keys() - known):
        fail(
            f"`parameters` returns a parameter {unknown[0]!r}, but the weights have no such "
            "tensor.",
            "Return a mapping from tensor names to live parameters.",
        )
    _values(model)
    named = named_tensors(pool, model)
    for name, info in source.infos.items():
        live = named.get(name)
        if live is None and info.dtype.is_floating_point:
            fail(
                f"the live model has no parameter or buffer for the tensor {name!r}.",
                "Override `parameters` to map tensor names to live parameters.",
            )
        if live is not None and not torch.equal(live, source.tensor(name).to(live.dtype)):
            fail(
                f"the values of {name!r} in the live model differ from the weights.",
                f"{_USE_BUILD_MODEL}, which also loads buffers and adds differences to "
                "base=self.base.",
            )


def a_float_of(pool: Pool) -> str:
    """Return the name of the largest matrix, or else of the largest floating-point tensor."""
    infos = [info for info in pool.reference.infos.values() if info.dtype.is_floating_point]
    return max(infos, key=lambda info: (len(info.shape) == 2, info.numel)).name  # noqa: PLR2004


def _values(model: nn.Module) -> dict[str, Tensor]:
    """Return all tensors of a model; fail if one is on the meta device."""
    tensors = tensors_of(model)
    for name, tensor in tensors.items():
        if tensor.is_meta:
            fail(
                f"`build` left {name!r} of the live model on the meta device, without values.",
                f"{_USE_BUILD_MODEL}, which keeps the constructor's values for buffers.",
            )
    return tensors


@contextmanager
def _filled_memory() -> Iterator[None]:
    """Let torch fill new tensors with NaN or the largest integer."""
    before = torch.get_deterministic_debug_mode()
    with warnings.catch_warnings(
        action="ignore"
    ):  # about operations that are not deterministic on some devices
        torch.set_deterministic_debug_mode("warn")
        try:
            yield
        finally:
            torch.set_deterministic_debug_mode(before)
