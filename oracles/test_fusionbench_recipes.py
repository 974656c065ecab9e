"""Configurations through FusionBench 0.2.33 and through `recipes-fusionbench`, entry by entry.

FusionBench computes in fp32. Sums of task vectors may differ by the rounding of their terms, and
decompositions, and descents of 400 steps, by as much as their own rounding. Methods that draw
random numbers keep all entries here. Compositions are compared with Hydra's, for all files of the
release.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import CLIPVisionConfig, CLIPVisionModel

from fusion_core import load_for_task, run_fusion
from fusion_core.commands import load_recipe
from recipes_fusionbench.composition import Composition
from recipes_fusionbench.interpolation import Unresolved, resolve
from recipes_fusionbench.known_methods import find_method
from recipes_fusionbench.methods import METHODS
from recipes_fusionbench.tree import Tree
from recipes_import import ImportFindings

PYTHON = Path(os.environ["FUSION_FUSIONBENCH"]) / "bin" / "python"
HERE = Path(__file__).parent
TOWER = {"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2}
TOWER |= {"num_attention_heads": 2, "image_size": 8, "patch_size": 4}
NAMES = ("a", "b", "c")


def method(name: str, **options: Any) -> dict[str, Any]:
    return {"_target_": f"fusion_bench.method.{name}", **options}


TIES = {"scaling_factor": 0.4, "threshold": 20, "remove_keys": [], "merge_func": "sum"}
DARE = {"sparsity_ratio": 0.0, "only_on_linear_weights": False, "rescale": True}
EXCLUDED = ["encoder.layers.0.self_attn.q_proj.weight", "embeddings.position_embedding.weight"]
SVC = "singular_value_calibration."
#: methods, and how far entries may be apart
CASES: dict[str, tuple[dict[str, Any], float]] = {
    "dummy": (method("DummyAlgorithm"), 0),
    "simple": (method("SimpleAverageAlgorithm"), 1e-7),
    "weighted": (method("WeightedAverageAlgorithm", normalize=True, weights=[0.2, 1, 3]), 1e-7),
    "sum": (method("WeightedAverageAlgorithm", normalize=False, weights=[0.2, 1, -0.5]), 1e-7),
    "expo": (method("ExPOAlgorithm", extrapolation_factor=0.3), 3e-7),
    "arithmetic": (method("TaskArithmeticAlgorithm", scaling_factor=0.3), 2e-7),
    "ties-sum": (method("TiesMergingAlgorithm", **TIES), 2e-7),
    "ties-mean": (
        method("TiesMergingAlgorithm", **TIES | {"merge_func": "mean", "threshold": 0.35}),
        2e-7,
    ),
    "ties-max": (method("TiesMergingAlgorithm", **TIES | {"merge_func": "max"}), 2e-7),
    "dare-average": (method("DareSimpleAverage", **DARE), 2e-7),
    "dare-sum": (method("DareTaskArithmetic", **DARE, scaling_factor=0.3), 2e-7),
    "dare-linear": (
        method("DareTaskArithmetic", **DARE | {"only_on_linear_weights": True}, scaling_factor=0.3),
        2e-7,
    ),
    "dare-ties": (method("dare.DareTiesMerging", **DARE, **TIES), 2e-7),
    "stock-of-three": (method("model_stock.ModelStock"), 1e-6),
    "magmax": (method("MagMaxAlgorithm", scaling_factor=0.5), 1e-7),
    "tsv-m": (method("TaskSingularVectorMerging", alpha=0.9), 3e-6),
    "tsv-m-excluded": (method("TaskSingularVectorMerging", alpha=0.9, exclude_keys=EXCLUDED), 3e-6),
    "iso-c-excluded": (method("ISO_C_Merge", scaling_factor=1.3, exclude_keys=EXCLUDED), 3e-6),
    "iso-c": (method("ISO_C_Merge", scaling_factor=1.3), 3e-6),
    "iso-cts": (method("ISO_CTS_Merge", scaling_factor=1.2, common_space_fraction=0.7), 3e-6),
    "wudi": (method("WUDIMerging", iter_num=400), 1e-5),
    "wudi-excluded": (method("WUDIMerging", iter_num=400, exclude_keys=EXCLUDED), 1e-5),
    "doge": (method("DOGE_TA_Algorithm", subspace=6, K=30, lamda=0.07), 1e-5),
    "svc": (
        method(
            f"{SVC}task_arithmetic.SingularValueCalibrationArithmeticTask",
            scaling_factor=0.3,
            alpha=0.1,
        ),
        3e-6,
    ),
    "svc-after-average": (
        method(
            f"{SVC}generic.SingularValueCalibrationWithBaseMethod",
            alpha=0.2,
            base_method=method("WeightedAverageAlgorithm", normalize=True, weights=[0.2, 1, 3]),
        ),
        3e-6,
    ),
    "emr": (method("emr_merging.EMRMerging"), 2e-6),
}
#: methods of exactly two models
PAIRS: dict[str, tuple[dict[str, Any], list[str]]] = {
    "slerp": (method("SlerpMergeAlgorithm", t=0.3), ["a", "b"]),
    "slerp-base": (method("SlerpMergeAlgorithm", t=0.3), ["_pretrained_", "a"]),
    "slerp-base-last": (method("SlerpMergeAlgorithm", t=0.3), ["a", "_pretrained_"]),
    "stock": (
        method("model_stock.ModelStock", ignore_keys=["model.logit_scale"]),
        ["_pretrained_", "a", "b"],
    ),
}
#: Methods of TIES's trimming: FusionBench keeps one more entry of each task vector.
TRIMMED = {"ties-sum", "ties-mean", "ties-max", "dare-ties", "doge"}


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models and configurations, with FusionBench's results."""
    folder = tmp_path_factory.mktemp("fusionbench")
    torch.manual_seed(0)
    base = CLIPVisionModel(CLIPVisionConfig(**TOWER))
    base.save_pretrained(folder / "base")
    for name in NAMES:
        expert = CLIPVisionModel(CLIPVisionConfig(**TOWER))
        with torch.no_grad():
            for parameter, start in zip(expert.parameters(), base.parameters(), strict=True):
                parameter.copy_(start + 0.02 * torch.randn_like(start))
        expert.save_pretrained(folder / name)
    for case, (options, _) in CASES.items():
        write(folder, case, options, ["_pretrained_", *NAMES])
    for case, (options, names) in PAIRS.items():
        write(folder, case, options, names)
    script = HERE / "fusionbench_recipes.py"
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    call = [PYTHON, script, folder]
    subprocess.run(call, check=True, env=environment, stdout=subprocess.DEVNULL)
    return folder


