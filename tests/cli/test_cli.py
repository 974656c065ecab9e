"""The command line as a user meets it: output, exit codes, errors that name the thing."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from rich.console import Console
from safetensors.torch import load_file, save_file

from fusion_core import AlgorithmSpec, ModelPoolSpec
from fusion_core.cli.progress import BarProgress, LineProgress, NotebookProgress, progress_for
from fusion_core.commands import load_plugins

pytestmark = pytest.mark.plugins

Fuse = "Callable[..., Outcome]"


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory, made the current one, with a base and three experts in one file each."""
    monkeypatch.chdir(tmp_path)
    generator = torch.Generator().manual_seed(0)
    base = {
        "a.weight": torch.randn(16, 24, generator=generator),
        "b.bias": torch.randn(10, generator=generator),
        "steps": torch.tensor(3),
    }
    save_file(base, "base.safetensors")
    for name in ("x", "y", "z"):
        noise = {
            key: torch.randn(value.shape, generator=generator)
            for key, value in base.items()
            if value.is_floating_point()
        }
        save_file(
            {**base, **{k: base[k] + 0.1 * v for k, v in noise.items()}}, f"{name}.safetensors"
        )
    return tmp_path


CHECKPOINTS = (
    "--pool",
    "checkpoints",
    "--set",
    "model_pool.base=base.safetensors",
    "--set",
    "model_pool.models=[x.safetensors, y.safetensors, z.safetensors]",
)


def test_run_merges_checkpoints_from_flags_alone(fuse: Fuse, models: Path) -> None:
    done = fuse("run", "--algo", "task-arithmetic", *CHECKPOINTS, "-o", "merged")
    assert (done.code, done.out) == (0, "written: merged\n")
    assert sorted(path.name for path in (models / "merged").iterdir()) == [
        "README.md",
        "model.safetensors",
        "provenance.json",
        "recipe.yaml",
    ]
    base, merged = load_file("base.safetensors"), load_file("merged/model.safetensors")
    experts = [load_file(f"{name}.safetensors") for name in "xyz"]
    expected = base["a.weight"] + 0.3 * sum(
        expert["a.weight"] - base["a.weight"] for expert in experts
    )
    torch.testing.assert_close(merged["a.weight"], expected)
    assert merged["steps"] == 3


def test_flags_override_the_file_which_overrides_defaults(fuse: Fuse, models: Path) -> None:
    (models / "recipe.yaml").write_text(
        "algorithm: {name: ties, density: 0.5}\n"
        "model_pool: {name: checkpoints, base: base.safetensors, models: {x: x.safetensors}}\n"
        "seed: 4\n"
    )
    arguments = ("run", "recipe.yaml", "--set", "algorithm.scale=1e-3", "--print-config")
    printed = fuse(*arguments)
    assert json.loads(fuse(*arguments, "--json").out) == yaml.safe_load(printed.out)
    assert printed.code == 0
    assert "density: 0.5" in printed.out
    assert "scale: 0.001" in printed.out
    assert "seed: 4" in printed.out
    assert "scope: model" in printed.out
    reseeded = fuse("run", "recipe.yaml", "--seed", 5, "--print-config")
    assert "seed: 5" in reseeded.out
    # Another algorithm's name drops the options that were the first one's.
    other = fuse("run", "recipe.yaml", "--algo", "simple-average", "--print-config")
    assert other.code == 0
    assert "density" not in other.out


def test_json_goes_to_stdout_and_progress_to_stderr(fuse: Fuse, models: Path) -> None:
    done = fuse("run", "--algo", "ties", *CHECKPOINTS, "-o", "out", "--json")
    assert json.loads(done.out) == {"path": "out", "report": None}
    assert "merge" in done.err
    quiet = fuse("run", "--algo", "ties", *CHECKPOINTS, "-o", "out", "-q", "--overwrite")
    assert quiet.err == ""


@dataclass(frozen=True)
class Bad:
    """A command that must be refused: what it says, and its exit code."""

    arguments: tuple[str, ...]
    code: int
    says: tuple[str, ...]


def _pool_options(base: str, *models: str) -> tuple[str, ...]:
    return (
        "--pool",
        "checkpoints",
        *(("--set", f"model_pool.base={base}") if base else ()),
        "--set",
        f"model_pool.models=[{', '.join(models)}]",
    )


