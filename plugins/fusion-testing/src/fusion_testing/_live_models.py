"""The checks of `ModelPool.build`: whole models, as asked for, of whatever the weights are.

Checkpoints lack buffers, merges are computed when they are read, experts may be differences from
the base: each of them has to become a model that is all there.
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

_USE_OURS = "Construct the model by `build_model` of fusion_core"

_CHANGES: dict[str, Callable[[WeightSource, str], WeightSource]] = {
    "missing": without,
    "extra": lambda source, tensor: doubled(source, tensor, name=f"{tensor}.again"),
    "shape": flattened,
}


class LiveModelSuite(ComponentSuite):
    """What every model pool keeps when it builds models; a part of `ModelPoolSuite`."""

    kind: ClassVar[type[Any]] = ModelPool

    @pytest.fixture
    def make(self, component: Component[Any], config: ComponentConfig) -> Callable[[], Pool]:
        """Return what makes the pool, anew each time."""
        return lambda: component.load_class()(config)

    @pytest.fixture
    def pool(self, make: Callable[[], Pool]) -> Pool:
        """Return the pool."""
        return make()

    def test_a_live_model_has_the_weights(self, pool: Pool) -> None:
        """`build` returns an evaluating model whose tensors are the source's, buffers included."""
        model = _build(pool, pool.reference)
        if any(part.training for part in model.modules()):
            fail("`build` returned a model in training mode.", "Call its eval().")
        check_weights(pool, model, pool.reference)

    def test_every_expert_is_built_from_its_own_weights(self, pool: Pool) -> None:
        """`build` of an expert's source returns that expert, in evaluation mode."""
        for source in pool.experts.values():
            model = _build(pool, source)
            if any(part.training for part in model.modules()):
                fail("`build` returned an expert in training mode.", "Call its eval().")
            check_weights(pool, model, as_weights(source, pool.base))

    def test_a_live_model_has_the_weights_that_it_is_built_from(self, pool: Pool) -> None:
        """`build` takes any source of the pool's kind: a merge has other values than the files."""
        source = shifted(pool.reference)
        check_weights(pool, _build(pool, source), source)

    def test_every_tensor_of_a_live_model_has_values(self, pool: Pool) -> None:
        """No parameter or buffer is left on the meta device, or as memory happened to be."""
        plain = _values(_build(pool, pool.reference))
        with _filled_memory():
            again = _values(_build(pool, pool.reference))
        if found := differing_bytes(plain, again):
            fail(
                f"a model that is built twice differs where nothing was written: {found}.",
                f"{_USE_OURS}, not with to_empty(): buffers that the weights lack keep the values "
                "that the constructor gives them.",
            )

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
    def test_a_live_model_has_the_dtype_that_is_asked_for(
        self, pool: Pool, dtype: torch.dtype
    ) -> None:
        """`build(dtype=...)` gives it to all weights, whatever they are stored in."""
        model = _build(pool, pool.reference, dtype=dtype)
        for name, live in named_tensors(pool, model).items():
            if live.is_floating_point() and name in pool.reference.infos and live.dtype != dtype:
                fail(
                    f"`build(dtype={dtype})` left {name!r} in {live.dtype}.",
                    f"{_USE_OURS}, and pass `dtype` on.",
                )
        check_weights(pool, model, pool.reference)

    def test_a_live_model_is_on_the_device_that_is_asked_for(self, pool: Pool) -> None:
        """`build(device=...)` leaves nothing elsewhere; the meta device stands for any other."""
        for name, tensor in tensors_of(_build(pool, pool.reference, device="meta")).items():
            if not tensor.is_meta:
                fail(
                    f"`build(device='meta')` left {name!r} on {tensor.device}.",
                    f"{_USE_OURS}, and pass `device` on.",
                )

    def test_differences_are_built_as_the_models_that_they_make(self, pool: Pool) -> None:
        """An expert may be its difference from the base, as a LoRA adapter's are."""
        if pool.base is None:
            pytest.skip("differences have a base")
        for expert in pool.experts.values():
            delta = as_delta(as_weights(expert, pool.base), pool.base)
            check_weights(pool, _build(pool, delta), as_weights(delta, pool.base))

    def test_a_pool_with_merges_in_the_places_of_models_builds_those(self, pool: Pool) -> None:
        """A recipe may stand where a model does: `build` looks at the pool's sources of now."""
        merges = {name: shifted(as_weights(each, pool.base)) for name, each in pool.by_name.items()}
        inner = pool.with_sources(merges)
        for name, source in merges.items():
            check_weights(inner, _build(inner, inner.by_name[name]), source)
        if inner.base is not None:
            delta = as_delta(next(iter(pool.by_name.values())), inner.base)
            check_weights(inner, _build(inner, delta), as_weights(delta, inner.base))

    def test_live_models_are_independent(self, pool: Pool) -> None:
        """Training one changes neither the pool nor another one."""
        before = pool.reference.state_dict()
        model, other = pool.build(pool.reference), pool.build(pool.reference)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(1)
        check_weights(pool, other, pool.reference)
        if found := differing_bytes(before, pool.reference.state_dict()):
            fail(f"changing a live model changed its source: {found}.", "Copy in `build`.")

    @pytest.mark.parametrize("problem", _CHANGES)
    def test_building_refuses_what_does_not_fit(self, pool: Pool, problem: str) -> None:
        """A tensor that is missing, unexpected or of another shape is an error that names it."""
        tensor = a_float_of(pool)
        try:
            pool.build(_CHANGES[problem](pool.reference, tensor))
        except FusionError as error:
            if tensor in str(error) or tensor.rpartition(".")[2] in str(error):
                return
            fail(f"the error does not name {tensor!r}: {error}", "Name the tensor.")
        except Exception as error:  # noqa: BLE001 - whatever the pool's libraries raise
            fail(
                f"{problem} tensor: `build` raised {type(error).__name__}, which users see as a "
                f"bug with a traceback.",
                f"{_USE_OURS}, or raise AlignmentError with the tensor's name.",
            )
        fail(
            f"`build` accepted weights with a {problem} tensor.",
            f"{_USE_OURS}, or load with strict=True.",
        )

    def test_building_leaves_global_state_alone(self, pool: Pool) -> None:
        """A model's initial weights are random numbers that nobody needs; they are not drawn."""
        pool.build(pool.reference)  # what a first import sets is not the pool's doing
        with untouched_globals("`build`"):
            pool.build(pool.reference)


