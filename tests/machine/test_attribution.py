from __future__ import annotations

import os
import signal
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from typing import TYPE_CHECKING

import pytest

from fusion_core.errors import BrokenPluginError
from fusion_core.machine.attribution import find_responsible_plugin, forbid_exit

if TYPE_CHECKING:
    from collections.abc import Callable

    from conftest import Site

CODE = """
import json, sys

def fail():
    json.loads("x")

def leave():
    exit("gone")

def call(function):
    function()

def again():
    yield
    raise StopIteration
"""


@pytest.fixture
def plugin(site: Site) -> object:
    return import_module(site.install("toy-x", CODE, version="2.0"))


def raised_by(function: Callable[..., object], *arguments: object) -> BaseException:
    with pytest.raises(BaseException) as caught:  # noqa: PT011
        function(*arguments)
    return caught.value


def test_the_innermost_plugin_is_behind_an_error(plugin: object) -> None:
    assert find_responsible_plugin(raised_by(plugin.fail)) == "plugin toy-x 2.0"
    assert find_responsible_plugin(raised_by(plugin.call, lambda: 1 / 0)) == "plugin toy-x 2.0"


def test_the_causes_of_an_error_are_searched_too(plugin: object) -> None:
    assert find_responsible_plugin(raised_by(list, plugin.again())) == "plugin toy-x 2.0"


def test_an_error_outside_plugins_has_no_owner(plugin: object) -> None:
    assert find_responsible_plugin(raised_by(lambda: 1 / 0)) is None


@pytest.mark.parametrize("in_thread", [False, True])
def test_an_exit_is_an_error_that_names_plugin_and_place(plugin: object, in_thread: bool) -> None:  # noqa: FBT001
    message = r"^plugin toy-x 2\.0 tried to end the program: SystemExit: gone, in leave \(.*toy_x"
    with (
        ThreadPoolExecutor(1) as threads,
        pytest.raises(BrokenPluginError, match=message),
        forbid_exit(),
    ):
        threads.submit(plugin.leave).result() if in_thread else plugin.leave()


def test_a_handler_of_the_programs_own_may_end_it() -> None:
    def leave(*_: object) -> None:
        sys.exit(143)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        with pytest.raises(SystemExit), forbid_exit():
            os.kill(os.getpid(), signal.SIGTERM)
            signal.pause()
    finally:
        signal.signal(signal.SIGTERM, before)