BAD = {
    "unknown algorithm": Bad(
        ("--algo", "tise", *CHECKPOINTS), 3, ("unknown algorithm 'tise'; did you mean ties",)
    ),
    "pipeline in one string": Bad(
        ("--set", "algorithm='trim,ties'", *CHECKPOINTS), 3, ("pipeline: algorithm: [trim,ties]",)
    ),
    "empty stage": Bad(("--algo", "trim,", *CHECKPOINTS), 2, ("a stage has no name", "commas")),
    "no algorithm": Bad(CHECKPOINTS, 2, ("algorithm", "required")),
    "unknown pool": Bad(
        ("--algo", "ties", "--pool", "checkpoint"), 3, ("did you mean checkpoints",)
    ),
    "unknown task pool": Bad(
        ("--algo", "ties", *CHECKPOINTS, "--task-pool", "nope"), 3, ("task pool 'nope'",)
    ),
    "unknown option": Bad(
        ("--algo", "ties", *CHECKPOINTS, "--set", "algorithm.desnity=0.3"),
        2,
        ("algorithm.desnity: unknown option", "did you mean density?", "fuse info ties"),
    ),
    "unknown section": Bad(
        ("--algo", "ties", *CHECKPOINTS, "--set", "outptu.path=x"), 2, ("outptu", "output")
    ),
    "wrong type": Bad(
        ("--algo", "ties", *CHECKPOINTS, "--set", "algorithm.density=much"),
        2,
        ("algorithm.density = 'much'", "number"),
    ),
    "out of range": Bad(
        ("--algo", "ties", *CHECKPOINTS, "--set", "algorithm.density=1.5"),
        2,
        ("algorithm.density = 1.5", "less than or equal to 1"),
    ),
    "two errors at once": Bad(
        (
            "--algo",
            "ties",
            *CHECKPOINTS,
            "--set",
            "algorithm.scope=all",
            "--set",
            "model_pool.bse=x",
        ),
        2,
        ("algorithm.scope", "model_pool.bse"),
    ),
    "no assignment": Bad(("--algo", "ties", *CHECKPOINTS, "--set", "x"), 2, ("--set 'x'",)),
    "output with no options": Bad(
        ("output.yaml", "-o", "out"), 2, ("output.name: unknown option", "path")
    ),
    "tasks of a list": Bad(("tasks.yaml", "--tasks", "a"), 2, ("--tasks a", "['a']")),
    "missing recipe": Bad(("nowhere.yaml",), 2, ("nowhere.yaml",)),
    "malformed recipe": Bad(("malformed.yaml",), 2, ("malformed.yaml", "YAML")),
    "recipe that is a list": Bad(("list.yaml",), 2, ("list.yaml", "mapping")),
    "missing directory": Bad(
        ("--algo", "ties", *_pool_options("gone", "x.safetensors")), 4, ("gone", "does not exist")
    ),
    "directory without weights": Bad(
        ("--algo", "ties", *_pool_options("empty", "x.safetensors")),
        4,
        ("empty", "model.safetensors"),
    ),
    "not safetensors": Bad(
        ("--algo", "ties", *_pool_options("taken/notes.txt", "x.safetensors")), 4, ("notes.txt",)
    ),
    "no recipe in place of a model": Bad(
        ("--algo", "ties", *_pool_options("list.yaml", "x.safetensors")),
        2,
        ("list.yaml", "mapping"),
    ),
    "other shapes": Bad(
        (
            "--algo",
            "ties",
            *_pool_options("base.safetensors", "x.safetensors", "shape.safetensors"),
        ),
        4,
        ("a.weight", "shape", "[16, 25]", "[16, 24]"),
    ),
    "other keys": Bad(
        ("--algo", "ties", *_pool_options("base.safetensors", "keys.safetensors")),
        4,
        ("b.bias", "missing", "c.bias", "extra"),
    ),
    "truncated file": Bad(
        ("--algo", "ties", *_pool_options("base.safetensors", "short.safetensors")),
        4,
        ("short.safetensors", "truncated"),
    ),
    "infinite weights": Bad(
        ("--algo", "ties", *_pool_options("base.safetensors", "inf.safetensors")),
        4,
        ("inf.safetensors", "'b.bias'", "infinite"),
    ),
    "output is there": Bad(
        ("--algo", "ties", *CHECKPOINTS, "-o", "taken"), 7, ("taken", "--overwrite")
    ),
    "output is a file": Bad(
        ("--algo", "ties", *CHECKPOINTS, "-o", "list.yaml"), 7, ("list.yaml", "file")
    ),
    "output is the root": Bad(("--algo", "ties", *CHECKPOINTS, "-o", "/"), 7, ("/ is a mount",)),
    "output without a name": Bad(("--algo", "ties", *CHECKPOINTS, "-o", ""), 2, ("output.path",)),
    "no experts": Bad(("--algo", "ties", *_pool_options("base.safetensors")), 2, ("expert",)),
    "no base": Bad(("--algo", "ties", *_pool_options("", "x.safetensors")), 2, ("'ties'", "base")),
    "no tasks": Bad(
        ("--algo", "adamerging", *CHECKPOINTS), 2, ("'adamerging'", "tasks", "--task-pool")
    ),
    "tasks of files of any class": Bad(
        ("--algo", "ties", *CHECKPOINTS, "--task-pool", "mini8"),
        1,
        ("'checkpoints'", "tasks", "fuse list pools"),
    ),
    "same names": Bad(
        ("--algo", "ties", *_pool_options("base.safetensors", "x.safetensors", "./x.safetensors")),
        2,
        ("same name",),
    ),
    "unknown executor": Bad(
        ("--algo", "ties", *CHECKPOINTS, "--executor", "fast"), 3, ("'fast'", "threads")
    ),
    "an option that the executor lacks": Bad(
        ("--algo", "ties", *CHECKPOINTS, "--executor", "serial", "--workers", "2"),
        2,
        ("executor.workers: unknown option", "fuse info serial"),
    ),
    "unknown device": Bad(("--algo", "ties", *CHECKPOINTS, "--device", "gpu"), 2, ("gpu", "cuda")),
    "a flag without its value": Bad(("--algo",), 2, ("--algo", "requires an argument")),
    "a similar flag": Bad(("--algo", "ties", "--outptu", "x"), 2, ("--outptu", "--output")),
    "no such flag": Bad(
        ("--algo", "ties", "--densty", "1"), 2, ("--densty", "--set algorithm.densty=VALUE")
    ),
    "weights of an unknown expert": Bad(
        ("--algo", "ties", *CHECKPOINTS, "--set", "algorithm.weights={w: 1}"), 2, ("w", "x, y, z")
    ),
}


