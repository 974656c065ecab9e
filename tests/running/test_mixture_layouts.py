"""Mixtures stored expert by expert and packed ones merge with each other, to the same values."""

from __future__ import annotations

import json
from itertools import product
from typing import TYPE_CHECKING, Any

import pytest
import torch
import transformers
from mixture_files import CONFIGS, LAYOUTS, make_states, separate, write
from packed_mixtures import AllTexts
from safetensors.torch import load_file, save_file

from fusion_core import AlignmentPolicy, RunOptions, run_fusion
from fusion_core.errors import AlignmentError, FusionError
from fusion_core.weights import StateDictSource
from pools_lm.architecture import load_architecture
from pools_lm.config import LanguageConfig
from pools_lm.pools import CausalPool

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    State = dict[str, Tensor]

pytestmark = pytest.mark.plugins


class TwoTexts(AllTexts):
    """One task per expert."""

    names = ("a", "b")


@pytest.fixture(scope="module", params=CONFIGS)
def models(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Return the kind, and a function from a model's name and layout to its directory."""
    kind, folder = request.param, tmp_path_factory.mktemp(request.param)
    states = make_states(kind)
    for (name, state), layout in product(states.items(), LAYOUTS):
        write(kind, state, layout, folder / f"{name}-{layout}")
    return kind, lambda name, layout: str(folder / f"{name}-{layout}")


def pool_of(find: Any, base: str, a: str, b: str, **options: Any) -> CausalPool:
    experts = {"a": find("a", a), "b": find("b", b)}
    return CausalPool(LanguageConfig(base=find("base", base), models=experts, **options))


def merge(pool: CausalPool, algorithm: Any, output: Path | None = None) -> Any:
    return run_fusion(
        algorithm=algorithm,
        model_pool=pool,
        task_pool=TwoTexts(),
        output=output,
        options=RunOptions(evaluate=False, overwrite=True),
    )


@pytest.mark.sampled(2)
@pytest.mark.parametrize("algorithm", ["ties", "tsv-m"])
def test_every_mix_of_layouts_merges_to_the_same_model(
    models: Any, algorithm: str, tmp_path: Path
) -> None:
    _, find = models
    results: list[State] = []
    for layouts in product(LAYOUTS, repeat=3):
        merge(pool_of(find, *layouts), algorithm, tmp_path / "out")
        written = load_file(tmp_path / "out" / "model.safetensors")
        assert written.keys() == load_file(f"{find('base', layouts[0])}/model.safetensors").keys()
        model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
        results.append(model.state_dict())
    for name, value in results[0].items():
        assert all(torch.equal(value, result[name]) for result in results), name
    base = load_file(f"{find('base', 'packed')}/model.safetensors")
    unchanged = [name for name, value in base.items() if torch.equal(value, results[0][name])]
    assert not any(".experts." in name for name in unchanged)
    made = model.generate(torch.tensor([[3, 4, 5]]), max_new_tokens=2, do_sample=False)
    assert made.shape[1] > 3


@pytest.mark.sampled(3)
@pytest.mark.parametrize(
    "algorithm",
    [
        {"name": "regmean", "samples": 8},
        {"name": "regmean-plus-plus", "samples": 8},
        {"name": "fisher", "samples": 2},
        {"name": "cat", "samples": 8},
        ["orthogonalise", {"name": "adamerging", "preset": "strong", "init": 1, "steps": 2}],
    ],
    ids=["regmean", "regmean-plus-plus", "fisher", "cat", "strong"],
)
def test_methods_on_live_models_treat_separate_experts_like_packed_ones(
    models: Any, algorithm: Any
) -> None:
    kind, find = models
    if kind == "qwen3_moe":
        pytest.skip("the same code as deepseek_v3, which also has dense layers")
    separate_pool, packed = (pool_of(find, *[layout] * 3) for layout in LAYOUTS)
    one = separate_pool.build(merge(separate_pool, algorithm).weights).state_dict()
    other = packed.build(merge(packed, algorithm).weights).state_dict()
    for name, value in one.items():
        assert torch.equal(value, other[name]), name


def test_a_skipped_expert_keeps_its_weights_in_a_live_merge(models: Any) -> None:
    _, find = models
    algorithm = {"name": "regmean", "samples": 4, "skip": "*.experts.1.*"}
    merged = merge(pool_of(find, *["separate"] * 3), algorithm).weights
    base = load_file(f"{find('base', 'separate')}/model.safetensors")
    for name, value in base.items():
        assert torch.equal(merged.tensor(name), value) is (".experts.1." in name), name


@pytest.mark.parametrize("kind", CONFIGS)
def test_the_layout_of_experts_is_that_of_transformers(kind: str) -> None:
    architecture = load_architecture("AutoModelForCausalLM", CONFIGS[kind].to_json_string())
    state = make_states(kind)["a"]
    files = architecture.rename_to_live(StateDictSource(separate(kind, state), label="files"))
    packed = architecture.files.arrange(files)
    assert packed.infos.keys() == state.keys()
    for name, value in state.items():
        assert torch.equal(packed.tensor(name), value), name
    unpacked = architecture.files.arrange(packed, files.infos)
    for name in files.infos:
        assert torch.equal(unpacked.tensor(name), files.tensor(name)), name


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (lambda tensor: None, "is missing"),
        (lambda tensor: tensor[:, :-1].contiguous(), "has shape"),
        (lambda tensor: tensor.bfloat16(), "has dtype"),
    ],
    ids=["missing", "shape", "dtype"],
)
def test_an_expert_that_does_not_fit_is_named(damage: Any, problem: str, tmp_path: Path) -> None:
    states = make_states("qwen3_moe")
    base = write("qwen3_moe", states["base"], "packed", tmp_path / "base")
    broken = write("qwen3_moe", states["a"], "separate", tmp_path / "a")
    tensors = load_file(f"{broken}/model.safetensors")
    name = "model.layers.1.mlp.experts.2.up_proj.weight"
    changed = damage(tensors.pop(name))
    if changed is not None:
        tensors[name] = changed
    save_file(tensors, f"{broken}/model.safetensors")
    with pytest.raises(AlignmentError, match=problem) as caught:
        CausalPool(LanguageConfig(base=base, models={"a": broken}))
    assert "layers.1.mlp.experts" in str(caught.value)


