"""`fuse check` and `fuse run --dry-run`: what a run would do, from headers alone."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
import torch
from safetensors.torch import load_file, save_file

from fusion_core import run_fusion
from fusion_core.checking.check import Check, check, scan
from fusion_core.errors import AlignmentError, DiskError
from fusion_core.planning.plan import plan
from fusion_core.planning.run_options import RunOptions
from fusion_core.weights import BLOCK, CheckpointSource, Cut
from fusion_core.weights.merging.finite import BadTensor
from pools_checkpoints import CheckpointsPool

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from conftest import Outcome, Site

pytestmark = pytest.mark.plugins


@pytest.fixture
def pool(
    models: dict[str, dict[str, torch.Tensor]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> dict[str, Any]:
    """Save the models below the working directory in bf16; return the pool's section."""
    monkeypatch.chdir(tmp_path)
    for name, state in models.items():
        half = {n: v.bfloat16() if v.is_floating_point() else v for n, v in state.items()}
        save_file(half, f"{name}.safetensors")
    return {"base": "base.safetensors", "models": {n: f"{n}.safetensors" for n in ("a", "b")}}


@pytest.fixture
def recipe(pool: dict[str, Any]) -> str:
    Path("recipe.yaml").write_text(
        json.dumps({"algorithm": "ties", "model_pool": pool, "output": {"path": "out"}})
    )
    return "recipe.yaml"


def checked(pool: Mapping[str, Any], algorithm: object = "ties", **sections: object) -> Check:
    raw = {"algorithm": algorithm, "model_pool": pool, "output": {"path": "out"}, **sections}
    return check(plan(raw, RunOptions()))


def change(name: str, **tensors: torch.Tensor | None) -> None:
    """Replace, add or (None) remove tensors of a saved model; `__` stands for a dot."""
    state: dict[str, torch.Tensor | None] = {**load_file(f"{name}.safetensors")}
    state |= {key.replace("__", "."): value for key, value in tensors.items()}
    save_file({k: v for k, v in state.items() if v is not None}, f"{name}.safetensors")


# --- the models ---------------------------------------------------------------------------------


def test_predicted_sizes_and_tensors_are_those_of_the_run(pool: dict[str, Any]) -> None:
    for algorithm in ("ties", {"name": "ties", "only": "layer.*"}):
        for dtype in (None, "float64"):
            output = {"path": "out", "dtype": dtype}
            result = checked(pool, algorithm, output=output)
            run_fusion({"algorithm": algorithm, "model_pool": pool, "output": output})
            provenance = json.loads(Path("out/provenance.json").read_text())["predicate"]
            assert result.tensors == provenance["tensors"]
            assert result.disk.needed == Path("out/model.safetensors").stat().st_size
            shutil.rmtree("out")


def test_side_files_need_disk_space_too(pool: dict[str, Any]) -> None:
    before = checked(pool).disk.needed
    Path("base").mkdir()
    Path("base.safetensors").rename("base/model.safetensors")
    Path("base/tokenizer.json").write_text("x" * 1000)
    assert checked({**pool, "base": "base"}).disk.needed == before + 1000


def test_models_are_described(pool: dict[str, Any]) -> None:
    result = checked(pool)
    base, a, b = result.models
    assert (base.name, base.source, base.tensors) == ("base", "base.safetensors", 6)
    assert set(a.dtypes) == {"bfloat16", "int64"}
    assert a.bytes == 2 * (35 + 7 + 33 + 1) + 8
    assert (b.missing, b.extra, b.licence, b.nested) == (0, 0, None, False)


def test_differences_that_a_policy_allows_are_counted(pool: dict[str, Any]) -> None:
    change("a", layer__bias=None, head__new=torch.ones(2), head__other=torch.ones(1))
    alignment = {"missing": "base", "extra": "drop"}
    result = checked(pool, alignment=alignment)
    assert (result.models[1].missing, result.models[1].extra) == (1, 2)
    assert result.tensors == {"merged": 5, "copied": 1, "dropped": 2}


def test_a_missing_tensor_may_look_like_another(pool: dict[str, Any]) -> None:
    """Alignment reads tensors to find copies, but the estimate of memory never reads any."""
    twin = torch.arange(7.0).bfloat16()
    change("base", layer__twin=twin)
    change("b", layer__twin=twin)
    result = checked(pool, alignment={"missing": "base"})
    assert result.models[1].missing == 1


