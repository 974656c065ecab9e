"""Every error that a user can cause, as a tree; each class has one exit code.

    FusionError                     1   a run failed
    ├── RecipeError                 2   a recipe, an option or a flag is wrong
    ├── PluginError                 3   a plugin is missing, broken or ambiguous
    │   ├── UnknownComponentError
    │   ├── AmbiguousComponentError
    │   └── BrokenPluginError
    ├── WeightsError                4   weights are bad
    │   ├── CheckpointError             a checkpoint cannot be read
    │   └── AlignmentError              models do not fit together
    ├── HubError                    5   the hub or the network refused
    ├── DiskError                   6   the file system refused
    ├── OutputError                 7   the output is present or locked
    ├── IntegrityError              8   a file is not what it was, or should be
    └── WorkerError                 1   a worker process died, or there is none

An error names the thing, and its `hint` says what to do next. Anything that is not a `FusionError`
is a bug, ours or a plugin's; `fuse` says whose, and shows its traceback with --traceback.
"""

from typing import ClassVar

from fusion_core.shown import without_secrets


class FusionError(Exception):
    """A run failed for a reason that its user can do something about."""

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = without_secrets(message)
        self.hint = None if hint is None else without_secrets(hint)

    def __str__(self) -> str:
        return f"{self.message}\n{self.hint}" if self.hint else self.message


class RecipeError(FusionError):
    """A recipe, an option or a flag is wrong; `message` has one line a problem."""

    exit_code = 2


class PluginError(FusionError):
    """A plugin is missing, broken or ambiguous."""

    exit_code = 3


class UnknownComponentError(PluginError):
    """No loaded plugin provides a component of this name."""


class AmbiguousComponentError(PluginError):
    """Several plugins provide a component of this name."""


class BrokenPluginError(PluginError):
    """A plugin failed to load, or did not keep its contract."""


class WeightsError(FusionError):
    """Weights are unreadable, not finite, or do not fit together."""

    exit_code = 4


class CheckpointError(WeightsError):
    """A checkpoint is missing, truncated or malformed."""


class AlignmentError(WeightsError):
    """Models differ in keys, shapes or dtypes; `message` holds the table of differences."""


class HubError(FusionError):
    """The hub or the network refused, or what came from there is damaged."""

    exit_code = 5


class DiskError(FusionError):
    """The file system is full, read-only or failing."""

    exit_code = 6


class OutputError(FusionError):
    """The output is already present, or another run is writing it."""

    exit_code = 7


class IntegrityError(FusionError):
    """A file changed under a run, or does not have the content that was recorded for it."""

    exit_code = 8


class WorkerError(FusionError):
    """A process that units of work ran in died, cannot do them, or is not there."""


class Terminated(KeyboardInterrupt):
    """The system asked the program to end (SIGTERM), which is handled as an interrupt is."""
