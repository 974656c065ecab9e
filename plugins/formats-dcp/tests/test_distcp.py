"""Checkpoints of one process: names, parts that are left out, and refused files."""

from __future__ import annotations

import io
import json
import pickle
import sys
import types
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch.distributed.checkpoint.metadata import Metadata

from formats_dcp.metadata import is_allowed
from formats_dcp.pickles import UnsafePickleError, read_pickle
from fusion_core import find_model, run_fusion
from fusion_core.errors import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from fusion_core import WeightSource

W, B = torch.arange(6.0).reshape(2, 3), torch.ones(2)


def open_model(path: Path) -> WeightSource:
    return find_model(str(path), "model").open()


def left_out(source: WeightSource) -> str:
    assert source.origin is not None
    text: str = source.origin.files[".metadata"]["left_out"]
    return text


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        ({"layers.0.w": W}, ""),
        ({"model.layers.0.w": W, "lm_head.w": B}, ""),
        ({"model": {"layers.0.w": W}, "step": 3}, "step (1)"),
        ({"model": {"model.layers.0.w": W}, "optimizer": {"state": {0: {"exp_avg": W}}}},
         "optimizer (1)"),
        ({"app": {"model": {"w": W}, "optim": {"param_groups": [{"lr": 0.1}]}}}, "app (1)"),
        ({"layers.0.w": W, "optimizer.state.layers.0.w.exp_avg": W, "dataloader": io.BytesIO()},
         "dataloader (1), optimizer (1)"),
        ({"w": W, "state.w.exp_avg": W, "state.w.step": B, "param_groups.w.lr": 0.1},
         "param_groups (1), state (2)"),
        ({"model": {"w": W}, "ema": {"w": B}}, "ema (1)"),
    ],
)  # fmt: skip
def test_the_model_is_found_and_the_rest_is_named(
    state: Mapping[str, Any], expected: str, save: Callable[[Path, Any], Path], tmp_path: Path
) -> None:
    source = open_model(save(tmp_path, state))
    assert torch.equal(source.tensor(next(iter(source.infos))), W)
    inner: Any = state
    for key in ("app", "model"):
        inner = inner.get(key, inner)
    tensors = [n for n, t in inner.items() if isinstance(t, torch.Tensor)]
    assert [*source.infos] == [n for n in tensors if "state." not in n]
    assert sorted(left_out(source).split(", ")) == expected.split(", ")


@pytest.mark.parametrize(
    ("state", "names", "expected"),
    [
        ({"scaler.loc": W, "net.w": B}, "scaler.loc, net.w", ""),
        ({"scaler.loc": W, "scaler._extra_state": io.BytesIO(b"fp8")}, "scaler.loc", "scaler (1)"),
        ({"net.w": W, "scaler.scale": B, "scaler.growth": 2.0}, "net.w", "scaler (2)"),
        ({"optimizer.q.w": W, "state.x.step": B}, "optimizer.q.w, state.x.step", ""),
        ({"net.w": W, "state.x.step": torch.tensor(3)}, "net.w, state.x.step", ""),
        ({"w": W, "rng_state": torch.zeros(9, dtype=torch.uint8)}, "w", "rng_state (1)"),
        ({"w": W, "optim.state.w.factor": B, "optim.other.w": B}, "w", "optim (2)"),
        ({"w": W, "chained_0.optimizer.w.exp_avg": B}, "w", "chained_0 (1)"),
        ({"model": {"net.w": W, "head": {"w": B}}, "ema": {"w": W}}, "net.w, head.w", "ema (1)"),
        ({"model": {"a": {"w": W}, "b": {"c": {"w": B}}}, "step": B}, "a.w, b.c.w", "step (1)"),
        ({"model": {"net.w": W, "scaler": {"loc": B}}}, "net.w, scaler.loc", ""),
        ({"model": {"head": {"w": W}}, "step": 3}, "head.w", "step (1)"),
        ({"app": {"model": {"net": {"model": {"w": W}}}}, "ema": {"w": B}}, "net.model.w",
         "ema (1)"),
        ({"model": {"module": {"w": W}}}, "w", ""),
        ({"model": {"_orig_mod.net.w": W, "_orig_mod.b": B}, "step": 3}, "net.w, b", "step (1)"),
        ({"model": {"module.net.w": W, "module.net._orig_mod.b": B}}, "net.w, net.b", ""),
        ({"net._checkpoint_wrapped_module.w": W, "module.w": B}, "net.w, module.w", ""),
        ({"model": {"w": W, "optimizer": {"state": {"w": {"exp_avg": B}}}}}, "w",
         "model.optimizer (1)"),
    ],
)  # fmt: skip
def test_modules_named_like_parts_of_a_trainer_and_nested_parts_stay_in_the_model(
    state: Any, names: str, expected: str, save: Callable[[Path, Any], Path], tmp_path: Path
) -> None:
    source = open_model(save(tmp_path, state))
    assert ", ".join(source.infos) == names
    assert torch.equal(source.tensor(next(iter(source.infos))), W)
    assert left_out(source) == expected


def test_models_that_differ_only_in_wrappers_are_refused(
    save: Callable[[Path, Any], Path], tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match="equal without the wrappers"):
        open_model(save(tmp_path, {"w": W, "_orig_mod.w": B}))


@pytest.mark.parametrize(
    "state",
    [
        {"model": {"state_dict": {"w": W}, "ema": {"w": B}}},
        {"state_dict": {"model": {"w": W}, "head": {"w": B}}},
        {"w": W, "head": {"w": B}},
        {"app": {"w": W, "ema": {"w": B}}},
    ],
)
def test_parts_that_may_be_models_are_refused(
    state: Any, save: Callable[[Path, Any], Path], tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match="several models"):
        open_model(save(tmp_path, state))


