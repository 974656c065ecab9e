"""`fuse reproduce`: the same bits again, or the reason why not."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import save_file
from tiny_outputs import merge, read_statement, write_model, write_statement

from fusion_core.errors import FusionError, IntegrityError, RecipeError

if TYPE_CHECKING:
    from collections.abc import Callable

    from hub_server import HubServer


def test_other_workers_and_kernels_give_the_same_bits(
    fuse: Callable[..., str], output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    statement = read_statement(output)
    statement["predicate"]["kernels"] = {"fusion-kernels/agreeing-mean": 3}
    write_statement(output, statement)
    monkeypatch.setenv("FUSION_KERNELS", "torch")
    text = fuse("reproduce", output, "--workers", 3)
    assert f"reproduced: {output} as recorded, 3 tensors, bit for bit" in text
    assert "without effect: kernels: then fusion-kernels/agreeing-mean, now none" in text


@pytest.fixture
def _no_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Remove the variables by which `nox -s processors` limits this processor."""
    for name in ("MKL_CBWR", "ONEDNN_MAX_CPU_ISA"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.usefixtures("_no_limits")
def test_another_kind_of_processor_is_named(
    fuse: Callable[..., str], output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MKL_CBWR", "COMPATIBLE")
    instructions = torch.backends.cpu.get_cpu_capability()
    said = rf"processor: then .*{instructions}, now .*{instructions}, MKL_CBWR=COMPATIBLE\n"
    assert re.search(f"without effect: {said}", fuse("reproduce", output))


def test_random_methods_are_reproduced_by_their_seed(
    fuse: Callable[..., str], models: dict[str, str], tmp_path: Path
) -> None:
    merge(models, tmp_path / "random", algorithm="dare", seed=7)
    data = json.loads(fuse("reproduce", tmp_path / "random", "--json", "-o", tmp_path / "again"))
    assert data["reproduced"]
    statement = read_statement(tmp_path / "again")
    assert statement["predicate"]["recipe"]["seed"] == 7


def test_a_moved_input_is_named(
    fuse: Callable[..., str], output: Path, models: dict[str, str], tmp_path: Path
) -> None:
    shutil.move(models["base"], tmp_path / "moved")
    with pytest.raises(FusionError, match="If an input moved, name it: --set"):
        fuse("reproduce", output)
    moved = f"model_pool.base={tmp_path / 'moved'}"
    assert "bit for bit" in fuse("reproduce", output, "--set", moved)
    with pytest.raises(RecipeError, match="locations of inputs only"):
        fuse("reproduce", output, "--set", "algorithm.scale=2")


def test_another_header_is_refused_before_the_merge(
    fuse: Callable[..., str], output: Path, models: dict[str, str], tmp_path: Path
) -> None:
    for directory in models.values():
        path = Path(directory) / "model.safetensors"
        path.write_bytes(path.read_bytes().replace(b"one.weight", b"six.weight"))
    with pytest.raises(IntegrityError, match=r"input a: model\.safetensors has another header"):
        fuse("reproduce", output, "-o", tmp_path / "again")
    assert not (tmp_path / "again").exists()


def test_an_input_with_other_tensors_explains_the_difference(
    fuse: Callable[..., str], output: Path, models: dict[str, str]
) -> None:
    shutil.rmtree(models["a"])
    write_model(Path(models["a"]), seed=9)
    with pytest.raises(IntegrityError, match=r"3 of 3 .* at most \d\S* of .*: norm\.bias") as error:
        fuse("reproduce", output)
    assert "input a: model.safetensors was written at another time" in str(error.value)
    assert error.value.exit_code == 8


def test_another_configuration_of_an_adapter_is_refused(
    fuse: Callable[..., str], models: dict[str, str], tmp_path: Path
) -> None:
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["one"]}
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    factors = {"lora_A": torch.ones(2, 4), "lora_B": torch.ones(8, 2)}
    tensors = {f"base_model.model.one.{name}.weight": t for name, t in factors.items()}
    save_file(tensors, adapter / "adapter_model.safetensors")
    merged = merge({**models, "a": str(adapter)}, tmp_path / "merged")
    (adapter / "adapter_config.json").write_text(json.dumps({**config, "lora_alpha": 8}))
    with pytest.raises(IntegrityError, match=r"a: adapter_config\.json has another content than"):
        fuse("reproduce", merged)


def test_an_input_of_a_nested_recipe_explains_the_difference(
    fuse: Callable[..., str], models: dict[str, str], tmp_path: Path
) -> None:
    pool = {"name": "checkpoints", "base": models["base"], "models": {"x": models["a"]}}
    inner = tmp_path / "inner.yaml"
    inner.write_text(json.dumps({"algorithm": "task-arithmetic", "model_pool": pool}))
    merged = merge({**models, "a": str(inner)}, tmp_path / "merged")
    shutil.rmtree(models["a"])
    write_model(Path(models["a"]), seed=9)
    with pytest.raises(IntegrityError, match="3 of 3 tensors differ") as error:
        fuse("reproduce", merged)
    assert "input a/x: model.safetensors was written at another time" in str(error.value)


def test_a_licence_does_not_keep_a_merge_from_being_reproduced(
    fuse: Callable[..., str], output: Path, models: dict[str, str]
) -> None:
    for name, licence in (("a", "gemma"), ("b", "llama3.1")):  # known since the merge
        (Path(models[name]) / "README.md").write_text(f"---\nlicense: {licence}\n---\n")
    with pytest.raises(RecipeError, match="licences conflict") as error:
        fuse("reproduce", output)
    assert "--set output.licence=NAME" in str(error.value)
    assert "bit for bit" in fuse("reproduce", output, "--set", "output.licence=acme-1")


def change_weight(predicate: dict[str, Any]) -> None:
    tensors = predicate["outputs"]["tensors"]["model-00001-of-00003.safetensors"]
    tensors.update({name: digest[::-1] for name, digest in tensors.items()})
    predicate["outputs"]["tensors_blake3"] = predicate["outputs"]["tensors_blake3"][::-1]


def test_the_reason_of_a_difference_is_a_version_or_another_recipe(
    fuse: Callable[..., str], output: Path
) -> None:
    statement = read_statement(output)
    change_weight(statement["predicate"])
    write_statement(output, statement)
    with pytest.raises(IntegrityError, match="1 of 3 tensors differ") as error:
        fuse("reproduce", output)
    assert "the output was not made by this recipe" in str(error.value)
    statement["predicate"]["versions"]["torch"] = "2.6.0"
    write_statement(output, statement)
    with pytest.raises(IntegrityError, match=r"version: torch was 2\.6\.0, and is "):
        fuse("reproduce", output)


def test_a_changed_recipe_is_refused(fuse: Callable[..., str], output: Path) -> None:
    with (output / "recipe.yaml").open("a") as stream:
        stream.write("# changed\n")
    with pytest.raises(IntegrityError, match=r"recipe\.yaml is changed"):
        fuse("reproduce", output)


def test_a_damaged_provenance_is_refused(fuse: Callable[..., str], output: Path) -> None:
    (output / "provenance.json").write_text("{")
    with pytest.raises(IntegrityError, match=r"does not verify: .* malformed JSON"):
        fuse("reproduce", output)


def test_the_recorded_commits_are_used(
    fuse: Callable[..., str],
    models: dict[str, str],
    tmp_path: Path,
    hub: HubServer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    commit = hub.add_directory("them/expert", Path(models["a"]))
    merged = merge({**models, "a": "them/expert"}, tmp_path / "merged")
    predicate = read_statement(merged)["predicate"]
    assert predicate["commits"] == {"them/expert@main": commit}
    assert len(predicate["inputs"]["a"]["files"]["model.safetensors"]["sha256"]) == 64
    hub.add_directory("them/expert", Path(models["b"]))
    hub.add_directory("us/merged", merged)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))  # another machine, and later
    arguments = [f"model_pool.{name}" for name in ("base", "models.b")]
    paths = [Path(models["base"]), Path(models["b"])]
    settings = [f"{key}={path}" for key, path in zip(arguments, paths, strict=True)]
    flags = [part for setting in settings for part in ("--set", setting)]
    assert "bit for bit" in fuse("reproduce", "us/merged", *flags)
