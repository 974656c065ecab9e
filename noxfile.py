"""Every check of this repository: `nox` runs what a push must pass, `nox -l` lists the rest."""

from __future__ import annotations

from pathlib import Path

import nox

nox.needs_version = ">=2024.10"
nox.options.default_venv_backend = "virtualenv"
nox.options.reuse_existing_virtualenvs = True

PYPROJECT = nox.project.load_toml("pyproject.toml")
PLUGINS = sorted(path.parent for path in Path("plugins").glob("*/pyproject.toml"))
#: Examples of how the API is used, which type checkers must accept or refuse as they say.
TYPING = "tests/typing"
#: Tests that run methods or pools of this repository; all others need nothing but the core.
NEED_PLUGINS = {
    *("cli", "cli_lightness", "docs", "exports", "mini8", "new_plugin", "provenance", "readme"),
    *("run", "tutorial", "wheels"),
}
SOURCES = ["fusion_core", *(str(path / "src") for path in PLUGINS)]


def install(session: nox.Session, *groups: str) -> None:
    """Install the core, every plugin and the tools of some dependency groups.

    In one command: the plugins' requirement on the core must be met by the one of this checkout.
    """
    editable = [part for path in [Path(), *PLUGINS] for part in ("-e", f"./{path}")]
    tools = nox.project.dependency_groups(PYPROJECT, *groups)
    session.install(*editable, *tools)


@nox.session
def checks(session: nox.Session) -> None:
    """Lint, types, import contracts and all tests: what a push must pass."""
    install(session, "lint", "types", "contracts", "test")
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    session.run("mypy", *SOURCES, TYPING)
    session.run("lint-imports")
    session.run("pytest", "--cov", "--cov-report=term:skip-covered", *session.posargs)


@nox.session(default=False)
def tests(session: nox.Session) -> None:
    """Tests alone; arguments go to pytest: `nox -s tests -- -k ties`."""
    install(session, "test")
    session.run("pytest", *session.posargs)


@nox.session(default=False)
@nox.parametrize("plugin", [path.name for path in PLUGINS])
def plugin(session: nox.Session, plugin: str) -> None:
    """One plugin's tests with nothing installed but the core and what that plugin requires."""
    required = _in_tree_requirements(plugin)
    editable = [part for path in [".", *required] for part in ("-e", path)]
    session.install(*editable, *nox.project.dependency_groups(PYPROJECT, "test"))
    session.run("pytest", f"plugins/{plugin}", *session.posargs)


@nox.session(default=False)
def core_alone(session: nox.Session) -> None:
    """Test the core with no plugin installed: it needs none."""
    session.install("-e", ".", *nox.project.dependency_groups(PYPROJECT, "test"))
    alone = [
        str(path)
        for path in sorted(Path("tests").glob("test_*.py"))
        if path.stem.removeprefix("test_") not in NEED_PLUGINS
    ]
    session.run("pytest", *alone, *session.posargs)


@nox.session(default=False)
def typing(session: nox.Session) -> None:
    """Check the examples of tests/typing by mypy and by pyright."""
    install(session, "types", "pyright", "test")
    session.run("mypy", TYPING)
    session.run("pyright")


def _in_tree_requirements(plugin: str) -> list[str]:
    """Return a plugin's directory and those of the plugins that it requires."""
    project = nox.project.load_toml(f"plugins/{plugin}/pyproject.toml")["project"]
    required = [
        path.name
        for path in PLUGINS
        if any(r.startswith(path.name) for r in project["dependencies"])
    ]
    return [f"./plugins/{name}" for name in [plugin, *required]]


if __name__ == "__main__":
    nox.main()
