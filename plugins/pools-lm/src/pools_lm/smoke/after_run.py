"""The text that `fuse run` prints below its results: the smoke test and the next command."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from fusion_core.errors import FusionError
from pools_lm.gguf import conversion_command
from pools_lm.pools import CausalPool, Seq2SeqPool
from pools_lm.smoke.directory import load_model, models_of_pool
from pools_lm.smoke.memory import available_bytes
from pools_lm.smoke.smoke_test import SmokeTest

if TYPE_CHECKING:
    from pathlib import Path

    import torch

    from fusion_core import Progress, RunResult

_LOG = logging.getLogger(__name__)


def text_after_run(result: RunResult, device: torch.device, progress: Progress) -> str | None:
    """Return the text for a merged language model; None for a model of another kind."""
    path, pool = result.path, result.pool
    if path is None or not isinstance(pool, CausalPool | Seq2SeqPool):
        return None
    texts = [_run_smoke_test(path, pool, device, progress)]
    if result.add_modules is None:  # no other program knows the modules
        texts.append(conversion_command(path))
    return "\n\n".join(filter(None, texts)) or None


def _run_smoke_test(
    path: Path, pool: CausalPool | Seq2SeqPool, device: torch.device, progress: Progress
) -> str | None:
    """Return the answers of a merge, its base and its experts; None, with a warning, on failure.

    The base and experts do not read the merge's answers. Their own results are cached, so later
    runs build the merge alone.
    """
    try:
        others = models_of_pool(pool, path)
        size = max(model.nbytes for model in (*others, load_model(path)))
        available = available_bytes(device)
        if size > available:
            _LOG.warning(
                "no smoke test: a model needs %.1f GB, but %s has %.1f GB free",
                size / 1e9,
                device,
                available / 1e9,
            )
            return None
        smoke_test = SmokeTest(device=device, progress=progress, is_thorough=False)
        return smoke_test.run(path, others).as_text()
    except FusionError as error:
        _LOG.warning("no smoke test: %s", error.message)
        return None
