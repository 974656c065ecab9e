from __future__ import annotations

import pytest

from fusion_core import errors


def _tree(kind: type[errors.FusionError]) -> dict[str, int]:
    codes = {kind.__name__: kind.exit_code}
    for child in kind.__subclasses__():
        if child.__module__ == errors.__name__:  # not those that a plugin adds for itself
            codes |= _tree(child)
    return codes


def test_each_class_has_the_exit_code_that_the_docstring_draws() -> None:
    assert _tree(errors.FusionError) == {
        "FusionError": 1,
        "RecipeError": 2,
        "PluginError": 3,
        "UnknownComponentError": 3,
        "AmbiguousComponentError": 3,
        "BrokenPluginError": 3,
        "WeightsError": 4,
        "CheckpointError": 4,
        "AlignmentError": 4,
        "HubError": 5,
        "DiskError": 6,
        "OutputError": 7,
        "WorkerError": 1,
        "IntegrityError": 8,
    }
    for name in _tree(errors.FusionError):
        assert errors.__doc__ is not None
        assert name in errors.__doc__


def test_a_hint_follows_the_message() -> None:
    error = errors.DiskError("full", hint="make room")
    assert (error.message, error.hint, str(error)) == ("full", "make room", "full\nmake room")


def test_without_a_hint_an_error_is_its_message() -> None:
    assert str(errors.OutputError("there")) == "there"


@pytest.mark.parametrize("kind", [errors.CheckpointError, errors.AlignmentError])
def test_bad_weights_can_be_caught_as_one(kind: type[errors.FusionError]) -> None:
    assert issubclass(kind, errors.WeightsError)