def test_models_that_do_not_fit_are_refused_with_the_table_of_a_run(pool: dict[str, Any]) -> None:
    change("a", layer__bias=None)
    change("b", scale=torch.ones(3, 3))
    with pytest.raises(AlignmentError) as one:
        checked(pool)
    with pytest.raises(AlignmentError) as other:
        run_fusion({"algorithm": "ties", "model_pool": pool, "output": {"path": "out"}})
    assert one.value.message == other.value.message
    assert "2 differences" in one.value.message


def respell(name: str, prefix: str) -> None:
    """Save a model with a prefix before every name, as another library would."""
    state = load_file(f"{name}.safetensors")
    save_file({prefix + key: value for key, value in state.items()}, f"{name}.safetensors")


def test_a_check_aligns_models_like_a_run(pool: dict[str, Any]) -> None:
    respell("a", "model.")
    result = checked(pool)
    assert [(model.missing, model.extra) for model in result.models] == [(0, 0)] * 3
    assert result.tensors == {"merged": 5, "copied": 1, "dropped": 0}


def test_a_padded_vocabulary_needs_its_disk_space(pool: dict[str, Any]) -> None:
    for number, name in enumerate(("base", "a", "b")):
        rows = 14 if name == "a" else 11
        change(name, lm_head__weight=torch.full((rows, 3), number, dtype=torch.bfloat16))
    alignment = {"vocab": "pad"}
    needed = checked(pool, alignment=alignment).disk.needed
    assert needed - checked({**pool, "models": ["b.safetensors"]}).disk.needed == 2 * 3 * 3
    raw = {"algorithm": "ties", "model_pool": pool, "alignment": alignment}
    run_fusion({**raw, "output": {"path": "out"}})
    assert needed == Path("out/model.safetensors").stat().st_size


