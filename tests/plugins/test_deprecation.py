from __future__ import annotations

import pytest

import fusion_core
from fusion_core.plugins import deprecation
from fusion_core.plugins.deprecation import (
    FusionDeprecationWarning,
    deprecated,
    expired,
    warn_deprecated,
)

WHEN = {"since": "0.2", "until": "0.4", "instead": "new_name"}
MESSAGE = r"old_name is deprecated since fusion-core 0\.2 and gone in 0\.4; use new_name"


@pytest.fixture(autouse=True)
def _own_list(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deprecation, "_UNTIL", {})


def test_calling_a_deprecated_function_warns_at_the_callers_line() -> None:
    @deprecated(**WHEN)
    def old_name(value: int) -> int:
        return value + 1

    with pytest.warns(FusionDeprecationWarning, match=MESSAGE) as caught:
        assert old_name(1) == 2
    assert caught[0].filename == __file__


def test_making_and_subclassing_a_deprecated_class_warns() -> None:
    @deprecated(**WHEN)
    class Old:
        pass

    with pytest.warns(FusionDeprecationWarning, match="Old is deprecated"):
        assert isinstance(Old(), Old)
    with pytest.warns(FusionDeprecationWarning, match="Old is deprecated"):

        class Newer(Old):
            pass


def test_anything_else_can_be_warned_of() -> None:
    def read_old_option() -> None:
        warn_deprecated("old_name", **WHEN)

    with pytest.warns(FusionDeprecationWarning, match=MESSAGE) as caught:
        read_old_option()
    assert caught[0].filename == __file__


@pytest.mark.parametrize(
    ("version", "gone"), [("0.2.0", []), ("0.3.9", []), ("0.4.0.dev1", ["x"]), ("1.0", ["x"])]
)
def test_what_outlives_its_time_is_found(version: str, gone: list[str]) -> None:
    deprecated(since="0.2", until="0.4", instead="y")(type("x", (), {}))
    assert expired(version) == gone


def test_nothing_in_this_version_has_outlived_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    for name in fusion_core.__all__:
        getattr(fusion_core, name)
    assert expired(fusion_core.__version__) == []
