"""Cautions about spectra, routers and prompts: each where it applies, and where it does not."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import torch

from fusion_report import Questions, diagnose
from fusion_report.diagnosis.cautions import find_cautions
from fusion_report.diagnosis.figures import Answers, Expert, Figures
from fusion_report.diagnosis.printing import print_diagnosis

if TYPE_CHECKING:
    from torch import Tensor

    from fusion_report import Diagnosis

    Weights = dict[str, Tensor]

SPARSE, ROUTERS, TORN, PROMPTS = (
    "sparse changes in many directions",
    "routers changed differently",
    "experts disturb each other",
    "no prompts needed",
)


def look_at(base: Weights, experts: dict[str, Weights], **options: Any) -> Diagnosis:
    pool = {"base": base, "models": experts, **options}
    return diagnose({"model_pool": pool}, Questions(tasks=False))


def names_of(figures: Figures) -> set[str]:
    return {caution.name for caution in find_cautions(figures)}


# --- spectra ------------------------------------------------------------------------------------


def noise(seed: int, size: float = 1.0) -> Tensor:
    return size * torch.randn(48, 40, generator=torch.Generator().manual_seed(seed))


def sparse(seed: int, share: float) -> Tensor:
    """Return a change of some entries, as reinforcement learning makes."""
    return noise(seed, 0.01) * (noise(seed + 100).abs() < 0.125 * 10 * share)


def low_rank(seed: int) -> Tensor:
    return noise(seed, 0.01)[:, :2] @ noise(seed + 50)[:2]


@pytest.mark.parametrize(
    ("changes", "applies"),
    [
        ([sparse(1, 0.1), sparse(2, 0.1)], True),
        ([noise(1, 0.01), sparse(2, 0.1)], True),  # one expert of reinforcement learning
        ([noise(1, 0.01), noise(2, 0.01)], False),
        ([low_rank(1), low_rank(2)], False),
    ],
    ids=["sparse", "one is sparse", "dense", "low rank"],
)
def test_sparse_changes_of_a_high_rank_are_named(changes: list[Tensor], *, applies: bool) -> None:
    base = {"layers.0.up": noise(0), "layers.1.up": noise(7)}
    experts = {
        name: {tensor: values + change for tensor, values in base.items()}
        for name, change in zip("ab", changes, strict=True)
    }
    diagnosis = look_at(base, experts)
    assert (SPARSE in names_of(diagnosis.figures)) == applies
    for name, change in zip("ab", changes, strict=True):
        density = diagnosis.figures.experts[name].density
        assert density == pytest.approx(float(change.ne(0).double().mean()), abs=1e-3)


def test_changes_lost_in_the_rounding_of_files_are_sparse_too() -> None:
    base = {"up": noise(0).bfloat16()}
    tiny = {"up": (base["up"].float() + noise(1, 2e-4)).bfloat16()}
    usual = {"up": (base["up"].float() + noise(1, 0.1)).bfloat16()}
    assert SPARSE in names_of(look_at(base, {"a": tiny, "b": usual}).figures)
    assert SPARSE not in names_of(look_at(base, {"a": usual, "b": usual}).figures)


def test_frozen_layers_do_not_make_a_change_sparse() -> None:
    base = {f"layers.{number}.up": noise(number) for number in range(10)}
    experts = {
        name: {**base, "layers.9.up": base["layers.9.up"] + noise(seed, 0.01)}
        for seed, name in enumerate("ab", start=20)
    }
    figures = look_at(base, experts).figures
    assert figures.experts["a"].changed == pytest.approx(0.1)
    assert figures.experts["a"].density == 1
    assert SPARSE not in names_of(figures)


# --- mixtures -----------------------------------------------------------------------------------


def mixture(seed: int, router: int | None, base: Weights | None = None) -> Weights:
    """Return a mixture, or an expert whose router changed by the seed `router`."""
    draw = torch.Generator().manual_seed(seed)
    tensors = {
        f"layers.0.mlp.experts.{n}.up_proj.weight": torch.randn(6, 5, generator=draw)
        for n in range(4)
    }
    tensors["layers.0.mlp.gate.weight"] = torch.randn(4, 5, generator=draw)
    if base is None:
        return tensors
    change = {name: 0.1 * values for name, values in tensors.items()}
    change["layers.0.mlp.gate.weight"] = torch.zeros(4, 5)
    if router is not None:
        change["layers.0.mlp.gate.weight"] += 0.1 * noise(router)[:4, :5]
    return {name: base[name] + values for name, values in change.items()}


@pytest.mark.parametrize(
    ("routers", "policy", "applies"),
    [
        ((1, 2), "merge", True),
        ((1, 1), "merge", False),
        ((None, None), "merge", False),
        ((1, 2), "base", False),
        ((1, 2), "average", False),
    ],
)
def test_routers_that_differ_are_named_if_a_method_merges_them(
    routers: tuple[int | None, int | None], policy: str, *, applies: bool
) -> None:
    base = mixture(0, None)
    experts = {
        name: mixture(seed, router, base)
        for seed, (name, router) in enumerate(zip("ab", routers, strict=True), start=1)
    }
    figures = look_at(base, experts, router=policy).figures
    assert (ROUTERS in names_of(figures)) == applies
    assert figures.mixture is not None
    assert figures.mixture.share == pytest.approx(120 / 140)
    if routers == (1, 2):
        gate = "layers.0.mlp.gate.weight"
        one, other = ((experts[name][gate] - base[gate]).flatten() for name in "ab")
        expected = float(torch.cosine_similarity(one, other, dim=0))
        assert figures.mixture.router_cosine == pytest.approx(expected, abs=1e-6)


def test_a_mixture_is_described_and_a_dense_model_is_not(
    capsys: pytest.CaptureFixture[str],
) -> None:
    base = mixture(0, None)
    diagnosis = look_at(base, {"a": mixture(1, 1, base), "b": mixture(2, 2, base)})
    print_diagnosis(diagnosis)
    printed = capsys.readouterr().out
    assert "experts of layers hold 86 % of the entries; cosines of routers: mean" in printed
    assert f"{ROUTERS}: " in printed
    stored = json.loads(json.dumps(diagnosis.as_json()))
    assert [caution["name"] for caution in stored["cautions"]] == [ROUTERS]
    dense = {"up": noise(0)}
    assert look_at(dense, {"a": {"up": noise(1)}, "b": {"up": noise(2)}}).figures.mixture is None


# --- agreement ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("agreement", "names", "applies"),
    [(0.4, "ab", True), (0.6, "ab", False), (0.4, "a", False), (None, "ab", False)],
)
def test_experts_whose_average_rarely_agrees_with_them_are_told_of_scales(
    agreement: float | None, names: str, *, applies: bool
) -> None:
    experts = {name: Expert(name, 1.0, 0.1, 1.0, 8.0, 0.5) for name in names}
    answers = {} if agreement is None else {"simple-average": {"a": Answers(1.0, agreement)}}
    cosines = torch.eye(len(names)).tolist()
    figures = Figures(experts, True, 9, cosines, 1.4, 0.5, 0.2, {}, answers=answers)
    assert names_of(figures) == ({TORN} if applies else set())


# --- language models without tasks --------------------------------------------------------------


@pytest.mark.parametrize(
    ("architecture", "has_base", "has_answers", "applies"),
    [
        ("causal language models", True, False, True),
        ("causal language models", True, True, False),
        ("causal language models", False, False, False),
        ("CLIP vision towers", True, False, False),
        ("", True, False, False),
    ],
)
def test_language_models_without_tasks_are_told_of_prompts_that_experts_write(
    architecture: str, *, has_base: bool, has_answers: bool, applies: bool
) -> None:
    experts = {name: Expert(name, 1.0, 0.1, 1.0, 8.0, 0.5) for name in "ab"}
    answers = {"base": {"a": Answers(1.0, 0.5)}} if has_answers else {}
    figures = Figures(
        *(experts, has_base, 9, [[1, 0], [0, 1]], 1.4, 0.5, 0.2, {}),
        answers=answers,
        architecture=architecture,
    )
    assert names_of(figures) == ({PROMPTS} if applies else set())