def test_no_weight_is_read(pool: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def read(*_: object) -> torch.Tensor:
        raise AssertionError("read")

    monkeypatch.setattr(CheckpointSource, "read", read)
    assert checked(pool, {"name": "ties", "scope": "tensor"}).tensors["merged"] == 5


def test_nested_recipes_are_checked_with_their_models(pool: dict[str, Any]) -> None:
    nested = {"algorithm": "ties", "model_pool": pool}
    outer = {"base": "base.safetensors", "models": {"math": nested, "c": "c.safetensors"}}
    result = checked(outer, "task-arithmetic")
    assert [model.name for model in result.models] == [
        "base",
        "math",
        "math/base",
        "math/a",
        "math/b",
        "c",
    ]
    assert [model.name for model in result.models if model.nested] == ["math"]
    change("a", layer__bias=None)
    with pytest.raises(AlignmentError, match=r"layer\.bias  a: missing"):
        checked(outer, "task-arithmetic")


# --- room ---------------------------------------------------------------------------------------


class Usage(NamedTuple):
    total: int
    used: int
    free: int


def test_an_output_that_does_not_fit_on_the_disk_is_an_error(
    pool: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    needed = checked(pool).disk.needed
    for free, fits in ((needed, True), (needed - 1, False)):
        monkeypatch.setattr(shutil, "disk_usage", lambda _, free=free: Usage(free, 0, free))
        result = checked(pool)
        assert (result.disk.free, result.disk.fits) == (free, fits)
    with pytest.raises(DiskError, match=f"takes {needed:,} bytes, {needed - 1:,} are free"):
        result.check_disk_space()


def test_only_the_run_knows_whether_an_output_in_another_form_fits(
    pool: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(1, 0, 1))
    result = checked(pool, output={"path": "out", "adapter": 1})
    assert (result.disk.needed, result.disk.free) == (None, None)
    result.check_disk_space()
    assert result.not_checked == ("output.adapter: whether the output fits on its disk",)


def test_the_file_system_of_the_output_is_the_one_that_counts(
    pool: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Path] = []
    usage = Usage(1, 0, 1)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: asked.append(path) or usage)
    (tmp_path / "elsewhere").mkdir()
    checked(pool, output={"path": "elsewhere/new/out"})
    assert [path.resolve() for path in asked] == [tmp_path / "elsewhere"]


def test_models_in_memory_need_no_disk(models: dict[str, Any]) -> None:
    raw = {
        "algorithm": "ties",
        "model_pool": {"base": models["base"], "models": {"a": models["a"]}},
    }
    result = check(plan(raw, RunOptions()))
    assert (result.disk.path, result.disk.free, result.disk.fits) == (None, None, True)
    assert result.memory.kept == sum(tensor.nbytes for tensor in models["base"].values())
    assert result.memory.total >= result.memory.process + result.memory.merge + result.memory.kept


def _large(name: str) -> None:
    save_file({"w": torch.zeros(1200, 1000), "v": torch.zeros(5)}, f"{name}.safetensors")


@pytest.fixture
def large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.chdir(tmp_path)
    for name in ("base", "a", "b"):
        _large(name)
    return {"base": "base.safetensors", "models": ["a.safetensors", "b.safetensors"]}


def estimate(pool: dict[str, Any], algorithm: object, workers: int, **sections: Any) -> int:
    raw = {"algorithm": algorithm, "model_pool": pool, **sections}
    return check(plan(raw, RunOptions(workers=workers))).memory.merge


def test_memory_grows_with_workers_experts_and_cuts_and_not_with_the_model(
    large: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    one = estimate(large, "task-arithmetic", 1)
    piece = BLOCK * 4 * (5 + 2 * 2)
    assert estimate(large, "task-arithmetic", 3) - one == 2 * piece
    models = [*large["models"], "base.safetensors"]
    more = {**large, "models": {f"model {n}": path for n, path in enumerate(models)}}
    assert estimate(more, "task-arithmetic", 1) - one == BLOCK * 4 * 2
    override = {"name": "ties", "overrides": [{"match": "v", "scope": "tensor"}]}
    assert estimate(large, override, 1) > estimate(large, "ties", 1)  # which surveys more at once
    whole = {"algorithm": "magmax", "model_pool": large}
    planned = plan(whole, RunOptions(workers=1))
    before = check(planned).memory.merge
    monkeypatch.setattr(type(planned.stages[0].stage), "cut", Cut.TENSOR, raising=False)
    added = (1_200_000 - BLOCK) * 4 * (5 + 2 * 2)
    assert check(planned).memory.merge - before == added + 16 * 2**20  # which is kept when freed


def test_a_method_on_whole_matrices_reports_their_memory_alone_and_in_a_pipeline(
    large: dict[str, Any],
) -> None:
    """The transform inside of `tsv-m` is result in the lazy merge, and counts as beside it."""
    whole = 1_200_000 * 4
    alone = estimate(large, "tsv-m", 1)
    assert alone > 10 * whole
    assert alone == estimate(large, ["orthogonalise", "task-arithmetic"], 1)
    assert alone < estimate(large, "tsv-m", 2) < 2 * alone


def test_a_nested_merge_adds_to_the_memory(large: dict[str, Any]) -> None:
    nested = {"algorithm": "task-arithmetic", "model_pool": large}
    outer = {"base": "base.safetensors", "models": {"n": nested, "b": "b.safetensors"}}
    flat = estimate(large, "task-arithmetic", 1)
    assert estimate(outer, "task-arithmetic", 1) - flat == BLOCK * 4  # the base, read before


def test_needs_that_headers_cannot_tell_are_named(pool: dict[str, Any]) -> None:
    result = checked(pool, "ties").memory
    assert (result.at_least, result.unknown) == (False, None)
    assert result.total == result.process + result.merge
    assert result.live == 0
    result = checked(pool, "emr").memory
    assert (result.at_least, result.unknown) == (True, "emr reads weights before it merges them")


# --- the scan -----------------------------------------------------------------------------------


def _scan(pool: dict[str, Any], algorithm: object = "ties", **sections: object) -> list[BadTensor]:
    raw = {"algorithm": algorithm, "model_pool": pool, **sections}
    return scan(plan(raw, RunOptions()))


def test_a_scan_finds_every_value_that_is_not_finite(large: dict[str, Any]) -> None:
    assert _scan(large) == []
    values = torch.zeros(1200, 1000)
    values[0, 0] = values[1199, 999] = torch.nan  # in different pieces
    values[5, 5], values[6, 6], values[7, 7] = torch.inf, -torch.inf, torch.inf
    change("b", w=values)
    change("base", v=torch.full((5,), -torch.inf))
    assert _scan(large) == [BadTensor("base", "v", 0, 5), BadTensor("b", "w", 2, 3)]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_a_scan_reads_every_dtype_and_large_values_are_fine(
    pool: dict[str, Any], dtype: torch.dtype
) -> None:
    largest = torch.full((7, 5), torch.finfo(dtype).max, dtype=dtype)
    change("a", layer__weight=largest)
    assert _scan(pool) == []
    largest[0, 0] = torch.nan
    change("a", layer__weight=largest)
    assert _scan(pool) == [BadTensor("a", "layer.weight", 1, 0)]


def test_a_scan_looks_at_what_a_run_would_read(pool: dict[str, Any]) -> None:
    bad = torch.full((7,), torch.nan)
    change("a", layer__bias=bad, head=bad.clone())
    assert _scan(pool, {"name": "ties", "skip": "layer.bias"}, alignment={"extra": "drop"}) == []
    change("base", layer__bias=bad)
    bad_tensors = _scan(pool, {"name": "ties", "skip": "layer.bias"}, alignment={"extra": "drop"})
    assert bad_tensors == [BadTensor("base", "layer.bias", 7, 0)]


def test_a_scan_reads_models_under_other_names(pool: dict[str, Any]) -> None:
    change("a", scale=torch.tensor(torch.inf))
    respell("a", "model.")
    assert _scan(pool) == [BadTensor("a", "scale", 0, 1)]
    assert _scan(pool, {"name": "ties", "skip": "scale"}) == []


def test_a_scan_goes_into_nested_recipes(pool: dict[str, Any]) -> None:
    change("b", scale=torch.tensor(torch.inf))
    nested = {"algorithm": "ties", "model_pool": pool}
    outer = {"base": "base.safetensors", "models": {"math": nested, "c": "c.safetensors"}}
    assert _scan(outer) == [BadTensor("math/b", "scale", 0, 1)]


# --- licences -----------------------------------------------------------------------------------


def test_licences_of_the_pool_are_shown(
    fuse: Callable[..., Outcome], recipe: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = {"base": {"licence": "gpl-3.0"}, "a": {"licence": "gpl-3.0"}, "b": {}}
    monkeypatch.setattr(CheckpointsPool, "cards", lambda _: known)
    done = fuse("check", recipe)
    assert done.code == 0
    assert "gpl-3.0" in done.out
    assert "licences   not known: b" in done.out
    data = json.loads(fuse("check", recipe, "--json").out)
    assert [model["licence"] for model in data["models"]] == ["gpl-3.0", "gpl-3.0", None]


def test_a_licence_that_the_pools_spec_names_is_every_models(fuse: Callable[..., Outcome]) -> None:
    done = fuse("check", "--algo", "ties", "--pool", "mini8", "--no-eval", "--json")
    assert {model["licence"] for model in json.loads(done.out)["models"]} == {"Apache-2.0"}


def test_warnings_are_shown_by_check_and_by_run(
    fuse: Callable[..., Outcome], recipe: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    configs = {"base": b'{"norm_eps": 1e-6}', "a": b'{"norm_eps": 1e-5}'}
    side_files = {name: {"config.json": config} for name, config in configs.items()}
    monkeypatch.setattr(CheckpointsPool, "side_files", lambda _: side_files)
    warning = "a: config.json norm_eps: 1e-05, the base's is 1e-06"
    assert f"warning    {warning}\n" in fuse("check", recipe).out
    assert json.loads(fuse("check", recipe, "--json").out)["warnings"] == [warning]
    done = fuse("run", recipe, "-q")
    assert (done.code, done.err) == (0, f"warning: {warning}\n")


# --- the command --------------------------------------------------------------------------------


def test_the_matrices_of_packed_tensors_are_shown_and_recorded(
    fuse: Callable[..., Outcome], pool: dict[str, Any]
) -> None:
    for name in ("base", "a", "b"):
        packed = {f"layers.{n}.mlp.experts.up_proj": torch.randn(3, 6, 5) for n in range(2)}
        save_file(packed, f"{name}.safetensors")
    Path("recipe.yaml").write_text(json.dumps({"algorithm": "iso-c", "model_pool": pool}))
    row = r"layers\.\*\.mlp\.experts\.up_proj +2 +100\.0 % +3 matrices of 6 x 5 +merged\n"
    assert re.search(row, fuse("check", "recipe.yaml").out)
    data = json.loads(fuse("check", "recipe.yaml", "--json").out)
    assert data["matrices"] == [
        {
            "tensors": "layers.*.mlp.experts.up_proj",
            "count": 2,
            "holds": "3 matrices of 6 x 5",
        }
    ]
    assert data["fallbacks"] == []
    assert data["outside_matrices"] == 0


def test_every_tensor_is_in_one_group_with_its_treatment(
    fuse: Callable[..., Outcome], pool: dict[str, Any]
) -> None:
    for name in ("base", "a", "b"):
        tensors = {
            **{f"layers.{n}.mlp.experts.0.w1.weight": torch.randn(4, 5) for n in range(2)},
            **{f"layers.{n}.mlp.gate.weight": torch.randn(2, 5) for n in range(2)},
            "norm.weight": torch.randn(5),
            "head.weight": torch.randn(3, 5),
            "steps": torch.ones(5, dtype=torch.int64),
            **({"pooler.weight": torch.randn(2, 5)} if name == "base" else {}),
        }
        save_file(tensors, f"{name}.safetensors")
    algorithm = {"name": "iso-c", "skip": "head.*"}
    recipe = {"algorithm": algorithm, "model_pool": {**pool, "router": "base"}}
    Path("recipe.yaml").write_text(json.dumps({**recipe, "alignment": {"missing": "base"}}))
    groups = json.loads(fuse("check", "recipe.yaml", "--json").out)["groups"]
    assert {group["tensors"]: (group["count"], group["treatment"]) for group in groups} == {
        "layers.*.mlp.experts.*.w1.weight": (2, "merged"),
        "layers.*.mlp.gate.weight": (2, "copied from base (router: base)"),
        "norm.weight": (1, "averaged"),
        "head.weight": (1, "copied (only, skip)"),
        "steps": (1, "copied (int64)"),
        "pooler.weight": (1, "the base's: no expert has it"),
    }
    assert sum(group["share"] for group in groups) == pytest.approx(1)
    assert sum(group["in_matrices"] for group in groups) == pytest.approx(40 / 95)
    done = fuse("run", "recipe.yaml", "-o", "out")
    assert done.code == 0
    merged, base = (load_file(path) for path in ("out/model.safetensors", "base.safetensors"))
    routers = {"layers.0.mlp.gate.weight", "layers.1.mlp.gate.weight"}
    copied = {*routers, "head.weight", "steps", "pooler.weight"}
    assert {name for name in base if torch.equal(merged[name], base[name])} == copied


@pytest.mark.parametrize("terminal", [False, True])
def test_names_of_models_cannot_command_a_terminal(
    fuse: Callable[..., Outcome],
    pool: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    terminal: bool,  # noqa: FBT001
) -> None:
    pool["models"] = {"a\x1b]0;owned\x07": "a.safetensors", "b\nmemory": "b.safetensors"}
    Path("recipe.yaml").write_text(json.dumps({"algorithm": "ties", "model_pool": pool}))
    monkeypatch.setattr("sys.stdout.isatty", lambda: terminal)
    done = fuse("check", "recipe.yaml")
    assert done.code == 0
    assert "\x1b]" not in done.out
    assert r"a\x1b]0;owned\x07" in done.out
    assert "\nmemory  b" not in done.out
    assert "b memory" in done.out


@pytest.fixture
def contents(tmp_path: Path) -> Iterator[None]:
    """Hold the test to leaving the directory as it was."""
    before = sorted(tmp_path.rglob("*"))
    yield
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.usefixtures("recipe", "contents")
@pytest.mark.parametrize("command", [("check",), ("run", "--dry-run")])
def test_both_commands_print_the_same_and_write_nothing(
    fuse: Callable[..., Outcome], command: tuple[str, ...]
) -> None:
    done = fuse(*command, "recipe.yaml", "--workers", 2)
    assert done.code == 0, done.err
    assert done.err == ""
    lines = done.out.splitlines()
    assert lines[0].split() == ["model", "source", "tensors", "size", "dtype"]
    assert "tensors    5 merged, 1 copied, 0 dropped" in lines
    assert "output     out" in lines
    assert any(line.startswith("memory     about ") for line in lines)
    data = json.loads(fuse(*command, "recipe.yaml", "--json").out)
    assert data["schema"] == 1
    assert data["tensors"] == {"merged": 5, "copied": 1, "dropped": 0}
    assert data["disk"]["path"] == "out"


def test_flags_are_those_of_run(fuse: Callable[..., Outcome], pool: dict[str, Any]) -> None:
    done = fuse(
        "check",
        *("--algo", "task-arithmetic", "--pool", "checkpoints", "-o", "there", "--seed", 3),
        *("--set", f"model_pool.base={pool['base']}", "--set", "model_pool.models=[a.safetensors]"),
        *("--executor", "serial", "--device", "cpu", "--json", "-q"),
    )
    data = json.loads(done.out)
    assert (data["algorithm"], data["disk"]["path"]) == ("task-arithmetic", "there")
    assert data["memory"]["how"].startswith("1 worker, ")


def test_a_scan_that_finds_something_shows_it_and_exits_4(
    fuse: Callable[..., Outcome], recipe: str
) -> None:
    assert fuse("check", recipe, "--scan").code == 0
    change("b", layer__bias=torch.tensor([1.0, torch.nan, 0, 0, torch.inf, 0, 0]))
    assert fuse("check", recipe).code == 0  # nothing is read
    done = fuse("check", recipe, "--scan")
    assert done.code == 4
    assert done.out.splitlines()[-1].split() == ["b", "layer.bias", "1", "1"]
    assert "'layer.bias' of b" in done.err
    data = json.loads(fuse("check", recipe, "--scan", "--json").out)
    assert data["scan"] == [{"model": "b", "tensor": "layer.bias", "nan": 1, "infinite": 1}]
    allowed = fuse("check", recipe, "--scan", "--set", "alignment.nan=allow")
    assert allowed.code == 0


def test_a_full_disk_exits_6(
    fuse: Callable[..., Outcome], recipe: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(100, 0, 100))
    done = fuse("check", recipe)
    assert done.code == 6
    assert "100 are free there" in done.err
    assert "100 B free" in done.out


@pytest.mark.parametrize(
    ("flags", "code", "says"),
    [
        (("--algo", "tise"), 3, "did you mean ties"),
        (("--set", "algorithm.densty=1"), 2, "did you mean density?"),
        (("--set", "algorithm.skip=layr"), 2, "no tensor matches 'layr'"),
        (("--set", "algorithm.density='0.2'"), 2, "expected a number, one per expert"),
        (("-o", "recipe.yaml"), 7, "is a file"),
        (("--device", "meta"), 2, "device 'meta'"),
    ],
)
def test_a_check_fails_like_the_run(
    fuse: Callable[..., Outcome], recipe: str, flags: tuple[str, ...], code: int, says: str
) -> None:
    done = fuse("check", recipe, *flags)
    assert (done.code, done.out) == (code, "")
    assert says in done.err


def test_a_run_prints_the_counts_of_tensors(fuse: Callable[..., Outcome], recipe: str) -> None:
    done = fuse("run", recipe, "--set", "algorithm.skip=layer.bias")
    assert done.code == 0
    assert "tensors: 4 merged, 2 copied, 0 dropped" in done.err.splitlines()
    assert "tensors" not in fuse("run", recipe, "-q", "--overwrite").err


@pytest.mark.parametrize("how", ["a missing file", "another reason"])
def test_a_task_without_its_data_is_reported_with_its_plugin(
    fuse: Callable[..., Outcome],
    site: Site,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    how: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    site.install(
        "tasks-birds",
        """
        import pathlib
        from fusion_core import AdaptiveTask, ComponentConfig, TaskPool, TaskPoolSpec, hookimpl
        class Birds(AdaptiveTask):
            def __init__(self, name): self.name = name
            def batch(self, step, *, size, split, seed):
                return pathlib.Path(f"{self.name}.csv").read_text()
            def logits(self, model, batch): ...
            def evaluate(self, model): ...
        class BirdTasks(TaskPool):
            config_class = ComponentConfig
            names = ("here", "gone")
            def __getitem__(self, name): return Birds(name)
        KEYS = {"summary": "", "target": "tasks_birds:BirdTasks"}
        @hookimpl
        def fusion_register_task_pools():
            yield TaskPoolSpec(name="birds", config="tasks_birds:ComponentConfig", **KEYS)
        """,
    )
    Path("here.csv").touch()
    if how == "another reason":
        Path("gone.csv").mkdir()
    recipe = {"algorithm": "task-arithmetic", "model_pool": "mini8", "task_pool": "birds"}
    Path("birds.yaml").write_text(json.dumps({**recipe, "output": {"path": "out"}}))
    for command in ("check", "run"):
        done = fuse(command, "birds.yaml", "-q")
        assert (done.code, done.out) == (1, "")
        assert "error: tasks-birds: task 'gone': its data cannot be read: " in done.err
    assert fuse("check", "birds.yaml", "--no-eval").code == 0
    assert not Path("out").exists()
