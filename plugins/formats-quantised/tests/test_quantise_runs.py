"""Whole runs with `output.quantise`, against the plain merge and transformers."""

from __future__ import annotations

import copy
import json
import math
import re
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from fusion_core import (
    ComponentConfig,
    Cut,
    RunOptions,
    TensorwiseAlgorithm,
    find_model,
    run_fusion,
)
from fusion_core.errors import RecipeError, WeightsError

if TYPE_CHECKING:
    from pathlib import Path

    from fusion_core import Piece

pytestmark = pytest.mark.filterwarnings("ignore")

E4M3 = torch.float8_e4m3fn
Tensors = dict[str, torch.Tensor]


class Average(TensorwiseAlgorithm[ComponentConfig]):
    """The average of the experts, computed in fp32."""

    config_class = ComponentConfig

    def merge(self, piece: Piece) -> torch.Tensor:
        return piece.experts.mean(0)


class WholeAverage(Average):
    """The same, a whole tensor at a time."""

    @property
    def cut(self) -> Cut:
        return Cut.TENSOR


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a mixture with tied embeddings, and two experts of it."""
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

    folder = tmp_path_factory.mktemp("models")
    config = Qwen3MoeConfig(
        hidden_size=64,
        intermediate_size=96,
        moe_intermediate_size=32,
        num_experts=4,
        num_experts_per_tok=2,
        num_hidden_layers=2,
        mlp_only_layers=[1],
        num_attention_heads=4,
        num_key_value_heads=1,
        head_dim=16,
        vocab_size=64,
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    base = Qwen3MoeForCausalLM(config).bfloat16()
    base.save_pretrained(folder / "base")
    for name in ("a", "b"):
        expert = copy.deepcopy(base)
        with torch.no_grad():
            for parameter in expert.parameters():
                parameter.add_(torch.randn_like(parameter) / 50)
        expert.save_pretrained(folder / name)
    return folder


def pool(models: Path, base: str | Path = "base") -> dict[str, Any]:
    return {"base": str(models / base), "models": [str(models / name) for name in ("a", "b")]}


def load(path: Path) -> Tensors:
    files = path.glob("*.safetensors")
    return {name: tensor for file in files for name, tensor in load_file(file).items()}


def octets(tensors: Tensors) -> dict[str, bytes]:
    return {name: tensor.view(torch.uint8).numpy().tobytes() for name, tensor in tensors.items()}


def run(models: Path, path: Path, quantise: Any = None, **options: Any) -> Any:
    output = {"path": str(path), "quantise": {"block_size": 32}}
    if quantise is not None:
        output["quantise"] = quantise
    return run_fusion(
        {"alignment": options.pop("alignment", {})},
        algorithm=options.pop("algorithm", Average(ComponentConfig())),
        model_pool=options.pop("model_pool", pool(models)),
        output={**output, **options.pop("output", {})},
        options=RunOptions(**options),
    )


@pytest.fixture(scope="module")
def plain(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Tensors:
    path = tmp_path_factory.mktemp("plain") / "out"
    run_fusion(algorithm=Average(ComponentConfig()), model_pool=pool(models), output=str(path))
    return load(path)


@pytest.fixture(scope="module")
def written(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("written") / "out"
    result = run(models, path)
    assert len(result.summary) == 2
    assert "at most" in result.summary[0]
    assert "4 matrices" in result.summary[1]
    assert "self_attn.k_proj.weight: their sides are not multiples of" in result.summary[1]
    return path


def test_the_files_are_those_of_quantising_the_plain_merge_with_transformers(
    written: Path, plain: Tensors
) -> None:
    from transformers import FineGrainedFP8Config
    from transformers.integrations.finegrained_fp8 import Fp8Quantize

    config = FineGrainedFP8Config(weight_block_size=(32, 32))
    operation = Fp8Quantize(SimpleNamespace(quantization_config=config))
    expected = {}
    for name, tensor in plain.items():
        is_linear = "_proj." in name and not ("k_proj" in name or "v_proj" in name)
        expected.update(operation.convert({name: tensor}) if is_linear else {name: tensor})
    assert octets(load(written)) == octets(expected)


def test_transformers_loads_what_our_reader_reads(written: Path) -> None:
    from transformers import AutoModelForCausalLM, FineGrainedFP8Config

    source = find_model(str(written), "model").open()
    stored = load(written)
    for name, info in source.infos.items():
        if stored[name].dtype is E4M3:
            scales = stored[f"{name}_scale_inv"]
            spread = scales.repeat_interleave(32, 0).repeat_interleave(32, 1)
            assert torch.equal(source.tensor(name), (stored[name].float() * spread).bfloat16())
        assert info.dtype is torch.bfloat16
    model, problems = AutoModelForCausalLM.from_pretrained(
        written, quantization_config=FineGrainedFP8Config(dequantize=True), output_loading_info=True
    )
    assert not any(problems.values())
    loaded = model.state_dict()
    layer = "model.layers.0.mlp.experts"
    gate_up = [source.tensor(f"{layer}.2.{part}_proj.weight") for part in ("gate", "up")]
    assert torch.equal(loaded[f"{layer}.gate_up_proj"][2], torch.cat(gate_up))
    shared = source.infos.keys() & loaded.keys()
    assert len(shared) == len(source.infos) - 12
    assert all(torch.equal(loaded[name], source.tensor(name)) for name in shared)


def modules_for_fp8(path: Path, auto: Any) -> set[str]:
    """Return the modules that transformers replaces on a GPU, by the declaration."""
    from transformers import AutoConfig, FineGrainedFP8Config
    from transformers.integrations.finegrained_fp8 import FP8Experts, FP8Linear
    from transformers.quantizers.quantizer_finegrained_fp8 import FineGrainedFP8HfQuantizer

    config = AutoConfig.from_pretrained(path)
    with torch.device("meta"):
        model = auto.from_config(config)
    quantizer = FineGrainedFP8HfQuantizer(FineGrainedFP8Config(**config.quantization_config))
    quantizer.pre_quantized = True
    quantizer._process_model_before_weight_loading(model)  # noqa: SLF001
    return {n for n, m in model.named_modules() if isinstance(m, FP8Linear | FP8Experts)}


def modules_in_fp8(path: Path) -> set[str]:
    quantised = {name for name, tensor in load(path).items() if tensor.dtype is E4M3}
    return {re.sub(r"(?<=\.experts)\..*|\.weight$", "", name) for name in quantised}


def test_transformers_quantises_the_modules_that_are_quantised(written: Path) -> None:
    from transformers import AutoModelForCausalLM

    assert modules_in_fp8(written) == modules_for_fp8(written, AutoModelForCausalLM)


@pytest.mark.parametrize("kind", ["Bert", "DistilBert", "Electra", "ModernBert", "Roberta"])
def test_heads_that_share_the_embeddings_stay_plain(kind: str, tmp_path: Path) -> None:
    import transformers

    sizes: dict[str, Any] = {"vocab_size": 64, "pad_token_id": 0}
    sizes |= {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}
    sizes |= {"num_attention_heads": 2, "max_position_embeddings": 16, "embedding_size": 32}
    if kind == "DistilBert":
        sizes |= {"dim": 32, "hidden_dim": 64, "n_layers": 1, "n_heads": 2}
    config = getattr(transformers, f"{kind}Config")(**sizes)
    transformers.AutoModelForMaskedLM.from_config(config).save_pretrained(tmp_path / "a")
    models = {"models": [str(tmp_path / "a")]}
    run(tmp_path, tmp_path / "out", model_pool=models, evaluate=False)
    expected = modules_for_fp8(tmp_path / "out", transformers.AutoModelForMaskedLM)
    assert len(expected) >= 4
    assert modules_in_fp8(tmp_path / "out") == expected


def test_packed_experts_have_the_layout_of_transformers_on_a_gpu(
    models: Path, tmp_path: Path
) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.integrations.finegrained_fp8 import FP8Experts

    for name in ("base", "a", "b"):
        model = AutoModelForCausalLM.from_pretrained(models / name, dtype="auto")
        state = {key: tensor.contiguous() for key, tensor in model.state_dict().items()}
        state.pop("lm_head.weight")
        (tmp_path / name).mkdir()
        save_file(state, tmp_path / name / "model.safetensors", {"format": "pt"})
        config = (models / name / "config.json").read_bytes()
        (tmp_path / name / "config.json").write_bytes(config)
    result = run(models, tmp_path / "out", model_pool=pool(tmp_path))
    assert "packed experts: 2 tensors" in result.summary[1]
    stored, source = load(tmp_path / "out"), find_model(str(tmp_path / "out"), "model").open()
    config = AutoConfig.from_pretrained(tmp_path / "out")
    layer = "model.layers.0.mlp.experts"
    expected = FP8Experts(config, block_size=(32, 32)).state_dict()
    assert len(expected) == 4
    for name, parameter in expected.items():
        tensor = stored[f"{layer}.{name}"]
        assert (tensor.shape, tensor.dtype) == (parameter.shape, parameter.dtype)
    for name in ("gate_up_proj", "down_proj"):
        scales = stored[f"{layer}.{name}_scale_inv"]
        spread = scales.repeat_interleave(32, 1).repeat_interleave(32, 2)
        decoded = (stored[f"{layer}.{name}"].float() * spread).bfloat16()
        assert torch.equal(source.tensor(f"{layer}.{name}"), decoded)


def test_the_error_is_that_of_the_written_values(written: Path, plain: Tensors) -> None:
    report = json.loads((written / "quantise_report.json").read_text())
    provenance = json.loads((written / "provenance.json").read_text())["predicate"]
    assert json.dumps({"quantise": report}) in json.dumps(provenance)
    source = find_model(str(written), "model").open()
    errors, norms = {}, {}
    for name in report["tensors"]:
        errors[name] = (source.tensor(name).double() - plain[name].double()).norm().item()
        norms[name] = plain[name].double().norm().item()
        stated = report["tensors"][name]
        assert stated["relative_error"] == pytest.approx(errors[name] / norms[name], rel=1e-6)
    assert report["relative_error"] == pytest.approx(
        math.hypot(*errors.values()) / math.hypot(*norms.values()), rel=1e-6
    )
    largest = max(errors, key=lambda name: errors[name] / norms[name])
    assert report["largest"]["tensor"] == largest
    assert {n for names in report["plain"].values() for n in names} == {
        name for name, tensor in plain.items() if tensor.ndim > 1 and name not in errors
    }


@pytest.mark.parametrize(
    "options",
    [
        {"workers": 3},
        {"executor": "serial"},
        {"algorithm": WholeAverage(ComponentConfig())},
        {"output": {"shard_size": "20kB"}},
    ],
    ids=["3 workers", "serial", "whole tensors", "shards"],
)
def test_the_bytes_are_the_same_however_a_run_works(
    models: Path, written: Path, tmp_path: Path, options: dict[str, Any]
) -> None:
    run(models, tmp_path / "out", **options)
    assert octets(load(tmp_path / "out")) == octets(load(written))
    for file in ("quantise_report.json", "config.json"):
        assert (tmp_path / "out" / file).read_bytes() == (written / file).read_bytes()


def test_a_quantised_base_decides_what_stays_plain(
    models: Path, written: Path, tmp_path: Path
) -> None:
    """Its own blocks may be partial, and its other tensors stay plain."""
    quantise = {"block_size": [24, 40], "partial_blocks": True, "skip": "*.0.self_attn.*"}
    run(models, tmp_path / "first", quantise)
    again = pool(models, tmp_path / "first")
    run(models, tmp_path / "second", {"block_size": [24, 40]}, model_pool=again)
    first, second = load(tmp_path / "first"), load(tmp_path / "second")
    assert {name: tensor.dtype for name, tensor in first.items()} == {
        name: tensor.dtype for name, tensor in second.items()
    }
    assert first["model.layers.1.self_attn.k_proj.weight"].dtype is E4M3
    assert first["model.layers.0.self_attn.k_proj.weight"].dtype is torch.bfloat16
    with pytest.raises(RecipeError, match="the quantised base stores them plain"):
        run(models, tmp_path / "third", {"block_size": 40}, model_pool=pool(models, written))


def test_a_stopped_run_is_resumed(models: Path, written: Path, tmp_path: Path) -> None:
    stop = KeyboardInterrupt()

    class Stopping(Average):
        is_stopped = False

        def merge(self, piece: Piece) -> torch.Tensor:
            if piece.info.name.endswith("1.mlp.up_proj.weight") and not Stopping.is_stopped:
                Stopping.is_stopped = True
                raise stop
            return super().merge(piece)

    algorithm = Stopping(ComponentConfig())
    with pytest.raises(KeyboardInterrupt):
        run(models, tmp_path / "out", algorithm=algorithm)
    assert not (tmp_path / "out").exists()
    run(models, tmp_path / "out", algorithm=algorithm, resume=True)
    assert octets(load(tmp_path / "out")) == octets(load(written))
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize(
    ("quantise", "says"),
    [
        ("fp8-blocks", "output.quantise.target"),
        ({"target": "nf4"}, "output.quantise.target"),
        (
            {"block_sise": 32},
            "quantise.block_sise: unknown option; did you mean block_size?",
        ),
        ({"block_size": 0}, "output.quantise.block_size"),
        ({"block_size": [32]}, "output.quantise.block_size"),
        ({"block_size": [32, 32, 32]}, "output.quantise.block_size"),
        ({"block_size": True}, "output.quantise.block_size"),
        ({"skip": ["*q_prj*"]}, r"output.quantise.skip: no tensor matches '\*q_prj\*'"),
        (
            {"skip": "*"},
            "no weights to quantise; .* they match output.quantise.skip",
        ),
        ("fp8-block", "no weights to quantise; .* not multiples of the block size, for example"),
    ],
)
def test_mistakes_are_named_before_anything_is_read(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quantise: Any, says: str
) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("weights were read")

    monkeypatch.setattr(Average, "merge", refuse)
    with pytest.raises(RecipeError, match=says.replace("?", r"\?")):
        run(models, tmp_path / "out", quantise)
    assert not list(tmp_path.iterdir())


def test_models_without_a_configuration_and_nan_are_refused(models: Path, tmp_path: Path) -> None:
    tensors = load(models / "a")
    given = {"base": None, "models": {"a": tensors}}
    with pytest.raises(RecipeError, match=r"needs a config.json to declare the quantisation"):
        run(models, tmp_path / "out", model_pool=given)
    with pytest.raises(RecipeError, match=r"bfloat16, float16, float32, got torch\.float64"):
        run(models, tmp_path / "out", output={"dtype": "float64"})
    tensors["model.layers.1.mlp.up_proj.weight"][5, 5] = torch.nan
    (tmp_path / "broken").mkdir()
    save_file(tensors, tmp_path / "broken" / "model.safetensors", {"format": "pt"})
    (tmp_path / "broken" / "config.json").write_bytes((models / "a" / "config.json").read_bytes())
    given = {"base": str(models / "base"), "models": [str(tmp_path / "broken")]}
    with pytest.raises(WeightsError, match=r"1.mlp.up_proj.weight' holds 1 values that are NaN"):
        run(models, tmp_path / "out", model_pool=given, alignment={"nan": "allow"})
    assert [path.name for path in tmp_path.iterdir()] == ["broken"]
