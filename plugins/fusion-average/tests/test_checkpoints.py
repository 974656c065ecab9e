"""Checkpoints in the directory of a run, and which of them are averaged."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from fusion_average.checkpoints import find_checkpoints, select_checkpoints, usual_spacing
from fusion_core.errors import CheckpointError

if TYPE_CHECKING:
    from pathlib import Path

    from fusion_average.checkpoints import Checkpoint


def make(run: Path, *names: str) -> Path:
    for name in names:
        if name.endswith((".safetensors", ".pt", ".txt")):
            (run / name).touch()
        else:
            (run / name).mkdir()
    return run


def steps(checkpoints: list[Checkpoint]) -> list[int]:
    return [checkpoint.step for checkpoint in checkpoints]


@pytest.mark.parametrize(
    "names",
    [
        ("checkpoint-999", "checkpoint-1000", "checkpoint-10000"),
        ("step_999", "step_1000", "step_10000"),
        ("step-999.safetensors", "step-1000.safetensors", "step-10000.safetensors"),
        ("iter_0000999", "iter_0001000", "iter_0010000"),
        ("global_step999", "global_step1000", "global_step10000"),
        ("epoch=1-step=999.ckpt", "epoch=1-step=1000.ckpt", "epoch=2-step=10000.ckpt"),
        ("step999-unsharded", "step1000-unsharded", "step10000-unsharded"),
        ("999", "1000", "10000"),
    ],
)
def test_checkpoints_are_ordered_by_number(names: tuple[str, ...], tmp_path: Path) -> None:
    others = ("logs", "tmp-checkpoint-5", "step_5.tmp", "latest_checkpointed_iteration.txt",
              "step-7.pt", ".step-8", "run-3b", "stepwise")  # fmt: skip
    make(tmp_path, *others, *reversed(names))
    checkpoints = find_checkpoints(tmp_path)
    assert steps(checkpoints) == [999, 1000, 10000]
    assert [checkpoint.path.name for checkpoint in checkpoints] == list(names)


def test_two_checkpoints_of_one_step_are_named(tmp_path: Path) -> None:
    make(tmp_path, "step_100", "step_0100", "step_200")
    with pytest.raises(CheckpointError, match=r"step_0100 and step_100 .* of step 100"):
        find_checkpoints(tmp_path)
    assert steps(find_checkpoints(tmp_path, "step_?00")) == [100, 200]


@pytest.mark.parametrize(
    "name",
    [
        *("checkpoint-300.incomplete", "checkpoint-300.backup", "checkpoint-300_old"),
        *("checkpoint-300 (copy)", "checkpoint-150-ema", "checkpoint-1e3", "checkpoint-300.5"),
        *("best-checkpoint-100", "step_300", "400"),
    ],
)
def test_a_name_of_another_form_is_left_out_with_a_warning(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    make(tmp_path, "checkpoint-100", "checkpoint-200", name)
    assert steps(find_checkpoints(tmp_path)) == [100, 200]
    assert f"left out {name}, because" in caplog.text


def test_other_numbers_in_a_name_may_differ(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    make(tmp_path, "epoch=9-step=90-loss=1.25", "epoch=10-step=100-loss=3e-05", "logs")
    assert steps(find_checkpoints(tmp_path)) == [90, 100]
    assert not caplog.text


def test_steps_that_start_again_are_refused(tmp_path: Path) -> None:
    make(tmp_path, "stage1-step1000", "stage1-step2000", "stage2-step500", "stage2-step900")
    with pytest.raises(CheckpointError, match="start again: stage2-step900 has a smaller step"):
        find_checkpoints(tmp_path)
    assert steps(find_checkpoints(tmp_path, "stage2-*")) == [500, 900]


def test_other_numbers_before_the_step_may_fall(tmp_path: Path) -> None:
    make(tmp_path, "loss=3-step=100", "loss=2-step=200", "loss=1.5-step=300")
    assert steps(find_checkpoints(tmp_path)) == [100, 200, 300]


def test_equal_steps_of_two_stages_are_told_apart(tmp_path: Path) -> None:
    make(tmp_path, "stage1-step1000", "stage2-step1000", "stage2-step2000")
    with pytest.raises(CheckpointError, match="both of step 1000") as error:
        find_checkpoints(tmp_path)
    assert error.value.hint == "Select one kind of name: --match 'stage2-step*'."


def test_a_broken_link_is_named(tmp_path: Path) -> None:
    make(tmp_path, "checkpoint-100", "checkpoint-200")
    (tmp_path / "checkpoint-300").symlink_to("/mnt/archive/checkpoint-300")
    (tmp_path / "checkpoint-1.log").symlink_to("/mnt/archive/checkpoint-1.log")
    with pytest.raises(CheckpointError, match="checkpoint-300 is a link to /mnt/archive"):
        find_checkpoints(tmp_path)
    assert steps(find_checkpoints(tmp_path, "*[12]00")) == [100, 200]


def test_two_equally_frequent_forms_are_refused(tmp_path: Path) -> None:
    make(tmp_path, "step-1.safetensors", "step-1-ema.safetensors")
    with pytest.raises(CheckpointError, match="two forms are equally frequent") as caught:
        find_checkpoints(tmp_path)
    patterns = re.findall(r"--match '(.*?)'", caught.value.hint or "")
    matches = [[c.path.name for c in find_checkpoints(tmp_path, p)] for p in patterns]
    assert matches == [["step-1-ema.safetensors"], ["step-1.safetensors"]]


def test_a_run_of_fractions_holds_no_steps(tmp_path: Path) -> None:
    make(tmp_path, "step-1e3", "step-2e3")
    with pytest.raises(CheckpointError, match="holds no checkpoints with step numbers"):
        find_checkpoints(tmp_path)


@pytest.mark.parametrize(
    ("name", "message"),
    [("missing", "missing: "), ("file.txt", "found a file"), ("run", "it holds optimizer.pt")],
)
def test_no_run(name: str, message: str, tmp_path: Path) -> None:
    make(tmp_path, "file.txt", "run")
    make(tmp_path / "run", "optimizer.pt")
    with pytest.raises(CheckpointError, match=message):
        find_checkpoints(tmp_path / name)


def run_of(tmp_path: Path, *numbers: int) -> list[Checkpoint]:
    return find_checkpoints(make(tmp_path, *(f"step-{number}" for number in numbers)))


def test_selections(tmp_path: Path) -> None:
    run = run_of(tmp_path, *range(100, 1100, 100), 1050)
    assert steps(select_checkpoints(run)) == [*range(100, 1100, 100), 1050]
    assert steps(select_checkpoints(run, last=2)) == [1000, 1050]
    assert steps(select_checkpoints(run, window=(300, 500))) == [300, 400, 500]
    assert steps(select_checkpoints(run, window=(None, 950), every=300)) == [300, 600, 900]
    assert steps(select_checkpoints(run, window=(None, 1000), every=400, last=2)) == [600, 1000]


def test_selections_that_leave_too_few(tmp_path: Path) -> None:
    run = run_of(tmp_path, 100, 200)
    with pytest.raises(CheckpointError, match="expected 3 checkpoints, found 2: 100, 200"):
        select_checkpoints(run, last=3)
    with pytest.raises(CheckpointError, match=r"no checkpoints in --window 300:") as caught:
        select_checkpoints(run, window=(300, None))
    assert "the steps 100 to 200" in (caught.value.hint or "")


def test_gaps_are_named(tmp_path: Path) -> None:
    run = run_of(tmp_path, 100, 200, 300, 600, 700, 800, 850)
    with pytest.raises(CheckpointError, match=re.escape("none of the steps 400, 500")) as caught:
        select_checkpoints(run)
    assert "--allow-gaps" in (caught.value.hint or "")
    assert len(select_checkpoints(run, allow_gaps=True)) == 7
    assert steps(select_checkpoints(run, last=3)) == [700, 800, 850]
    with pytest.raises(CheckpointError, match="none of step 400"):
        select_checkpoints(run, window=(None, 800), every=200)


def test_every_asks_for_steps_down_to_the_window(tmp_path: Path) -> None:
    """A run's last save often lies between two others, and no other step is on its grid."""
    run = run_of(tmp_path, 500, 1000, 1500, 2000, 2500, 2630)
    says = "--every 1000 counts back from step 2630, and there are none of the steps 630, 1630"
    with pytest.raises(CheckpointError, match=re.escape(says)) as caught:
        select_checkpoints(run, every=1000)
    assert "--window :STEP" in (caught.value.hint or "")
    assert steps(select_checkpoints(run, every=1000, allow_gaps=True)) == [2630]
    assert steps(select_checkpoints(run, every=1000, window=(None, 2500))) == [500, 1500, 2500]
    with pytest.raises(CheckpointError, match="expected 2 checkpoints, found 1: 2630"):
        select_checkpoints(run, every=1000, last=2)
    (tmp_path / "first").mkdir()
    first = run_of(tmp_path / "first", 1, 500, 1000)
    assert steps(select_checkpoints(first, every=500)) == [500, 1000]


def test_a_run_without_a_spacing_has_no_gaps(tmp_path: Path) -> None:
    assert usual_spacing([1, 10, 100, 1000]) is None
    assert len(select_checkpoints(run_of(tmp_path, 1, 10, 100, 1000))) == 4
