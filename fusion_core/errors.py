"""The errors that a user can cause. Each class has one exit code.

    FusionError                     1   a run failed
    ├── RecipeError                 2   a recipe, an option or a flag is wrong
    ├── PluginError                 3   a plugin is missing, broken or ambiguous
    │   ├── UnknownComponentError
    │   ├── AmbiguousComponentError
    │   └── BrokenPluginError
    ├── WeightsError                4   weights are bad
    │   ├── CheckpointError             a checkpoint is unreadable
    │   └── AlignmentError              models do not match
    ├── HubError                    5   the hub or the network failed
    ├── DiskError                   6   the file system failed
    ├── OutputError                 7   the output exists or is locked
    ├── IntegrityError              8   a file changed, or its checksum does not match
    └── WorkerError                 1   a worker process died, or none is available

The message names what is wrong and where, and the `hint` says what to do next. Any other exception
is a bug in the core or in a plugin. `fuse` says in which, and shows the traceback with --traceback.
"""

from typing import ClassVar

from fusion_core.formatting import redact_secrets


class FusionError(Exception):
    """A failure that the user can resolve."""

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = redact_secrets(message)
        self.hint = None if hint is None else redact_secrets(hint)

    def __str__(self) -> str:
        return f"{self.message}\n{self.hint}" if self.hint else self.message


class RecipeError(FusionError):
    """A recipe, an option or a flag is invalid; `message` has one line per problem."""

    exit_code = 2


class PluginError(FusionError):
    """A plugin is missing, broken or ambiguous."""

    exit_code = 3


class UnknownComponentError(PluginError):
    """No loaded plugin provides a component of this name."""


class AmbiguousComponentError(PluginError):
    """Several plugins provide a component of this name."""


class BrokenPluginError(PluginError):
    """A plugin failed to load, or broke its contract."""


class WeightsError(FusionError):
    """Weights are unreadable, not finite, or do not match."""

    exit_code = 4


class CheckpointError(WeightsError):
    """A checkpoint is missing, truncated or malformed."""


class AlignmentError(WeightsError):
    """Models differ in keys, shapes or dtypes; `message` lists the differences in a table."""


class HubError(FusionError):
    """The hub or the network failed, or a download is corrupt."""

    exit_code = 5


class DiskError(FusionError):
    """The file system is full, read-only or failing."""

    exit_code = 6


class OutputError(FusionError):
    """The output already exists, or another run is writing it."""

    exit_code = 7


class IntegrityError(FusionError):
    """A file changed during a run, or differs from its recorded checksum."""

    exit_code = 8


class WorkerError(FusionError):
    """A worker process died, cannot do its work, or is not available."""


class Terminated(KeyboardInterrupt):
    """SIGTERM, handled like an interrupt."""
