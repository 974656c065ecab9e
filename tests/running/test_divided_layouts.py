"""Models whose files join what live models divide, or divide what these join."""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING, Any

import peft
import pytest
import torch
import transformers
from packed_mixtures import AllTexts, Texts
from safetensors.torch import load_file, save_file

from fusion_adapting import build_live
from fusion_core import AlignmentPolicy, RunOptions, run_fusion
from fusion_core.errors import AlignmentError
from pools_checkpoints import CheckpointsConfig, CheckpointsPool
from pools_lm.config import LanguageConfig
from pools_lm.pools import CausalPool, ClassificationPool, VisionLanguagePool

if TYPE_CHECKING:
    from pathlib import Path

    from fusion_core import Batch
    from pools_lm.language_pool import LanguagePool

pytestmark = pytest.mark.plugins

_SIZES: dict[str, Any] = {
    "vocab_size": 12,
    "hidden_size": 8,
    "intermediate_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 16,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
#: Files hold query, key and value in one tensor, and live models in three.
DIVIDED: dict[str, Any] = {
    "nomic_bert": transformers.NomicBertConfig(**_SIZES, num_labels=3, head_dim=4),
    "gte": transformers.GteConfig(**_SIZES, num_labels=3),
}
#: Files hold three convolutions in three tensors, and live models in one.
JOINED: dict[str, Any] = {
    "kimi_linear": transformers.KimiLinearConfig(
        **{**_SIZES, "num_hidden_layers": 1},
        layer_types=["linear_attention"],
        mlp_layer_types=["dense"],
        linear_num_heads=2,
        linear_head_dim=4,
    ),
    "olmo_hybrid": transformers.OlmoHybridConfig(  # of two sizes
        **{**_SIZES, "num_hidden_layers": 2},
        layer_types=["linear_attention", "full_attention"],
        linear_num_key_heads=2,
        linear_num_value_heads=2,
        linear_key_head_dim=4,
        linear_value_head_dim=8,
    ),
}
#: Published files hold the experts transposed, and transformers 5 saves them as in live models.
SWAPPED = transformers.Qwen3VLMoeConfig(
    text_config={
        **_SIZES,
        "moe_intermediate_size": 12,
        "num_experts": 3,
        "num_experts_per_tok": 2,
        "num_key_value_heads": 2,
        "head_dim": 4,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 0]},
    },
    vision_config={
        "depth": 1,
        "hidden_size": 8,
        "intermediate_size": 12,
        "num_heads": 2,
        "out_hidden_size": 8,
        "deepstack_visual_indexes": [0],
    },
)
LAYOUTS = "original", "live"


class Classes(Texts):
    """Classify short texts."""

    def logits(self, model: torch.nn.Module, batch: Batch) -> torch.Tensor:
        scores: torch.Tensor = model(**batch.tensors).logits
        return scores


class TwoTasks(AllTexts):
    """One task per expert."""

    names = ("a", "b")


