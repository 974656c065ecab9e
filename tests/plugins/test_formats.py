"""Which format reads a model: known by names of files and by keys, without loading a target."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import save_file

from fusion_core import FormatSpec, find_model
from fusion_core.errors import (
    AlignmentError,
    BrokenPluginError,
    CheckpointError,
    UnknownComponentError,
)
from fusion_core.plugins import manager
from fusion_core.plugins.distributions import PluginStatus
from fusion_core.plugins.formats import distributions_of_formats
from fusion_core.plugins.manager import PluginManager
from fusion_core.recipe.config import AlignmentPolicy
from fusion_core.weights import CheckpointSource
from fusion_core.weights.reading.location import Location
from pools_checkpoints import CheckpointsConfig, CheckpointsPool

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager
    from pathlib import Path

    from hub_server import HubServer

    from conftest import Outcome, Site

PLUGIN = """
    from fusion_core import FormatSpec, hookimpl

    @hookimpl
    def fusion_register_formats():
        yield FormatSpec({about})
"""
READER = """
    import torch
    from fusion_core import TensorInfo
    from fusion_core.weights import CheckpointSource, FileSource, StateDictSource, StoredTensor
    from fusion_core.weights import Contradiction, WeightSource

    class Raw(FileSource):
        def find_tensors(self):
            for file in self.location.matching("*.raw"):
                header = self.open(file)
                info = TensorInfo(file.removesuffix(".raw"), (header.size // 4,), torch.float32)
                yield StoredTensor(file, info, 0)

    class Doubled(CheckpointSource):
        "Reads a checkpoint whose weights are stored as bytes."
        def __init__(self, location):
            super().__init__(location.path, name=location.name)
            self.infos = {n: TensorInfo(n, i.shape, torch.float32) for n, i in self.infos.items()}
        def read(self, name, start, stop):
            return super().read(name, start, stop).float() * 2

    class Difference(Raw):
        is_delta = True
        def __init__(self, location, base):
            super().__init__(location)
            self.base = base
        def with_base(self, base):
            return Difference(self.location, base)
        def contradictions(self, base_config):
            kind = base_config.get("kind", "toy")
            if kind != "toy":
                yield Contradiction("w.raw kind", f"toy, the base is {kind}", kind == "wrong")

    def opened(location):
        return 3

    def failing(location):
        raise KeyError("x")
"""


@pytest.fixture
def install(site: Site) -> Callable[..., None]:
    def install(name: str, target: str = "Raw", files: str = "('*.raw',)", more: str = "") -> None:
        about = f"name={name!r}, summary='A fake.', target='raw_reader:{target}', files={files}"
        code = PLUGIN.format(about=f"{about}{more}")
        site.install(f"formats-{name}", code, files={"raw_reader.py": READER})

    return install


@pytest.fixture
def among() -> Iterator[Callable[..., PluginManager]]:
    """Return what discovers the plugins that are installed now, and looks formats up there."""
    opened: list[AbstractContextManager[None]] = []

    def among(*block: str) -> PluginManager:
        plugins = PluginManager()
        plugins.discover(block=block)
        opened.append(plugins.active())
        opened[-1].__enter__()
        return plugins

    yield among
    for context in reversed(opened):
        context.__exit__(None, None, None)


def raw(directory: Path, *values: float) -> Path:
    directory.mkdir(exist_ok=True)
    (directory / "w.raw").write_bytes(torch.tensor(values, dtype=torch.float32).numpy().tobytes())
    return directory


def full(directory: Path) -> Path:
    directory.mkdir(exist_ok=True)
    save_file({"w": torch.ones(2)}, directory / "model.safetensors")
    return directory


def format_of(path: Path, **options: Any) -> str:
    return find_model(str(path), "model", **options).format.spec.name


# --- which format it is -------------------------------------------------------------------------


def test_a_model_is_known_without_loading_its_reader(
    install: Callable[..., None], among: Callable[..., PluginManager], tmp_path: Path
) -> None:
    install("raw")
    among()
    located = find_model(str(raw(tmp_path / "a", 1, 2)), "model")
    assert located.format.qualified_name == "formats-raw/raw"
    assert "raw_reader" not in sys.modules
    assert located.open().tensor("w").tolist() == [1, 2]


@pytest.mark.parametrize("name", ["w.raw", "model.safetensors"])
def test_a_file_is_of_the_format_of_its_name(
    install: Callable[..., None],
    among: Callable[..., PluginManager],
    tmp_path: Path,
    name: str,
) -> None:
    install("raw")
    among()
    both = full(raw(tmp_path / "a", 1, 2))
    assert format_of(both / name) == ("raw" if name == "w.raw" else "safetensors")


def test_two_formats_of_one_model_are_named_and_one_is_chosen(
    install: Callable[..., None], among: Callable[..., PluginManager], tmp_path: Path
) -> None:
    install("raw")
    among()
    both = full(raw(tmp_path / "a", 1, 2))
    with pytest.raises(CheckpointError) as caught:
        format_of(both)
    assert "formats-raw/raw and fusion-core/safetensors" in caught.value.message
    assert "`format`" in (caught.value.hint or "")
    assert format_of(both, preferred="raw") == "raw"
    assert format_of(both, preferred="fusion-core/safetensors") == "safetensors"
    config = CheckpointsConfig(models={"a": str(both)}, format="raw")
    assert CheckpointsPool(config).experts["a"].tensor("w").tolist() == [1, 2]
    assert config.model_dump()["format"] == "raw"
    assert "format" not in CheckpointsConfig(models={"a": str(both)}).model_dump()
    with pytest.raises(UnknownComponentError, match="unknown format 'rax'; did you mean raw"):
        format_of(both, preferred="rax")


def test_a_preference_is_for_models_that_could_be_read_so(
    install: Callable[..., None], among: Callable[..., PluginManager], tmp_path: Path
) -> None:
    install("raw")
    among()
    assert format_of(full(tmp_path / "a"), preferred="raw") == "safetensors"


def test_a_blocked_format_reads_nothing(
    install: Callable[..., None], among: Callable[..., PluginManager], tmp_path: Path
) -> None:
    install("raw")
    among("formats-raw")
    assert format_of(full(raw(tmp_path / "a", 1, 2))) == "safetensors"
    with pytest.raises(CheckpointError, match=r"holds neither model\.safetensors"):
        find_model(str(raw(tmp_path / "b", 1)), "model").open()


def test_an_adapter_without_the_plugin_that_reads_it_names_that_plugin(
    among: Callable[..., PluginManager], tmp_path: Path, hub: HubServer
) -> None:
    among("*")
    files = ("adapter_config.json", "adapter_model.safetensors")
    hub.add("org/adapter", dict.fromkeys(files, b"{}"))
    for file in files:
        (tmp_path / file).write_text("{}")
    for given in (str(tmp_path), "org/adapter"):
        with pytest.raises(CheckpointError, match=r"an adapter \(adapter_config\.json") as caught:
            find_model(given, "model").open()
        assert "pip install fusion-lora" in (caught.value.hint or "")


def test_a_full_model_takes_precedence_over_an_adapter_in_its_directory(
    install: Callable[..., None], among: Callable[..., PluginManager], tmp_path: Path
) -> None:
    install("raw", "Difference", more=", is_delta=True")
    among()
    assert format_of(raw(tmp_path, 1)) == "raw"
    assert format_of(full(tmp_path)) == "safetensors"


def test_an_adapter_format_needs_a_base(
    install: Callable[..., None], among: Callable[..., PluginManager], tmp_path: Path
) -> None:
    install("raw", "Difference", more=", is_delta=True")
    among()
    located, base = find_model(str(raw(tmp_path / "a", 1)), "model"), full(tmp_path / "base")
    assert located.is_delta
    with pytest.raises(CheckpointError, match="expected a full model, found an adapter"):
        located.open()
    opened = find_model(str(base), "model").open()
    assert located.open(opened).base is opened  # type: ignore[attr-defined]
    pool = CheckpointsPool(CheckpointsConfig(base=str(base), models={"a": str(tmp_path / "a")}))
    assert pool.experts["a"].is_delta
    with pytest.raises(CheckpointError, match=r"the adapter .*a needs its base") as caught:
        CheckpointsPool(CheckpointsConfig(models={"a": str(tmp_path / "a")}))
    assert caught.value.hint == "Name the base: --set model_pool.base=PATH"
    with pytest.raises(CheckpointError, match=r"model_pool\.base: .* an adapter \(raw\): .*a"):
        CheckpointsPool(CheckpointsConfig(base=str(tmp_path / "a"), models={"a": str(base)}))


@pytest.mark.parametrize(
    ("about", "named"),
    [('{"of": "org/base"}', "org/base"), ("{}", "PATH"), ('{"of": [1]}', "PATH"), (None, "PATH")],
)
def test_an_adapter_format_says_where_its_base_is_named(
    install: Callable[..., None],
    among: Callable[..., PluginManager],
    tmp_path: Path,
    about: str | None,
    named: str,
) -> None:
    install("raw", "Difference", more=", is_delta=True, base_key=('about.json', 'of')")
    among()
    raw(tmp_path / "a", 1)
    if about is not None:
        (tmp_path / "a" / "about.json").write_text(about)
    with pytest.raises(CheckpointError, match="needs its base") as caught:
        CheckpointsPool(CheckpointsConfig(models={"a": str(tmp_path / "a")}))
    assert caught.value.hint == f"Name the base: --set model_pool.base={named}"


def test_differences_follow_their_base(
    install: Callable[..., None], among: Callable[..., PluginManager], tmp_path: Path
) -> None:
    install("raw", "Difference", more=", is_delta=True")
    among()
    models = {"a": str(raw(tmp_path / "a", 1, 2)), "b": str(full(tmp_path / "b"))}
    pool = CheckpointsPool(CheckpointsConfig(base=str(full(tmp_path / "base")), models=models))
    other = CheckpointSource(full(tmp_path / "other"))
    moved = pool.with_sources({"base": other})
    assert moved.experts["a"].base is other  # type: ignore[attr-defined]
    assert moved.experts["b"] is pool.experts["b"]


def test_files_that_contradict_the_base_are_errors_or_warnings(
    install: Callable[..., None], among: Callable[..., PluginManager], tmp_path: Path
) -> None:
    install("raw", "Difference", more=", is_delta=True")
    among()
    base = full(tmp_path / "base")
    models = {"a": str(raw(tmp_path / "a", 1, 2)), "b": str(full(tmp_path / "b"))}
    renamed = {"a": {"w*": "w*"}}  # the contradictions of "a" come through a source that renames it

    def warnings(kind: str, rest: str | None = None, **policy: Any) -> tuple[str, ...]:
        (base / "config.json").write_text(json.dumps({"kind": kind}))
        config = CheckpointsConfig(base=str(base), models=models, map=renamed, rest=rest)
        return CheckpointsPool(config).aligned(AlignmentPolicy(**policy)).warnings

    assert warnings("toy") == ()
    assert warnings("odd") == ("a: w.raw kind: toy, the base is odd",)
    assert warnings("odd", rest="a") == ("a: w.raw kind: toy, the base is odd",)
    with pytest.raises(AlignmentError, match=r"w\.raw kind  a: toy, the base is wrong") as caught:
        warnings("wrong")
    assert "alignment.config=warn" in (caught.value.hint or "")
    assert warnings("wrong", config="warn") == ("a: w.raw kind: toy, the base is wrong",)
    assert warnings("wrong", config="ignore") == ()


# --- keys of a configuration --------------------------------------------------------------------

FILES = "('model.safetensors',)"


def quantised(directory: Path) -> Path:
    directory.mkdir()
    tensors = {"w": torch.tensor([1, 2, 3], dtype=torch.int8)}
    save_file(tensors, directory / "model.safetensors")
    config = {"model_type": "toy", "quantization_config": {"bits": 8}}
    (directory / "config.json").write_text(json.dumps(config))
    (directory / "quantize_config.json").write_text("{}")
    return directory


def test_a_quantised_model_is_refused_with_the_plugin_that_would_read_it(tmp_path: Path) -> None:
    pool = CheckpointsPool(CheckpointsConfig(models={"a": str(quantised(tmp_path / "a"))}))
    with pytest.raises(CheckpointError, match="has a quantization_config") as caught:
        pool.aligned(AlignmentPolicy())
    assert "No installed format reads it" in (caught.value.hint or "")


def test_a_format_with_keys_reads_a_quantised_model_and_removes_its_keys(
    install: Callable[..., None], among: Callable[..., PluginManager], tmp_path: Path
) -> None:
    install("eight", "Doubled", FILES, more=", config_keys=('quantization_config',)")
    among()
    path = quantised(tmp_path / "a")
    assert format_of(path) == "eight"
    pool = CheckpointsPool(CheckpointsConfig(models={"a": str(path)}))
    aligned = pool.aligned(AlignmentPolicy())
    assert aligned.experts["a"].tensor("w").tolist() == [2, 4, 6]
    assert json.loads(pool.assets()["config.json"]) == {"model_type": "toy"}  # type: ignore[arg-type]
    assert format_of(full(tmp_path / "b")) == "safetensors"
    (tmp_path / "b" / "config.json").write_text('{"quantization_config": null}')
    assert format_of(tmp_path / "b") == "safetensors"


def test_formats_share_a_key_by_its_values(
    install: Callable[..., None],
    among: Callable[..., PluginManager],
    fuse: Callable[..., Outcome],
    tmp_path: Path,
) -> None:
    keys = ", config_keys=('quantization_config',), config_values=(('quant_method', {!r}),)"
    install("four", "Doubled", FILES, more=keys.format("four"))
    install("eight", "Doubled", FILES, more=keys.format("eight"))
    manager.load_plugins.cache_clear()
    try:
        assert "quant_method: eight in config.json" in fuse("list", "formats").out
    finally:
        manager.load_plugins.cache_clear()
    among()
    path = quantised(tmp_path / "a")
    for settings, name in (
        ({"quant_method": "eight"}, "eight"),
        ({"quant_method": "four", "bits": 4}, "four"),
        ({"quant_method": "other"}, "safetensors"),
        (["eight"], "safetensors"),
        (None, "safetensors"),
    ):
        (path / "config.json").write_text(json.dumps({"inner": {"quantization_config": settings}}))
        assert format_of(path) == name


# --- specs --------------------------------------------------------------------------------------


@pytest.mark.plugins
@pytest.mark.parametrize(
    ("files", "more", "problem"),
    [
        ("'*.raw'", "", "expected a tuple of names as files"),
        ("()", "", "expected at least one name"),
        ("('../x',)", "", "'../x' is not the name of a file"),
        ("('/x',)", "", "'/x' is not the name of a file"),
        ("('',)", "", "'' is not the name of a file"),
        ("('x',)", ", config_keys='key'", "expected a tuple of names as config_keys"),
        ("('x',)", ", config_values=(('a', 'b'),)", "config_values are entries of config_keys"),
        ("('x',)", ", aliases=('X',)", "format name 'X' is not kebab-case"),
    ],
)
def test_a_malformed_spec_breaks_its_plugin_alone(
    install: Callable[..., None],
    among: Callable[..., PluginManager],
    files: str,
    more: str,
    problem: str,
) -> None:
    install("raw", files=files, more=more)
    plugins = among()
    (broken,) = [plugin for plugin in plugins.plugins if plugin.distribution == "formats-raw"]
    assert broken.status is PluginStatus.BROKEN
    assert problem in broken.detail
    names = {component.spec.name for component in plugins.components(FormatSpec)}
    assert names >= {"safetensors", "lora"}
    assert names.isdisjoint({"raw", "x"})


@pytest.mark.parametrize(
    ("target", "problem"),
    [
        ("nothing", "cannot be imported"),
        ("opened", "expected WeightSource, got 3"),
        ("failing", "cannot be made: KeyError: 'x'"),
        ("READER", "cannot be imported"),
    ],
)
def test_a_target_that_makes_no_weights_is_named(
    install: Callable[..., None],
    among: Callable[..., PluginManager],
    tmp_path: Path,
    target: str,
    problem: str,
) -> None:
    install("raw", target)
    among()
    located = find_model(str(raw(tmp_path / "a", 1)), "model")
    with pytest.raises(BrokenPluginError, match="format 'raw' of plugin formats-raw") as caught:
        located.open()
    assert problem in caught.value.message


@pytest.mark.plugins
def test_runs_look_formats_up_among_their_own_plugins(
    install: Callable[..., None],
    fuse: Callable[..., Outcome],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    install("raw")
    monkeypatch.chdir(tmp_path)
    manager.load_plugins.cache_clear()
    models = [raw(tmp_path / "a", 1, 2), raw(tmp_path / "b", 3, 4)]
    models_option = f"model_pool.models={[str(model) for model in models]}"
    command = ("check", "--pool", "checkpoints", "--set", models_option, "--algo", "simple-average")
    try:
        assert fuse(*command).code == 0
        blocked = fuse("--no-plugin", "formats-raw", *command)
        assert (blocked.code, "holds neither model.safetensors" in blocked.err) == (4, True)
    finally:
        manager.load_plugins.cache_clear()


def test_the_plugins_of_formats_are_known_from_weights(
    install: Callable[..., None], among: Callable[..., PluginManager], tmp_path: Path
) -> None:
    install("raw")
    plugins = among()
    opened = find_model(str(raw(tmp_path / "a", 1)), "model").open()
    assert distributions_of_formats([opened], plugins) == {"formats-raw"}
    plain = find_model(str(full(tmp_path / "b")), "model").open()
    assert distributions_of_formats([plain], plugins) == set()


# --- models on the hub --------------------------------------------------------------------------


def test_a_repository_of_another_format_is_downloaded_when_it_is_opened(
    install: Callable[..., None],
    among: Callable[..., PluginManager],
    hub: HubServer,
    tmp_path: Path,
) -> None:
    hub.add("org/raw", {"w.raw": raw(tmp_path / "a", 1, 2) / "w.raw"})
    with pytest.raises(CheckpointError, match=r"has neither model\.safetensors nor"):
        find_model("org/raw", "model")
    install("raw")
    among()
    located = find_model("org/raw", "model")
    assert located.format.spec.name == "raw"
    assert not hub.asked("w.raw", "GET")
    assert located.open().tensor("w").tolist() == [1, 2]
    assert hub.asked("w.raw", "GET")


def test_names_in_a_model_may_not_lead_out_of_it(tmp_path: Path) -> None:
    (tmp_path / "secret.raw").write_bytes(bytes(8))
    model = raw(tmp_path / "model", 1)
    (model / "out").symlink_to(tmp_path)
    (model / "in").mkdir()
    (model / "in" / "deep").symlink_to(tmp_path)
    location = Location(model, "model")
    for name in ("../secret.raw", str(tmp_path / "secret.raw"), "out/secret.raw", "", "."):
        with pytest.raises(CheckpointError, match=r"not the name of a file|leads out"):
            location.file(name)
    with pytest.raises(CheckpointError, match="leads out"):
        location.file("in/deep/secret.raw")
    assert location.file("w.raw") == model / "w.raw"


def test_a_distributed_checkpoint_names_the_plugin_that_reads_it(tmp_path: Path) -> None:
    (tmp_path / "__0_0.distcp").touch()
    with pytest.raises(CheckpointError, match="a distributed checkpoint of torch") as caught:
        CheckpointSource(tmp_path)
    assert "formats-dcp" in (caught.value.hint or "")
