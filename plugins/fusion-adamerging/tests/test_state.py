"""A search that resumes from a saved state ends with the same bits."""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import pytest

from fusion_adamerging.adamerging import AdaMerging
from fusion_adamerging.adarank import AdaRank
from fusion_adamerging.config import AdaMergingConfig
from fusion_core import RunContext
from fusion_core.errors import IntegrityError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from pools_checkpoints import CheckpointsPool


class KilledError(Exception):
    """Stands in for the death of the process."""


def _coefficients(
    pool: CheckpointsPool, tasks: Any, state: Path | None, die_after: int = 10**6, **options: Any
) -> tuple[bytes | None, list[int]]:
    taken: list[int] = []

    def on_metrics(step: int, _: Mapping[str, float]) -> None:
        taken.append(step)
        if len(taken) == die_after:
            raise KilledError

    context = RunContext(tasks=tasks, on_metrics=on_metrics, state=state)
    method = options.pop("method", AdaMerging)
    algorithm = method(**{"steps": 12, "save_every": 3, "lr": 0.05, **options})
    try:
        algorithm.run(pool, context)
    except KilledError:
        return None, taken
    return context.side_files["coefficients.json"], taken


@pytest.mark.sampled(3)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"granularity": "task"},
        {"granularity": "rank", "examples": 20},
        {"granularity": "row", "objective": "teacher"},
        {"granularity": "column"},
        {"trim": True, "clamp": True},
        {"objective": "teacher"},
        {"method": AdaRank},
        {"method": AdaRank, "rank": 0.5, "objective": "teacher", "task_vectors": "disk"},
    ],
)
def test_a_search_killed_anywhere_resumes_to_the_same_bits(
    options: dict[str, Any],
    make_pool: Callable[..., CheckpointsPool],
    turned_tasks: Any,
    tmp_path: Path,
) -> None:
    pool = make_pool("mlp", experts=3, trained=True)
    whole, _ = _coefficients(pool, turned_tasks, None, **options)
    for die_after in range(1, 13):
        state = tmp_path / str(die_after)
        assert _coefficients(pool, turned_tasks, state, die_after, **options)[0] is None
        resumed, taken = _coefficients(pool, turned_tasks, state, **options)
        assert resumed == whole
        assert taken[0] == (die_after - 1) // 3 * 3, "the last state before it died"


def test_the_end_of_a_search_is_always_saved(
    make_pool: Callable[..., CheckpointsPool], tasks: Any, tmp_path: Path
) -> None:
    pool = make_pool("mlp")
    first, _ = _coefficients(pool, tasks, tmp_path, steps=4)
    again, taken = _coefficients(pool, tasks, tmp_path, steps=4)
    assert again == first
    assert taken == [], "no step is taken again while the merge goes on"


def test_a_resumed_merge_refuses_other_coefficients(
    make_pool: Callable[..., CheckpointsPool], tasks: Any, tmp_path: Path
) -> None:
    pool, path = make_pool("mlp"), tmp_path / "coefficients.json"
    learned, _ = _coefficients(pool, tasks, None)
    assert learned is not None
    algorithm = AdaMerging(AdaMergingConfig(coefficients=str(path)))
    changed = learned.replace(b"0.", b"0.1")
    for content, refused in ((learned, False), (learned, False), (changed, True)):
        path.write_bytes(content)
        context = RunContext(state=tmp_path / "state")
        with pytest.raises(IntegrityError, match="stopped run") if refused else nullcontext():
            algorithm.run(pool, context)


def test_a_search_that_is_killed_repeatedly_completes(
    make_pool: Callable[..., CheckpointsPool], tasks: Any, tmp_path: Path
) -> None:
    pool = make_pool("mlp")
    whole, _ = _coefficients(pool, tasks, None)
    learned, lives = None, 0
    while learned is None:
        learned, _ = _coefficients(pool, tasks, tmp_path / "state", die_after=4)
        lives += 1
    assert learned == whole
    assert lives == 4