def save(auto: Any, config: Any, folder: Path) -> None:
    """Save a base and two experts, each in the layout of files and in that of live models."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        base = auto.from_config(config, dtype=torch.float32)
        start = {name: value.clone() for name, value in base.state_dict().items()}
        for name in ("base", "a", "b"):
            scale = 0.0 if name == "base" else 0.1
            changed = {n: v + scale * torch.randn_like(v) for n, v in start.items()}
            base.load_state_dict(changed)
            for layout in LAYOUTS:
                is_original = layout == "original"
                base.save_pretrained(folder / f"{name}-{layout}", save_original_format=is_original)


def pool_of(kind: type[LanguagePool], folder: Path, layouts: tuple[str, str, str]) -> LanguagePool:
    base, a, b = (
        f"{folder / n}-{layout}" for n, layout in zip(("base", "a", "b"), layouts, strict=True)
    )
    config = CheckpointsConfig if kind is CheckpointsPool else LanguageConfig
    return kind(config(base=base, models={"a": a, "b": b}))


@pytest.fixture(scope="module", params=DIVIDED)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp(request.param)
    save(transformers.AutoModelForSequenceClassification, DIVIDED[request.param], path)
    stored = [set(load_file(path / f"base-{one}" / "model.safetensors")) for one in LAYOUTS]
    assert stored[0] != stored[1]
    return path


def merge(pool: LanguagePool, algorithm: Any, output: Path | None = None) -> Any:
    return run_fusion(
        algorithm=algorithm,
        model_pool=pool,
        task_pool=TwoTasks(Classes),
        output=output,
        options=RunOptions(evaluate=False, overwrite=True),
    )


def check_layouts_alike(kind: type[LanguagePool], folder: Path, algorithm: Any) -> None:
    """Assert that files of both layouts merge to the same live model."""
    original, live = (pool_of(kind, folder, (one, one, one)) for one in LAYOUTS)
    expected = live.build(merge(live, algorithm).weights).state_dict()
    actual = original.build(merge(original, algorithm).weights).state_dict()
    for name, value in expected.items():
        assert torch.equal(value, actual[name]), name


@pytest.mark.sampled(4)
@pytest.mark.parametrize("algorithm", ["ties", "tsv-m"])
def test_every_mix_of_layouts_merges_to_the_same_model(
    folder: Path, algorithm: str, tmp_path: Path
) -> None:
    results = []
    for layouts in product(LAYOUTS, repeat=3):
        pool = pool_of(ClassificationPool, folder, layouts)
        merge(pool, algorithm, tmp_path / "out")
        written = load_file(tmp_path / "out" / "model.safetensors")
        assert written.keys() == pool.base.infos.keys()
        model = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
        results.append(model.state_dict())
    for name, value in results[0].items():
        assert all(torch.equal(value, result[name]) for result in results), name


@pytest.mark.sampled(3)
@pytest.mark.parametrize(
    "algorithm",
    [
        {"name": "regmean", "samples": 8},
        {"name": "fisher", "samples": 2},
        ["orthogonalise", {"name": "adamerging", "preset": "strong", "init": 1, "steps": 2}],
        {"name": "adamerging", "granularity": "row", "steps": 2, "skip": ["*.1.*"]},
    ],
    ids=["regmean", "fisher", "strong", "skip"],
)
def test_methods_on_live_models_see_the_parts(folder: Path, algorithm: Any) -> None:
    check_layouts_alike(ClassificationPool, folder, algorithm)


@pytest.mark.sampled(2)
@pytest.mark.filterwarnings("ignore")  # PEFT's, about transformers
@pytest.mark.parametrize("layout", LAYOUTS)
def test_adapters_of_parts_are_merged_as_peft_merges_them(
    folder: Path, layout: str, tmp_path: Path
) -> None:
    auto, base = transformers.AutoModelForSequenceClassification, f"{folder}/base-{layout}"
    targets = {"a": ["q_proj"], "b": ["v_proj", "o_proj", "up_proj"]}
    for name, modules in targets.items():
        options: Any = {"r": 2, "target_modules": modules, "init_lora_weights": False}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(len(modules))
            adapted = peft.get_peft_model(auto.from_pretrained(base), peft.LoraConfig(**options))
        adapted.save_pretrained(tmp_path / name)
    models = {name: str(tmp_path / name) for name in targets}
    for name in targets:
        pool = ClassificationPool(LanguageConfig(base=base, models={name: models[name]}))
        algorithm = {"name": "task-arithmetic", "scale": 1}
        run_fusion(algorithm=algorithm, model_pool=pool, output=tmp_path / f"merged-{name}")
        actual = auto.from_pretrained(tmp_path / f"merged-{name}").state_dict()
        whole: Any = peft.PeftModel.from_pretrained(auto.from_pretrained(base), models[name])
        for tensor, value in whole.merge_and_unload().state_dict().items():
            torch.testing.assert_close(actual[tensor], value, rtol=1e-6, atol=1e-7)
    both = ClassificationPool(LanguageConfig(base=base, models=models))
    merge(both, ["tsv-m"], tmp_path / "both")


def test_parts_that_are_merged_as_one_matrix_have_no_parameters(folder: Path) -> None:
    pool = pool_of(ClassificationPool, folder, ("original",) * 3)
    stored = pool.aligned(AlignmentPolicy(matrices="stored"))
    model = build_live(stored, stored.reference, "cpu")
    with pytest.raises(AlignmentError, match="the parts into which transformers divides"):
        stored.parameters(model)


@pytest.fixture(scope="module")
def swapped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("swapped")
    save(transformers.AutoModelForImageTextToText, SWAPPED, path)
    for name in ("base", "a", "b"):
        file = path / f"{name}-original" / "model.safetensors"
        tensors = {n: swap(n, t) for n, t in load_file(file).items()}
        save_file(tensors, file, {"format": "pt"})
    return path


def swap(name: str, tensor: torch.Tensor) -> torch.Tensor:
    return tensor.mT.contiguous() if ".experts." in name else tensor


@pytest.mark.sampled(2)
@pytest.mark.parametrize("algorithm", [{"name": "ties", "scope": "tensor"}, "tsv-m"])
@pytest.mark.parametrize("kind", [VisionLanguagePool, CheckpointsPool])
def test_transposed_experts_merge_to_the_same_model(
    kind: Any, algorithm: Any, swapped: Path, tmp_path: Path
) -> None:
    results = []
    for layouts in product(LAYOUTS, repeat=2):
        pool = pool_of(kind, swapped, (layouts[0], *layouts))
        merge(pool, algorithm, tmp_path / "out")
        written = load_file(tmp_path / "out" / "model.safetensors")
        is_swapped = layouts[0] == "original"
        results.append({n: swap(n, t) if is_swapped else t for n, t in written.items()})
    for name, value in results[0].items():
        assert all(torch.equal(value, result[name]) for result in results), name


@pytest.mark.parametrize(
    "algorithm",
    [
        {"name": "adamerging", "granularity": "row", "steps": 2},
        ["orthogonalise", {"name": "adamerging", "granularity": "layer", "init": 1, "steps": 2}],
    ],
    ids=["row", "layer"],
)
def test_methods_on_live_models_see_transposed_experts(algorithm: Any, swapped: Path) -> None:
    check_layouts_alike(VisionLanguagePool, swapped, algorithm)


@pytest.mark.parametrize("kind", JOINED)
def test_convolutions_are_joined_as_transformers_does(kind: str, tmp_path: Path) -> None:
    save(transformers.AutoModelForCausalLM, JOINED[kind], tmp_path)
    pool = pool_of(CausalPool, tmp_path, ("original",) * 3)
    merge(pool, ["tsv-m"], tmp_path / "out")
    (joined,) = (name for name in pool.live_layout.slots if name.endswith(".conv1d.weight"))
    names = [joined.replace("conv1d", f"{part}_conv1d") for part in "qkv"]
    written = load_file(tmp_path / "out" / "model.safetensors")
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out").state_dict()
    assert torch.equal(loaded[joined], torch.cat([written[name] for name in names]))
    for source in pool.by_name.values():
        actual = pool.build(source).state_dict()
        assert actual.keys() == loaded.keys()
        assert torch.equal(actual[joined], torch.cat([source.tensor(name) for name in names]))