@pytest.mark.parametrize("bad", BAD.values(), ids=BAD)
def test_bad_input_is_named_and_leaves_everything_as_it_was(
    fuse: Fuse, models: Path, bad: Bad
) -> None:
    _write_broken_files()
    before = _contents(models)
    done = fuse("run", *bad.arguments)
    assert done.code == bad.code, done.err
    assert done.out == ""
    assert "Traceback" not in done.err
    for part in bad.says:
        assert part in done.err
    assert _contents(models) == before


def _write_broken_files() -> None:
    """Put everything into the current directory that a command above trips over."""
    base = load_file("base.safetensors")
    save_file({**base, "a.weight": torch.zeros(16, 25)}, "shape.safetensors")
    save_file(
        {k: v for k, v in base.items() if k != "b.bias"} | {"c.bias": base["b.bias"]},
        "keys.safetensors",
    )
    save_file({**base, "b.bias": base["b.bias"] / 0}, "inf.safetensors")
    Path("short.safetensors").write_bytes(Path("x.safetensors").read_bytes()[:-100])
    Path("empty").mkdir()
    Path("taken").mkdir()
    for name, text in {
        "malformed.yaml": "algorithm: {name: ties",
        "list.yaml": "- algorithm",
        "output.yaml": "algorithm: ties\noutput: out",
        "tasks.yaml": "algorithm: ties\ntask_pool: [a]",
        "taken/notes.txt": "mine",
    }.items():
        Path(name).write_text(text, encoding="utf-8")


def _contents(directory: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(directory)): path.read_bytes() if path.is_file() else b"(directory)"
        for path in sorted(directory.rglob("*"))
    }


def test_list_plugins_shows_each_plugin_and_what_it_provides(fuse: Fuse) -> None:
    listed = {row["name"]: row for row in json.loads(fuse("list-plugins", "--json").out)}
    assert {"fusion-core", "fusion-linear", "fusion-ties"} <= listed.keys()
    assert listed["fusion-ties"]["status"] == "loaded"
    assert {"kind": "algorithm", "name": "ties"} in listed["fusion-ties"]["components"]
    assert "fusion-ties" in fuse("list-plugins", "-v").out


