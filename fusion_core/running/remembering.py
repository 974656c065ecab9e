"""What is asked of models that stay the same, and need not be asked again by later runs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fusion_core.running import _identity as identity
from fusion_core.running._remembered import keep, recall

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import torch

    from fusion_core.contracts.model_pool import ModelPool
    from fusion_core.weights import WeightSource


def remembered(  # noqa: PLR0913 - who is asked, what, and where
    pool: ModelPool[Any],
    source: WeightSource,
    question: Mapping[str, Any],
    answer: Callable[[], Any],
    *,
    device: torch.device,
    fresh: bool = False,
) -> Any:  # noqa: ANN401 - JSON
    """Return what `answer()` finds of a model that a pool builds of weights, or found before.

    `question` is all that the answer depends on beside the model, the pool's code and the device;
    both are JSON's data, and the answer is not null. Weights in memory are asked every time, and
    any where `fresh`.
    """
    model, code = identity.identify_model(pool, source), identity.identify_code(type(pool))
    machine = identity.identify_machine(device)
    key = {"model": model, "question": dict(question), "code": code, "machine": machine}
    is_known = model is not None and code is not None
    found = recall(key) if is_known and not fresh else None
    if found is None:
        found = answer()
        if is_known:
            keep(key, found)
    return found