def test_megatrons_checkpoints_are_read_without_megatron(
    save: Callable[[Path, Any], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = types.ModuleType("megatron.core.dist_checkpointing.strategies.torch")
    kind = type("MCoreMetadata", (Metadata,), {"__module__": module.__name__})
    module.MCoreMetadata = kind  # type: ignore[attr-defined]
    name = "decoder.layers.self_attention.linear_qkv.weight"
    state = {
        name: torch.randn(4, 6, 3),
        "optimizer.state.exp_avg." + name: torch.zeros(72),
        "decoder.layers.mlp.linear_fc1._extra_state/shard_0_4": io.BytesIO(b"fp8"),
        "rng_state/shard_0.0_1.1": io.BytesIO(b"rng"),
    }
    save(tmp_path, state)
    with monkeypatch.context() as patch:
        for depth in range(1, 6):
            parent = ".".join(module.__name__.split(".")[:depth])
            patch.setitem(sys.modules, parent, module)
        metadata = pickle.loads((tmp_path / ".metadata").read_bytes())
        fields = {key: getattr(metadata, key) for key in vars(metadata)}
        megatrons = kind(**fields)
        megatrons.mcore_data = {name: {"nd_reformulated_orig_global_shape": (4, 6, 3)}}
        (tmp_path / ".metadata").write_bytes(pickle.dumps(megatrons))
    source = open_model(tmp_path)
    assert torch.equal(source.tensor(name), state[name])
    assert left_out(source) == "optimizer (1), decoder (1), rng_state (1)"


def test_tensors_that_share_or_transpose_memory(
    save: Callable[[Path, Any], Path], tmp_path: Path
) -> None:
    big = torch.arange(40.0).reshape(8, 5)
    source = open_model(save(tmp_path / "a", {"view": big[2:4], "part": big[:, 1:3]}))
    assert torch.equal(source.tensor("view"), big[2:4])
    with pytest.raises(CheckpointError, match="not in row-major order: its strides are") as caught:
        open_model(save(tmp_path / "b", {"w": W.t()}))
    assert "contiguous" in (caught.value.hint or "")


def test_empty_and_scalar_tensors(save: Callable[[Path, Any], Path], tmp_path: Path) -> None:
    tensors = {
        "none": torch.zeros(0, 4),
        "no columns": torch.zeros(4, 0),
        "one": torch.tensor(2.5),
        "small": torch.tensor([1.0]).to(torch.float8_e4m3fn),
        "unsigned": torch.tensor([7], dtype=torch.uint16),
    }
    source = open_model(save(tmp_path, tensors))
    for name, tensor in tensors.items():
        assert source.tensor(name).shape == tensor.shape
        assert source.tensor(name).dtype == tensor.dtype
        assert source.tensor(name).tolist() == tensor.tolist()


def test_several_models_and_none_are_refused(
    save: Callable[[Path, Any], Path], tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match="several models: critic, generator"):
        open_model(save(tmp_path / "a", {"generator": {"w": W}, "critic": {"w": W}}))
    with pytest.raises(CheckpointError, match="holds no model"):
        open_model(save(tmp_path / "b", {"optim": {"state": {"w": W}}}))


def test_a_file_of_a_checkpoint_is_not_a_checkpoint(
    save: Callable[[Path, Any], Path], tmp_path: Path
) -> None:
    path = save(tmp_path, {"w": W}) / "__0_0.distcp"
    with pytest.raises(CheckpointError, match="expected the directory") as caught:
        open_model(path)
    assert str(tmp_path) in (caught.value.hint or "")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (print, "it names builtins.print"),
        (types.SimpleNamespace(), "it names types.SimpleNamespace"),
        (frozenset({1}), "opcode"),
        ({(1, 2): 3}, "it has a tuple as a key"),
        (2**70, "more than 64 bits"),
    ],
)
def test_pickles_of_anything_else_are_refused_by_name(value: object, message: str) -> None:
    with pytest.raises(UnsafePickleError, match=message):
        read_pickle(pickle.dumps(value), is_allowed, {})


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_plain_pickles_are_read_as_pickle_reads_them(protocol: int) -> None:
    shared = ["a", 1, -(2**40), None, True, ("x",) * 3]
    value = {
        "one": shared,
        "two": {"again": shared, "many": [f"layers.{n}.weight" for n in range(3000)]},
        7: (),
    }
    content = pickle.dumps(value, protocol=protocol)
    assert read_pickle(content, is_allowed, {}) == pickle.loads(content)


def test_a_run_copies_the_side_files_of_a_quantised_model_without_the_quantisation(
    save: Callable[[Path, Any], Path], tmp_path: Path
) -> None:
    (tmp_path / "config").mkdir()
    config = {"hidden_size": 3, "quantization_config": {"quant_method": "fp8"}}
    (tmp_path / "config" / "config.json").write_text(json.dumps(config))
    (tmp_path / "config" / "hf_quant_config.json").write_text("{}")
    for step in (1, 2):
        save(tmp_path / f"step-{step}", {"model": {"w": step * W}})
    run_fusion(
        algorithm="simple-average",
        model_pool={
            "name": "checkpoints",
            "models": [str(tmp_path / "step-1"), str(tmp_path / "step-2")],
            "side_files": str(tmp_path / "config"),
        },
        output=str(tmp_path / "merged"),
    )
    merged = open_model(tmp_path / "merged")
    assert torch.equal(merged.tensor("w"), 1.5 * W)
    assert json.loads((tmp_path / "merged" / "config.json").read_text()) == {"hidden_size": 3}
    assert not (tmp_path / "merged" / "hf_quant_config.json").exists()
