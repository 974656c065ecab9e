"""Answers about models that do not change, cached for later runs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fusion_core.running import _identity as identity
from fusion_core.running._cache import load, store

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import torch

    from fusion_core.contracts.model_pool import ModelPool
    from fusion_core.weights import WeightSource


def remembered(  # noqa: PLR0913 - the model, the question, and where it is answered
    pool: ModelPool[Any],
    source: WeightSource,
    question: Mapping[str, Any],
    answer: Callable[[], Any],
    *,
    device: torch.device,
    fresh: bool = False,
) -> Any:  # noqa: ANN401 - JSON
    """Return what `answer()` says about the model that a pool builds from weights, cached.

    `question` is everything that the answer depends on besides the model, the pool's code and the
    device. Question and answer are JSON data, and the answer is not null. Nothing is cached for
    weights in memory. `fresh` ignores a cached answer.
    """
    model, code = identity.identify_model(pool, source), identity.identify_code(type(pool))
    machine = identity.identify_machine(device)
    key = {"model": model, "question": dict(question), "code": code, "machine": machine}
    is_known = model is not None and code is not None
    result = load(key) if is_known and not fresh else None
    if result is None:
        result = answer()
        if is_known:
            store(key, result)
    return result
