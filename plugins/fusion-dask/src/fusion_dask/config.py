"""The options of `dask`; nothing heavy is imported."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, Self

from pydantic import AfterValidator, Field, model_validator

from fusion_core import ComponentConfig, InputPath

if TYPE_CHECKING:
    from collections.abc import Mapping


def _address(given: str) -> str:
    if not re.fullmatch(r"(\w+://)?[^/]+:\d+", given):
        raise ValueError("give a host and a port, as tcp://10.0.0.5:8786")
    return given


class DaskConfig(ComponentConfig):
    """The options of `dask`: where the scheduler is, and what of its workers is asked for."""

    address: Annotated[str, AfterValidator(_address)] | None = None
    """The address of a scheduler, tcp://HOST:8786; default: one with workers on this machine. A
    scheduler that is named needs `--trust dask`."""
    scheduler_file: InputPath | None = None
    """In place of an address: what `dask scheduler --scheduler-file` wrote."""
    workers: Annotated[int, Field(ge=1)] | None = None
    """How many processes work on this machine, where no scheduler is named; default: one a core."""
    resources: dict[str, Annotated[float, Field(gt=0)]] = Field(default_factory=dict)
    """What a unit of work needs of a worker: {GPU: 1} for `dask worker --resources GPU=1`."""
    patience: Annotated[float, Field(gt=0)] = 60.0
    """Seconds that a run waits for workers: at its start, and when none is left."""

    @model_validator(mode="after")
    def _check_where(self) -> Self:
        if self.address is not None and self.scheduler_file is not None:
            raise ValueError("address and scheduler_file both name a scheduler: give one of them")
        if self.is_local and self.resources:
            raise ValueError("resources are of the workers of a scheduler: name its address")
        if not self.is_local and self.workers is not None:
            raise ValueError("a scheduler that is named has workers of its own: leave workers out")
        return self

    def needs_trust(self) -> Mapping[str, str]:
        """Return what a scheduler that is named can do: pickles go there and come back."""
        if self.is_local:
            return {}
        place = self.address or f"in {self.scheduler_file}"
        return {"dask": f"connect to the Dask scheduler {place}, which can run code here"}

    @property
    def is_local(self) -> bool:
        """Whether the run starts its own workers, on this machine."""
        return self.address is None and self.scheduler_file is None