def write(folder: Path, case: str, options: dict[str, Any], names: list[str]) -> None:
    models = {name: "base" if name == "_pretrained_" else name for name in names}
    if "_pretrained_" not in names:  # the pool of CLIP's towers needs one here, and theirs does not
        models = {
            name: {
                "_target_": "transformers.CLIPVisionModel.from_pretrained",
                "pretrained_model_name_or_path": path,
            }
            for name, path in models.items()
        }
    kind = "CLIPVisionModelPool" if "_pretrained_" in names else "BaseModelPool"
    pool = {"_target_": f"fusion_bench.modelpool.{kind}", "models": models}
    content = {"method": options, "modelpool": pool, "seed": 0}
    (folder / f"{case}.yaml").write_text(yaml.safe_dump(content, sort_keys=False))


@pytest.mark.parametrize("case", [*CASES, *PAIRS])
def test_a_configuration_gives_fusionbenchs_values(
    directory: Path, case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(directory)
    theirs = Path("theirs") / case
    assert not (theirs / "failure.txt").exists(), (theirs / "failure.txt").read_text()
    run_fusion(load_recipe(f"{case}.yaml"), output=Path("ours") / case)
    tolerance = CASES[case][1] if case in CASES else 1e-6
    if case == "emr":
        for task in NAMES:
            ours = load_for_task(Path("ours") / case, task).state_dict()
            compare(ours, theirs / task, tolerance, 0)
        return
    ours = load_file(Path("ours") / case / "model.safetensors")
    compare(ours, theirs, tolerance, len(NAMES) if case in TRIMMED else 0)


def compare(ours: dict[str, Any], theirs: Path, tolerance: float, exceptions: int) -> None:
    """Compare entries, of which some may be kept only by FusionBench."""
    expected = load_file(theirs / "model.safetensors")
    merged = {name.removeprefix("vision_model."): tensor for name, tensor in ours.items()}
    assert merged.keys() == {name.removeprefix("vision_model.") for name in expected}
    differences = torch.cat(
        [
            (merged[name.removeprefix("vision_model.")].double() - tensor.double()).abs().flatten()
            for name, tensor in expected.items()
        ]
    )
    assert int((differences > tolerance).sum()) <= exceptions, differences.sort().values[-5:]


@pytest.fixture(scope="module")
def composed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What Hydra composes of every file of the release."""
    output = tmp_path_factory.mktemp("composed") / "composed.json"
    subprocess.run([PYTHON, HERE / "fusionbench_compose.py", output], check=True)
    content: dict[str, Any] = json.loads(output.read_text())
    return content


def test_files_are_composed_as_by_hydra(composed: dict[str, Any]) -> None:
    assert len(composed["configurations"]) > 300
    for name, expected in composed["configurations"].items():
        group, _, chosen = name.partition("=")
        findings = ImportFindings()
        document = {"defaults": ["fabric_model_fusion", {f"override {group}": chosen}]}
        content = Composition(Tree(Path(composed["tree"])), findings).compose(document)
        assert bool(findings.problems) == isinstance(expected, str), (name, expected)
        if findings.problems:
            continue
        sections = {key: content.get(key) for key in expected["composed"]}
        assert json.dumps(sections) == json.dumps(expected["composed"]), name
        resolved = show(resolve(content)[group])
        if isinstance(expected["resolved"], str):  # OmegaConf refuses the whole, we one value
            assert "interpolation" in resolved, name
        else:
            assert resolved == json.dumps(expected["resolved"]), name


def show(content: object) -> str:
    """Return content as JSON, with missing values as OmegaConf shows them."""

    def write_unresolved(value: object) -> str:
        assert isinstance(value, Unresolved)
        return value.text if value.text == "???" else f"interpolation {value.text}"

    return json.dumps(content, default=write_unresolved)


def test_known_methods_have_the_releases_values(composed: dict[str, Any]) -> None:
    """The table names only keys that a translation reads, with the file's values."""
    checked = 0
    for name, expected in composed["configurations"].items():
        group, _, chosen = name.partition("=")
        known = find_method(chosen) if group == "method" else None
        if known is not None:
            content = expected["composed"]["method"]
            target = known.get("_target_", "").rpartition(".")[2]
            assert not target or target in METHODS
            for key, value in known.items():
                given = content[key].rpartition(".")[2] if key == "_target_" else content[key]
                assert given == (target if key == "_target_" else value), (name, key)
            checked += 1
    assert checked > 25