def _build(pool: Pool, source: WeightSource, **options: Any) -> nn.Module:  # noqa: ANN401
    """Build a live model; fails if the pool cannot."""
    try:
        return pool.build(source, **options)
    except Exception as error:  # noqa: BLE001 - whatever the pool's libraries raise
        kind = "differences from the base" if source.is_delta else "weights"
        asked = "".join(f", {name}={value}" for name, value in options.items())
        return fail(
            f"`build({kind}{asked})` raised {type(error).__name__}: {error}",
            f"{_USE_OURS}, and pass dtype, device and base=self.base on.",
        )


def check_weights(pool: Pool, model: nn.Module, source: WeightSource) -> None:
    """Fail unless a live model's parameters and buffers are a source's tensors, in its dtype."""
    if strange := sorted(pool.parameters(model).keys() - source.infos.keys()):
        fail(
            f"`parameters` calls a parameter {strange[0]!r}, and no tensor is called so.",
            "Map the tensors' names to the live parameters.",
        )
    _values(model)
    named = named_tensors(pool, model)
    for name, info in source.infos.items():
        live = named.get(name)
        if live is None and info.dtype.is_floating_point:
            fail(f"no parameter or buffer is {name!r}.", "Write `parameters`.")
        if live is not None and not torch.equal(live, source.tensor(name).to(live.dtype)):
            fail(
                f"{name!r} of the live model is not the source's.",
                f"{_USE_OURS}, which loads buffers, too, and adds differences to base=self.base.",
            )


def a_float_of(pool: Pool) -> str:
    """Return the name of a matrix, or of any floating-point tensor."""
    infos = [each for each in pool.reference.infos.values() if each.dtype.is_floating_point]
    return max(infos, key=lambda info: (len(info.shape) == 2, info.numel)).name  # noqa: PLR2004


def _values(model: nn.Module) -> dict[str, Tensor]:
    """Return all tensors of a model; fails if one has no values."""
    tensors = tensors_of(model)
    for name, tensor in tensors.items():
        if tensor.is_meta:
            fail(
                f"`build` left {name!r} of the live model on the meta device, without values.",
                f"{_USE_OURS}, which keeps the values that the constructor gives to buffers.",
            )
    return tensors


@contextmanager
def _filled_memory() -> Iterator[None]:
    """Have torch fill the memory that it hands out, with NaN or the largest number."""
    before = torch.get_deterministic_debug_mode()
    with warnings.catch_warnings(action="ignore"):  # of what is not deterministic on some device
        torch.set_deterministic_debug_mode("warn")
        try:
            yield
        finally:
            torch.set_deterministic_debug_mode(before)
