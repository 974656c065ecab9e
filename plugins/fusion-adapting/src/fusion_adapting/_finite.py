"""Refusal of NaN and infinity in what live models compute."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fusion_core.errors import FusionError, WeightsError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from fusion_core import AdaptiveTask


def refuse_nonfinite(values: Tensor, label: str, model: nn.Module, task: AdaptiveTask) -> None:
    """Raise an error if a model computed NaN or infinity on a task's examples.

    `label` names the values. The error is a `WeightsError` that names a parameter if the cause is
    in the model, and else a `FusionError` that names the values and the task.
    """
    if values.isfinite().all():
        return
    for name, parameter in model.named_parameters():
        if not parameter.isfinite().all():
            raise WeightsError(
                f"the model for task {task.name!r}: tensor {name!r} holds NaN or infinity",
                hint="Check the models: fuse check RECIPE --scan",
            )
    raise FusionError(
        f"{label} are NaN or infinite on task {task.name!r}",
        hint=f"Check the unlabeled examples of task {task.name!r}: the parameters are finite.",
    )
