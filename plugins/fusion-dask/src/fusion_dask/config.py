"""The options of the executor `dask`; imports nothing heavy."""

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

#: Dask's protocols between machines.
_PROTOCOLS = ("tcp", "tls", "ws", "wss", "ucx", "ucxx")
_ADDRESS = re.compile(
    r"(?:(?P<protocol>[\w+.-]+)://)?(?:\[[\da-fA-F:.%\w]+\]|[^\s/:\[\]]+):(?P<port>\d+)"
)
_LAST_PORT = 65_535


def check_address(given: object) -> str:
    """Return an address that Dask can connect to; raises `ValueError` for anything else."""
    match = _ADDRESS.fullmatch(given) if isinstance(given, str) else None
    if match is None:
        raise ValueError("expected a host and a port, such as tcp://10.0.0.5:8786")
    if match["protocol"] not in {None, *_PROTOCOLS}:
        raise ValueError(
            f"unknown protocol {match['protocol']!r}; Dask supports {', '.join(_PROTOCOLS)}"
        )
    if not 0 < int(match["port"]) <= _LAST_PORT:
        raise ValueError(f"expected a port from 1 to {_LAST_PORT}, got {match['port']}")
    return match.string


class DaskConfig(ComponentConfig):
    """Where the scheduler is, and what its workers must have."""

    address: Annotated[str, AfterValidator(check_address)] | None = None
    """Address of a scheduler, tcp://HOST:8786; default: start one with workers on this machine. A
    named scheduler needs `--trust dask`."""
    scheduler_file: InputPath | None = None
    """File that `dask scheduler --scheduler-file` wrote, instead of an address."""
    workers: Annotated[int, Field(ge=1)] | None = None
    """Number of worker processes on this machine, without a named scheduler; default: one per
    core."""
    resources: dict[str, Annotated[float, Field(gt=0)]] = Field(default_factory=dict)
    """Resources that a unit of work needs: {GPU: 1} for `dask worker --resources GPU=1`."""
    patience: Annotated[float, Field(gt=0)] = 60.0
    """Seconds to wait for workers, at the start and when none is left."""

    @field_validator("address", "scheduler_file", mode="before")
    @classmethod
    def _check_not_blank(cls, given: Any) -> Any:  # noqa: ANN401 - any value of a recipe
        """Refuse an empty value: an unset variable must not start local workers instead."""
        if given is None or (isinstance(given, str) and not given.strip()):
            raise ValueError(
                "the value is empty; name a scheduler, or leave the option out for local workers"
            )
        return given

    @model_validator(mode="after")
    def _check_conflicts(self) -> Self:
        if self.address is not None and self.scheduler_file is not None:
            raise ValueError("conflicting options address and scheduler_file: give one of them")
        if self.is_local and self.resources:
            raise ValueError("resources need a named scheduler: give its address")
        if not self.is_local and self.workers is not None:
            raise ValueError("a named scheduler has its own workers: leave workers out")
        return self

    @model_serializer(mode="wrap")
    def _omit_unset(self, serialise: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out a missing scheduler, since an empty value would be refused."""
        written: dict[str, Any] = serialise(self)
        unset = {name for name in ("address", "scheduler_file") if written.get(name) is None}
        return {name: value for name, value in written.items() if name not in unset}

    def needs_trust(self) -> Mapping[str, str]:
        """Return the permission that a named scheduler needs, since it exchanges pickles."""
        if self.is_local:
            return {}
        scheduler = self.address or f"in {self.scheduler_file}"
        return {"dask": f"connect to the Dask scheduler {scheduler}, which can run code here"}

    @property
    def is_local(self) -> bool:
        """Whether the run starts its own workers on this machine."""
        return self.address is None and self.scheduler_file is None
