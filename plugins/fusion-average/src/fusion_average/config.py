"""Options of the averages."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from fusion_core import ComponentConfig

#: The curve whose differences are the weights.
Schedule = Literal["constant", "linear", "cosine", "1-sqrt"]


class RunAverageConfig(ComponentConfig):
    """Options of `run-average`."""

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "lawa": {"schedule": "constant", "last": 5},
        "pma": {"schedule": "constant", "last": 10},
        "soup": {"schedule": "constant"},
    }

    preset: Literal["lawa", "pma", "soup"] | None = None
    """Latest weight averaging (arXiv:2209.14981), pre-trained model average (arXiv:2505.12082), or
    the mean of all models."""
    schedule: Schedule = "constant"
    """Emulate this decay of the learning rate from the first model to the last; `constant` weights
    all models equally."""
    ema: Annotated[float, Field(gt=0, le=1)] | None = None
    """Take an exponential moving average instead: each model after the oldest enters with this
    factor."""
    last: Annotated[int, Field(ge=1)] | None = None
    """Average only this many models, those with the largest steps."""
    steps: tuple[Annotated[int, Field(ge=0)], ...] | None = None
    """The models' training steps, in pool order; default: the last number in each name."""

    @model_validator(mode="after")
    def _check_one_rule(self) -> "RunAverageConfig":
        if self.ema is not None and self.schedule != "constant":
            raise ValueError(f"ema and schedule={self.schedule} conflict: give one of them")
        return self


class GreedySoupConfig(ComponentConfig):
    """No options."""