def test_blocked_plugin_is_shown_and_cannot_be_used(fuse: Fuse, models: Path) -> None:
    shown = fuse("--no-plugin", "fusion-ties", "list-plugins").out
    assert "blocked" in next(line for line in shown.splitlines() if "fusion-ties" in line)
    done = fuse("--no-plugin", "fusion-ties", "run", "--algo", "ties", *CHECKPOINTS)
    assert done.code == 3
    assert "fusion-ties (blocked" in done.err


@pytest.mark.parametrize(
    ("kind", "name"), [("algorithms", "ties"), ("pools", "checkpoints"), ("executors", "threads")]
)
def test_list_names_components(fuse: Fuse, kind: str, name: str) -> None:
    assert name in fuse("list", kind).out
    assert name in {row["name"] for row in json.loads(fuse("list", kind, "--json").out)}


def test_listing_without_a_kind_shows_all(fuse: Fuse) -> None:
    lines = fuse("list").out.splitlines()
    assert [line for line in lines if line.endswith(":")] == [
        *(
            "algorithms:",
            "pools:",
            "tasks:",
            "formats:",
            "executors:",
            "outputs:",
            "kernels:",
            "commands:",
        )
    ]
    data = json.loads(fuse("list", "--json").out)
    assert data["pools"] == json.loads(fuse("list", "pools", "--json").out)
    kinds = (
        "algorithms",
        "pools",
        "tasks",
        "formats",
        "executors",
        "outputs",
        "kernels",
        "commands",
    )
    assert tuple(data) == kinds


def test_info_without_a_name_lists_all_components(fuse: Fuse) -> None:
    names = json.loads(fuse("info", "--json").out)
    assert "ties" in names["algorithms"]
    assert "checkpoints" in names["model pools"]
    shown = fuse("info").out
    assert shown.startswith("fuse info NAME shows ")
    assert ", ".join(names["task pools"]) in shown


def test_info_shows_options_with_types_defaults_and_meaning(fuse: Fuse) -> None:
    shown = fuse("info", "ties").out
    assert "arXiv:2306.01708" in shown
    line = next(line for line in shown.splitlines() if line.startswith("density"))
    expected = "density number | per expert | by depth 0.2 Keep this fraction"
    assert " ".join(line.split()).startswith(expected)
    assert "by_depth: {OPTION: {math: [0.2, 0.5], code: 0.3}}" in shown
    (described,) = json.loads(fuse("info", "ties", "--json").out)
    assert described["kind"] == "algorithm"
    assert [option["name"] for option in described["options"]][:2] == ["density", "scale"]
    unknown = fuse("info", "tise")
    assert unknown.code == 3
    assert "did you mean ties" in unknown.err


@pytest.mark.parametrize("name", ["adamerging", "adarank"])
def test_info_shows_what_each_preset_sets(name: str, fuse: Fuse) -> None:
    (described,) = json.loads(fuse("info", name, "--json").out)
    component = load_plugins().find(AlgorithmSpec, name)
    lines = fuse("info", name).out.splitlines()
    assert "paper" in described["presets"]
    for preset, options in described["presets"].items():
        config = component.load_config()(preset=preset)
        assert {option: getattr(config, option) for option in options} == options
        (line,) = (
            line for line in lines if line.split()[:2] == [preset, f"{next(iter(options))}:"]
        )
        assert all(f"{option}: " in line for option in options)


def test_run_help_shows_the_options_of_the_algorithm(fuse: Fuse) -> None:
    for arguments in (("--algo", "ties", "--help"), ("--help", "--algo=ties")):
        shown = fuse("run", *arguments).out
        assert "Options of ties" in shown
        assert "density" in shown
    shown = fuse("run", "--help").out
    assert "Options of" not in shown
    assert "Examples:\n    fuse run --algo ties --pool mini8\n" in shown
    assert "did you mean ties" in fuse("run", "--algo", "tise", "--help").out


@pytest.mark.parametrize("width", [60, 70])
def test_a_narrow_terminal_shows_bar_percentage_and_time(
    monkeypatch: pytest.MonkeyPatch, width: int
) -> None:
    screen = io.StringIO()
    console = partial(Console, file=screen, force_terminal=True, width=width, color_system=None)
    monkeypatch.setattr("rich.console.Console", lambda **_: console())
    label = "download openai/clip-vit-base-patch32 (600.0 MB, 70.0 GB are free)"
    with BarProgress().track(label, total=4) as advance:
        advance(3, note="vision_model.encoder.layers.0.self_attn.q_proj.weight")
    lines = [
        line for line in re.split(r"[\r\n]|\x1b\[\d*[A-Z]", screen.getvalue()) if "75%" in line
    ]
    assert lines
    for line in lines:
        assert re.fullmatch(r"downl.*… ━+ +75% [-:\d]+ vis.*…", line)
        assert len(line) <= width


