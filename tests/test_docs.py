"""What the documentation says about plugins is true: pages are generated, code is run."""

from __future__ import annotations

import ast
import re
import runpy
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from fusion_core import run_fusion
from fusion_core.planning.expansion import expand_pipelines
from fusion_core.planning.resolution import resolve
from fusion_core.plugins.manager import load_plugins
from fusion_core.recipe.text import load_yaml
from fusion_testing import Mean

if TYPE_CHECKING:
    from collections.abc import Callable

    from conftest import Site
    from fusion_core import ModelPool, TaskPool

pytestmark = pytest.mark.plugins

DOCS = Path(__file__).parents[1] / "docs"
HOOKSPECS = (DOCS.parent / "fusion_core" / "hookspecs.py").read_text(encoding="utf-8")
#: Pages that need models: tests/test_how_to.py makes some and runs them. The commands of
#: choose-a-method.md run there, too.
MERGING = {
    "check-before-publishing.md",
    "merge-checkpoints.md",
    "merge-sentence-encoders.md",
}
HOW_TO = sorted(page for page in (DOCS / "how-to").glob("*.md") if page.name not in MERGING)
HOOKS = [
    node
    for node in ast.parse(HOOKSPECS).body
    if isinstance(node, ast.FunctionDef) and node.name.startswith("fusion_")
]


@pytest.fixture(scope="module")
def generate() -> Any:
    return SimpleNamespace(**runpy.run_path(str(DOCS / "reference" / "generate.py")))


def test_the_page_of_hooks_is_what_the_source_says(generate: Any) -> None:
    page = (DOCS / "reference" / "hooks.md").read_text(encoding="utf-8")
    assert page == generate.hooks(HOOKSPECS), "run: python docs/reference/generate.py"


def test_the_page_of_public_names_is_what_the_packages_export(generate: Any) -> None:
    page = (DOCS / "reference" / "api.md").read_text(encoding="utf-8")
    assert page == generate.api(), "run: python docs/reference/generate.py"


@pytest.mark.parametrize("hook", HOOKS, ids=lambda hook: hook.name)
def test_every_hook_is_on_it_with_its_exact_signature(hook: ast.FunctionDef) -> None:
    page = (DOCS / "reference" / "hooks.md").read_text(encoding="utf-8")
    shown = re.search(
        rf"^### `{hook.name}`\n\n```python\n(.*?)\n```", page, re.MULTILINE | re.DOTALL
    )
    assert shown is not None
    (written,) = ast.parse(shown[1]).body
    assert isinstance(written, ast.FunctionDef)
    assert ast.dump(written.args) == ast.dump(hook.args)
    assert hook.returns is not None
    assert written.returns is not None
    assert ast.dump(written.returns) == ast.dump(hook.returns)
    assert (ast.get_docstring(hook) or "no docstring") in page


@pytest.mark.parametrize("page", sorted(DOCS.rglob("*.md")), ids=lambda page: page.name)
def test_relative_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), target


# --- how-tos ------------------------------------------------------------------------------------


def python_of(page: Path) -> str:
    """Return the Python of a page as one program; what is marked as a file is another matter."""
    text = re.sub(r"(?ms)^<!-- file: .*?^```$", "", page.read_text(encoding="utf-8"))
    return "\n".join(re.findall(r"(?ms)^```python\n(.*?)^```", text))


#: Pages whose Python takes seconds, and is of commands that test_how_to.py runs.
SLOW = ("merge-on-many-machines", "sweep")
PROGRAMS = [
    pytest.param(path, marks=[pytest.mark.thorough] * (path.stem in SLOW), id=path.stem)
    for path in HOW_TO
    if python_of(path)
]


