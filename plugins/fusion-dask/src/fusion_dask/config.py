"""The options of `dask`; nothing heavy is imported."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, Any, Self

from pydantic import (
    AfterValidator,
    Field,
    SerializerFunctionWrapHandler,
    field_validator,
    model_serializer,
    model_validator,
)

from fusion_core import ComponentConfig, InputPath

if TYPE_CHECKING:
    from collections.abc import Mapping

#: The protocols that Dask speaks between machines.
_PROTOCOLS = ("tcp", "tls", "ws", "wss", "ucx", "ucxx")
_ADDRESS = re.compile(
    r"(?:(?P<protocol>[\w+.-]+)://)?(?:\[[\da-fA-F:.%\w]+\]|[^\s/:\[\]]+):(?P<port>\d+)"
)
_LAST_PORT = 65_535
_EXAMPLE = "expected a host and a port, as tcp://10.0.0.5:8786"


def check_address(given: object) -> str:
    """Return an address that Dask can connect to; raises `ValueError` for anything else."""
    found = _ADDRESS.fullmatch(given) if isinstance(given, str) else None
    if found is None:
        raise ValueError(_EXAMPLE)
    if found["protocol"] not in {None, *_PROTOCOLS}:
        raise ValueError(
            f"unknown protocol {found['protocol']!r}; Dask has {', '.join(_PROTOCOLS)}"
        )
    if not 0 < int(found["port"]) <= _LAST_PORT:
        raise ValueError(f"expected a port from 1 to {_LAST_PORT}, got {found['port']}")
    return found.string


class DaskConfig(ComponentConfig):
    """The options of `dask`: where the scheduler is, and what of its workers is asked for."""

    address: Annotated[str, AfterValidator(check_address)] | None = None
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

    @field_validator("address", "scheduler_file", mode="before")
    @classmethod
    def _check_not_blank(cls, given: Any) -> Any:  # noqa: ANN401 - whatever a recipe says
        """Refuse an empty value: a variable that is not set must not start workers here instead."""
        if given is None or (isinstance(given, str) and not given.strip()):
            raise ValueError(
                "it is empty; name a scheduler, or leave the option out for workers here"
            )
        return given

    @model_validator(mode="after")
    def _check_where(self) -> Self:
        if self.address is not None and self.scheduler_file is not None:
            raise ValueError("address and scheduler_file both name a scheduler: give one of them")
        if self.is_local and self.resources:
            raise ValueError("resources are of the workers of a scheduler: name its address")
        if not self.is_local and self.workers is not None:
            raise ValueError("a scheduler that is named has workers of its own: leave workers out")
        return self

    @model_serializer(mode="wrap")
    def _without_blanks(self, serialise: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out the places that are not named: an empty one is refused."""
        written: dict[str, Any] = serialise(self)
        blank = {name for name in ("address", "scheduler_file") if written.get(name) is None}
        return {name: value for name, value in written.items() if name not in blank}

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