def test_layers_that_transformers_ignores_are_not_dropped_silently(tmp_path: Path) -> None:
    states = make_states("deepseek_v3")
    extra = {"model.layers.61.eh_proj.weight": torch.ones(2, 2)}  # of multi-token prediction
    base = write("deepseek_v3", {**states["base"], **extra}, "separate", tmp_path / "base")
    expert = write("deepseek_v3", states["a"], "packed", tmp_path / "a")
    pool = CausalPool(LanguageConfig(base=base, models={"a": expert}))
    (warning, *_) = pool.aligned(AlignmentPolicy()).warnings
    assert "left out" in warning
    assert warning.endswith("1, among them model.layers.61.eh_proj.weight")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_experts_of_another_size_are_refused(layout: str, tmp_path: Path) -> None:
    other = LAYOUTS[1 - LAYOUTS.index(layout)]
    states = make_states("qwen3_moe")
    wide = {
        name: torch.cat([value, value], dim=0) if ".experts." in name else value
        for name, value in states["a"].items()
    }
    base = write("qwen3_moe", states["base"], layout, tmp_path / "base")
    expert = write("qwen3_moe", wide, other, tmp_path / "a")
    with pytest.raises(AlignmentError, match=r"has shape \[8, |extra: not in the base"):
        CausalPool(LanguageConfig(base=base, models={"a": expert})).aligned(AlignmentPolicy())


def adapter(folder: Path, **options: Any) -> str:
    """Write a LoRA adapter with factors for the gate of each of four experts in one layer."""
    folder.mkdir()
    name = "base_model.model.model.layers.1.mlp.experts.{}.gate_proj.lora_{}.weight"
    factors = {"A": torch.ones(2, 8), "B": torch.ones(8, 2)}
    save_file(
        {
            name.format(n, kind): values.clone()
            for n in range(4)
            for kind, values in factors.items()
        },
        folder / "adapter_model.safetensors",
    )
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, **options}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return str(folder)


def test_an_adapter_of_experts_is_applied_or_named(tmp_path: Path) -> None:
    state = make_states("qwen3_moe")["base"]
    bases = {name: write("qwen3_moe", state, name, tmp_path / name) for name in LAYOUTS}
    lora = adapter(tmp_path / "lora", target_modules=["gate_proj"])
    algorithm = {"name": "task-arithmetic", "scale": 1.0}
    pool = CausalPool(LanguageConfig(base=bases["separate"], models={"a": lora}))
    merged = merge(pool, algorithm).weights
    files = separate("qwen3_moe", state)
    for name, value in files.items():
        is_adapted = "layers.1.mlp.experts." in name and "gate_proj" in name
        torch.testing.assert_close(merged.tensor(name), value + 2 * is_adapted)
    packed = CausalPool(LanguageConfig(base=bases["packed"], models={"a": lora}))
    with pytest.raises(AlignmentError, match=r"4 differences(.|\n)*experts\.0\.gate_proj"):
        merge(packed, algorithm)


def test_layouts_that_only_names_tell_apart_are_refused(models: Any, tmp_path: Path) -> None:
    _, find = models
    with pytest.raises(FusionError, match="do not fit together") as caught:
        run_fusion(
            algorithm="ties",
            model_pool={"base": find("base", "packed"), "models": {"a": find("a", "separate")}},
            output=tmp_path / "out",
            options=RunOptions(evaluate=False),
        )
    assert "causal-lm" in str(caught.value.hint)
    assert not (tmp_path / "out").exists()


def test_router_policies(models: Any) -> None:
    _, find = models
    base = load_file(f"{find('base', 'separate')}/model.safetensors")
    experts = [load_file(f"{find(name, 'separate')}/model.safetensors") for name in "ab"]
    algorithm = {"name": "ties", "scope": "tensor"}  # no tensor's threshold depends on routers
    results = {
        router: merge(pool_of(find, *["separate"] * 3, router=router), algorithm).weights
        for router in ("merge", "base", "average")
    }
    routers = [name for name in base if ".gate." in name]
    assert routers
    for name, value in base.items():
        merged, copied, mean = (results[router].tensor(name) for router in results)
        if name not in routers:
            assert torch.equal(merged, copied)
            assert torch.equal(merged, mean)
            continue
        assert torch.equal(copied, value)
        torch.testing.assert_close(mean, (experts[0][name] + experts[1][name]) / 2)
        assert not torch.equal(merged, copied)
        assert not torch.equal(merged, mean)