@pytest.mark.parametrize("page", PROGRAMS)
def test_the_python_of_a_page_runs(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(Path(__file__).parent / "stand_ins")
    Path("page.py").write_text(python_of(page), encoding="utf-8")
    runpy.run_path("page.py", run_name="page")


def test_every_how_to_shows_something_that_is_tested() -> None:
    unproven = {page.stem for page in HOW_TO if not python_of(page)}
    commands = {  # test_how_to.py runs them
        *("choose-a-method", "evaluate", "evaluate-with-lm-eval", "report"),
        *("learn-without-labels", "merge-language-models", "merge-lora-adapters"),
        *("average-a-training-run", "merge-quantised-models", "transplant-a-tokenizer"),
        *("merge-mixtures", "merge-parts-of-models", "mixtures-from-dense-models"),
        "verify-and-reproduce",
        "publish-a-merge",
        "convert-to-gguf",  # nox -s real_lm does it
    }
    assert unproven == {*commands, "log-runs", "publish-a-plugin"}


def test_recipes_in_how_tos_are_valid() -> None:
    count = 0
    for page in HOW_TO:
        for source in re.findall(r"(?ms)^```yaml\n(.*?)^```", page.read_text(encoding="utf-8")):
            recipe = load_yaml(source, origin=page.name)
            if "algorithm" not in recipe:  # the tasks of `fuse average --tasks`
                continue
            stages = expand_pipelines(recipe["algorithm"], load_plugins())
            recipe["algorithm"] = [section for section, _ in stages]
            resolve(recipe, load_plugins(), nesting=lambda nested: {"recipe": nested})
            count += 1
    assert count


#: The pages that a newcomer and an author of plugins read, in their order.
PATHS = {
    "newcomer": [
        *("tutorials/first-merge", "tutorials/read-the-result", "how-to/merge-checkpoints"),
        *("how-to/choose-a-method", "how-to/learn-without-labels", "how-to/sweep"),
        "how-to/check-before-publishing",
    ],
    "author": [
        *("tutorials/your-first-method", "how-to/write-an-algorithm", "how-to/write-a-model-pool"),
        *("how-to/write-a-task-pool", "how-to/read-another-format", "how-to/write-a-command"),
        *("how-to/test-a-plugin", "how-to/publish-a-plugin"),
    ],
}


@pytest.mark.parametrize("page", sorted(DOCS.glob("*/*.md")), ids=lambda page: page.name)
def test_a_page_has_one_title_and_ends_with_the_next_one(page: Path) -> None:
    text = re.sub(r"(?ms)^```.*?^```", "", page.read_text(encoding="utf-8"))
    assert len(re.findall("^# ", text, re.MULTILINE)) == 1
    (target,) = re.findall(r"^Next: \[[^]]+\]\(([^)#]+)", text, re.MULTILINE)
    steps = {DOCS / f"{page}.md": step for path in PATHS.values() for page, step in pairwise(path)}
    if page in steps:
        assert (page.parent / target).resolve() == DOCS / f"{steps[page]}.md"


def test_every_how_to_can_be_reached_from_the_tutorial() -> None:
    linked: set[Path] = set()
    pages = [DOCS / "tutorials" / "your-first-method.md"]
    while pages:
        page = pages.pop()
        for target in re.findall(r"\]\(([^)#:]+\.md)", page.read_text(encoding="utf-8")):
            path = (page.parent / target).resolve()
            if path not in linked:
                linked.add(path)
                pages.append(path)
    assert {page.resolve() for page in HOW_TO} <= linked


# --- the plugin that keeps a diary --------------------------------------------------------------


def test_the_plugin_that_hears_runs_writes_a_line_a_run(
    site: Site,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    make_tiny_pool: Callable[..., ModelPool[Any]],
    tiny_tasks: TaskPool[Any],
) -> None:
    page = (DOCS / "how-to" / "log-runs.md").read_text(encoding="utf-8")
    files = dict(re.findall(r"(?ms)^<!-- file: (\S+) -->\n```\w+\n(.*?)^```$", page))
    (code,) = (text for name, text in files.items() if name.endswith("/plugin.py"))
    site.install("fusion-diary", code, requires=("fusion-core>=0.1,<0.2",))
    monkeypatch.setenv("FUSION_DIARY", str(tmp_path / "diary.csv"))
    recipe = {"algorithm": Mean(), "model_pool": make_tiny_pool("mlp"), "task_pool": tiny_tasks}
    result = run_fusion(recipe, output=tmp_path / "merged")
    run_fusion(recipe, output=None)
    assert result.report is not None
    average = f"{result.report.average}"
    lines = (tmp_path / "diary.csv").read_text().splitlines()
    assert lines == [f"{tmp_path / 'merged'},{average}", f",{average}"]