def test_a_notebook_shows_a_bar_that_becomes_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[dict[str, str]] = []

    class Handle:
        def update(self, data: dict[str, str], *, raw: bool) -> None:
            assert raw
            shown.append(data)

    def display(data: dict[str, str], *, raw: bool, display_id: bool) -> Handle:
        Handle().update(data, raw=raw and display_id)
        return Handle()

    shell = SimpleNamespace(kernel=None)
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell))
    monkeypatch.setitem(sys.modules, "IPython.display", SimpleNamespace(display=display))
    progress = progress_for()
    monkeypatch.setattr(progress, "seconds_between", 0.0)
    with progress.track("merge <a>", total=4) as advance:
        advance(3, note="body")
    opened, between, ended = shown
    assert 'value="0.000"' in opened["text/html"]
    assert 'value="0.750"' in between["text/html"]
    assert between["text/html"].endswith("merge &lt;a&gt;: 3 of 4 body")
    assert ended.keys() == {"text/plain"}
    assert ended["text/plain"].startswith("merge <a>: 3 in ")
    del shell.kernel  # a terminal
    assert isinstance(progress_for(), LineProgress)
    assert not isinstance(progress_for(), NotebookProgress)


def test_schema_describes_recipes(fuse: Fuse) -> None:
    schema = json.loads(fuse("schema").out)
    assert schema["$schema"].startswith("https://json-schema.org/draft/2020-12")
    assert "density" in json.dumps(schema)


def test_version(fuse: Fuse) -> None:
    assert fuse("--version").out.startswith("fuse 0.")


def test_no_arguments_shows_help(fuse: Fuse) -> None:
    shown = fuse()
    assert "list-plugins" in shown.out + shown.err


def test_evaluate_needs_a_way_to_build_the_model(fuse: Fuse, models: Path) -> None:
    fuse("run", "--algo", "ties", *CHECKPOINTS, "-o", "merged")
    pool = ("--pool", "checkpoints")
    for arguments in (("base.safetensors",), ("merged",), ("merged", *pool)):
        done = fuse("evaluate", *arguments)
        assert done.code == 2
        assert f"fuse evaluate {arguments[0]} --pool NAME; see: fuse list pools" in done.err
    assert fuse("evaluate", "gone").code == 4


def test_completion_offers_names() -> None:
    from fusion_core.cli import completion

    assert "ties" in dict(completion.algorithms("ti"))
    assert "checkpoints" in dict(completion.names_of(ModelPoolSpec)(""))
    assert "ties" not in dict(completion.algorithms("x"))


@pytest.mark.usefixtures("fresh_plugins")
def test_completion_is_silent_about_errors_that_the_command_reports(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from fusion_core.cli import completion

    monkeypatch.setenv("FUSION_BLOCK_PLUGINS", "no-such-plugin")
    assert completion.algorithms("ti") == []
    assert completion.tasks("m") == []


def test_as_many_files_may_be_open_as_the_system_allows() -> None:
    script = """
import resource
hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (64, hard))
import sys
from fusion_core.cli import app
sys.argv = ["fuse", "--version"]
try:
    app.main()
except SystemExit:
    pass
soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
print(soft == hard or (hard == resource.RLIM_INFINITY and soft > 1024))
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.endswith("True\n")


def test_the_default_pool_is_named_unless_somebody_chose_a_pool(fuse: Fuse, models: Path) -> None:
    note = "model pool: mini8, the default; choose another with --pool\n"
    run = ("run", "--algo", "ties", "--dry-run", "--no-eval")
    assert fuse(*run).err == note
    assert fuse("check", "--algo", "ties", "--no-eval", "--json").err == note
    assert fuse(*run, "-q").err == ""
    assert fuse(*run, "--pool", "mini8").err == ""
    assert fuse(*run, *CHECKPOINTS).err == ""
    (models / "recipe.yaml").write_text("{algorithm: ties, model_pool: mini8}")
    assert fuse("run", "recipe.yaml", "--dry-run", "--no-eval").err == ""
