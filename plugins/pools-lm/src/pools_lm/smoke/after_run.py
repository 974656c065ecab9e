"""What `fuse run` shows below its results: the smoke test, and how to go on from there."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from fusion_core.errors import FusionError
from pools_lm.gguf import conversion
from pools_lm.pools import CausalPool, Seq2SeqPool
from pools_lm.smoke.directory import model_in, speakers
from pools_lm.smoke.room import room_on
from pools_lm.smoke.trial import Trial

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import torch

    from fusion_core import Progress, RunResult
    from pools_lm.smoke.asking import Speaker

_LOG = logging.getLogger(__name__)


def shown_after_run(result: RunResult, device: torch.device, progress: Progress) -> str | None:
    """Return what is to be seen of a language model; None for a model of another kind."""
    path, pool = result.path, result.pool
    if path is None or not isinstance(pool, CausalPool | Seq2SeqPool):
        return None
    found = (_smoke_test(path, pool, device, progress), conversion(path))
    return "\n\n".join(filter(None, found)) or None


def _smoke_test(
    path: Path, pool: CausalPool | Seq2SeqPool, device: torch.device, progress: Progress
) -> str | None:
    """Return what a merge answers beside its base and experts.

    They read each other's answers, and the merge theirs; they do not read the merge's, so once they
    are known the merge alone is built. A test that fails is a warning.
    """
    try:
        others = speakers(pool, path)
        _check_room([*others, model_in(path)], device)
        trial = Trial(device=device, progress=progress, is_thorough=False)
        return trial.findings(path, others).as_text()
    except FusionError as error:
        _LOG.warning("no smoke test: %s", error.message)
        return None


def _check_room(every: Sequence[Speaker], device: torch.device) -> None:
    """Raise `FusionError` for a model that is too large here: a run that is done goes on well."""
    size, room = max(each.nbytes for each in every), room_on(device)
    if size > room:
        raise FusionError(
            f"a model takes {size / 1e9:.1f} GB, and {device} has {room / 1e9:.1f} GB to give"
        )
