"""The smoke test after a run: what `fuse run` shows below its results."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from fusion_core.errors import FusionError
from pools_lm.pools import CausalPool, Seq2SeqPool
from pools_lm.smoke.directory import speakers
from pools_lm.smoke.trial import Trial

if TYPE_CHECKING:
    import torch

    from fusion_core import Progress, RunResult

_LOG = logging.getLogger(__name__)


def smoke_after_run(
    result: RunResult, device: torch.device, progress: Progress, *, fresh: bool
) -> str | None:
    """Return what a merge answers beside its base and experts; None for a model of another kind.

    They read each other's answers, and the merge theirs; they do not read the merge's, so once they
    are known the merge alone is built. A test that fails is a warning.
    """
    if result.path is None or not isinstance(result.pool, CausalPool | Seq2SeqPool):
        return None
    trial = Trial(device=device, progress=progress, fresh=fresh, is_thorough=False)
    try:
        found = trial.findings(result.path, speakers(result.pool, result.path))
    except FusionError as error:
        _LOG.warning("no smoke test: %s", error.message)
        return None
    return found.as_text()
