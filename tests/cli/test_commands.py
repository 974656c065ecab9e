"""Commands of plugins: shown without being imported, found like components, isolated."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

import pytest

from fusion_core.plugins.ownership import COMPONENTS

if TYPE_CHECKING:
    from collections.abc import Callable

    from conftest import Outcome, Site

    Fuse = Callable[..., Outcome]

PLUGIN = """
from fusion_core import CommandSpec, hookimpl

@hookimpl
def fusion_register_commands():
    yield CommandSpec(
        name="{name}", summary="Say what {module} says.", target="{module}_command:{target}",
        group="{group}",
    )
"""

COMMAND = """
from enum import StrEnum
from typing import Annotated
import typer

class Tone(StrEnum):
    LOUD = "loud"

def say(context: typer.Context, word: str = "hello", tone: Tone | None = None):
    \"\"\"Say a word.\"\"\"
    print(f"{__name__}: {word}, {sorted(context.obj)}")

def fail():
    raise KeyError("nowhere")

def leave():
    raise SystemExit(0)

def unreadable(what: object):
    ...

THING = 3
one, many = typer.Typer(), typer.Typer()
one.command()(say)
many.command()(say)
many.command()(fail)
"""


def install(
    site: Site, name: str, *, by: str = "shout", target: str = "say", group: str = "Words"
) -> None:
    code = PLUGIN.format(name=name, module=by, target=target, group=group)
    site.install(by, code, files={f"{by}_command.py": COMMAND})
    (site.path / f"{by}-1.0.dist-info" / "RECORD").write_text(f"{by}_command.py,,\n")


def test_help_shows_a_command_in_its_group_and_imports_nothing(site: Site, fuse: Fuse) -> None:
    install(site, "shout")
    done = fuse("--help")
    assert done.code == 0
    assert "\n  clean " in done.out.partition("Words:")[0]
    assert "\n  shout  Say what shout says." in done.out.partition("Words:")[2]
    assert "shout" in fuse("list", "commands").out
    assert json.loads(fuse("info", "shout", "--json").out)[0]["kind"] == "command"
    listed = {row["name"]: row for row in json.loads(fuse("list-plugins", "--json").out)}
    assert listed["shout"]["components"] == [{"kind": "command", "name": "shout"}]
    assert "shout_command" not in sys.modules


@pytest.mark.parametrize("target", ["say", "one"])
def test_a_function_and_an_app_of_one_command_are_called_alike(
    site: Site, fuse: Fuse, target: str
) -> None:
    install(site, "shout", target=target)
    done = fuse("--no-plugin", "fusion-testing", "shout", "--word", "hey")
    assert done == type(done)(0, "shout_command: hey, ['fusion-testing']\n", "")
    helped = fuse("shout", "-h").out
    assert "Say a word." in helped
    assert "completion" not in helped
    assert fuse("shout", "--wrod", "hey").code == 2


def test_an_app_may_have_commands_of_its_own(site: Site, fuse: Fuse) -> None:
    install(site, "shout", target="many")
    assert fuse("shout", "say").out == "shout_command: hello, []\n"


def test_a_misspelled_command_of_a_plugin_is_recognised(site: Site, fuse: Fuse) -> None:
    install(site, "shout")
    done = fuse("shuot")
    assert (done.code, "'shout'" in done.err) == (2, True)


def test_a_command_of_a_plugin_that_is_not_installed_names_the_plugin(
    fuse: Fuse, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(COMPONENTS, "fusion-elsewhere", {"command": ("elsewhere",)})
    done = fuse("elsewhere", "recipe.yaml")
    assert (done.code, "pip install fusion-elsewhere" in done.err) == (3, True)


@pytest.mark.parametrize(
    ("target", "code", "message"),
    [
        ("nothing", 3, "command 'shout' of plugin shout 1.0 cannot be imported"),
        ("THING", 3, "cannot be used: "),
        ("unreadable", 3, "cannot be used: RuntimeError: Type not yet supported"),
        ("fail", 1, "a bug in plugin shout 1.0: KeyError: 'nowhere'"),
        ("leave", 3, "plugin shout 1.0 tried to end the program"),
    ],
)
def test_a_broken_command_harms_nobody_and_is_named_when_it_is_called(
    site: Site, fuse: Fuse, target: str, code: int, message: str
) -> None:
    install(site, "shout", target=target)
    assert "Say what shout says." in fuse("--help").out
    assert fuse("list", "executors").code == 0
    done = fuse("shout")
    assert done.code == code
    assert message in done.err


def test_help_works_whatever_is_wrong_with_plugins(
    site: Site, fuse: Fuse, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.install("bad-one", "raise ImportError('libfoo is missing')")
    assert fuse("--help").code == 0
    monkeypatch.setenv("FUSION_BLOCK_PLUGINS", "no-such-plugin")
    assert fuse("--help").code == 0


def test_a_name_of_two_plugins_is_ambiguous(site: Site, fuse: Fuse) -> None:
    install(site, "say", by="one")
    install(site, "say", by="two")
    shown = fuse("--help").out
    assert "\n  one/say  Say what one says." in shown
    assert "\n  two/say  Say what two says." in shown
    done = fuse("say")
    assert (done.code, "one/say, two/say" in done.err) == (3, True)
    assert fuse("two/say").out == "two_command: hello, []\n"
    assert "two_command: hello" in fuse("--no-plugin", "one", "say").out
    assert "several plugins provide command 'say'" in fuse("list-plugins", "-v").out


def test_a_name_of_the_core_stays_the_cores(site: Site, fuse: Fuse) -> None:
    install(site, "evaluate")
    assert "--json" in fuse("evaluate", "--help").out
    assert "\n  shout/evaluate  Say what shout says." in fuse("--help").out
    assert fuse("shout/evaluate").out == "shout_command: hello, []\n"
    assert "command 'evaluate' is the core's own" in fuse("list-plugins", "-v").out


@pytest.mark.parametrize(
    ("typed", "offered", "imported"),
    [
        ("fuse sho", ["shout"], False),
        ("fuse shout --to", ["--tone"], True),
        pytest.param("fuse run --algo ta", ["task-arithmetic"], False, marks=pytest.mark.plugins),
        pytest.param(
            "fuse run --algo trim,ta", ["trim,task-arithmetic"], False, marks=pytest.mark.plugins
        ),
    ],
)
def test_names_and_flags_are_completed(  # noqa: PLR0913, PLR0917
    site: Site,
    fuse: Fuse,
    monkeypatch: pytest.MonkeyPatch,
    typed: str,
    offered: list[str],
    imported: bool,  # noqa: FBT001
) -> None:
    install(site, "shout")
    monkeypatch.setenv("COMP_WORDS", typed)
    monkeypatch.setenv("COMP_CWORD", str(len(typed.split()) - 1))
    monkeypatch.setenv("_FUSE_COMPLETE", "complete_bash")
    assert fuse().out.split() == offered
    assert ("shout_command" in sys.modules) is imported


def test_completion_passes_a_broken_command_over(
    site: Site, fuse: Fuse, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(site, "shout", target="nothing")
    monkeypatch.setenv("COMP_WORDS", "fuse shout --to")
    monkeypatch.setenv("COMP_CWORD", "2")
    monkeypatch.setenv("_FUSE_COMPLETE", "complete_bash")
    done = fuse()
    assert (done.code, done.out.strip(), done.err) == (0, "", "")
