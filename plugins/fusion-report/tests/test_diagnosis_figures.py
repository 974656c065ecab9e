"""Compare the measurements of a diagnosis with dense tensors and plain loops."""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING, Any

import pytest
import torch

from fusion_core import AlgorithmSpec, RunOptions
from fusion_core.commands import Subject, load_plugins
from fusion_core.errors import RecipeError
from fusion_report import Questions, diagnose
from fusion_report.diagnosis import ranks
from fusion_report.diagnosis.figures import Path
from fusion_report.diagnosis.merges import AVERAGE, TRIED
from fusion_testing import TinyTasks, tiny_pool

if TYPE_CHECKING:
    from torch import Tensor

    Weights = dict[str, Tensor]

WEIGHTS_ALONE = Questions(tasks=False)
SHAPES = {"layers.0.up": (6, 5), "layers.1.up": (4, 7), "layers.1.bias": (7,), "steps": ()}


def weights(seed: int, base: Weights | None = None) -> Weights:
    """Return a base, or an expert that shares a quarter of its entries."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {
        name: torch.randn(shape, generator=generator, dtype=torch.float64)
        for name, shape in SHAPES.items()
    }
    if base is not None:
        tensors = {
            name: base[name] + 0.1 * noise * torch.rand(noise.shape, generator=generator).gt(0.25)
            for name, noise in tensors.items()
        }
    return {**tensors, "steps": torch.tensor(7)}


def models() -> tuple[Weights, dict[str, Weights]]:
    base = weights(0)
    experts = {name: weights(seed, base) for seed, name in enumerate("abc", start=1)}
    experts["c"]["layers.0.up"] = base["layers.0.up"] + torch.outer(torch.ones(6), torch.rand(5))
    experts["c"]["layers.1.up"] = base["layers.1.up"]
    return base, experts


def flat(tensors: Weights) -> Tensor:
    return torch.cat([values.flatten() for name, values in tensors.items() if name != "steps"])


def test_norms_and_cosines_equal_dense_computations() -> None:
    base, experts = models()
    figures = diagnose({"model_pool": {"base": base, "models": experts}}, WEIGHTS_ALONE).figures
    vectors = {name: flat(expert) - flat(base) for name, expert in experts.items()}
    for name, vector in vectors.items():
        expert = figures.experts[name]
        assert expert.norm == pytest.approx(float(vector.norm()))
        assert expert.relative_norm == pytest.approx(float(vector.norm() / flat(base).norm()))
        assert expert.changed == pytest.approx(float((vector != 0).double().mean()))
    assert figures.numel == len(vectors["a"]) == 65
    for (one, other), cosine in figures.pairs.items():
        expected = torch.cosine_similarity(vectors[one], vectors[other], dim=0)
        assert cosine == pytest.approx(float(expected))
    norms = [float(vector.norm()) for vector in vectors.values()]
    total = float(torch.stack([*vectors.values()]).sum(0).norm())
    assert figures.length_of_sum == pytest.approx(total / (sum(norms) / 3))
    assert figures.norm_ratio == pytest.approx(max(norms) / sorted(norms)[1])
    assert figures.matrices == (2, 2)


def test_sign_conflicts_equal_a_loop_over_entries() -> None:
    base, experts = models()
    figures = diagnose({"model_pool": {"base": base, "models": experts}}, WEIGHTS_ALONE).figures
    trimmed = []
    for expert in experts.values():
        vector = flat(expert) - flat(base)
        smallest = vector.abs().sort(descending=True).values[int(0.2 * len(vector)) - 1]
        trimmed.append([v if abs(v) >= smallest else 0.0 for v in vector.tolist()])
    shared = conflicting = 0
    mass = against = 0.0
    for column in zip(*trimmed, strict=True):
        up, down = sum(v for v in column if v > 0), -sum(v for v in column if v < 0)
        shared += sum(v != 0 for v in column) > 1
        conflicting += up > 0 and down > 0
        mass, against = mass + up + down, against + min(up, down)
    assert conflicting > 0
    assert figures.conflict == pytest.approx(conflicting / shared)
    assert figures.opposed == pytest.approx(against / mass)


def test_effective_ranks_are_exponentials_of_entropies() -> None:
    base, experts = models()
    figures = diagnose({"model_pool": {"base": base, "models": experts}}, WEIGHTS_ALONE).figures
    expected = []
    for name in ("layers.0.up", "layers.1.up"):
        values = torch.linalg.svdvals(experts["a"][name] - base[name])
        shares = (values / values.sum()).tolist()
        rank = math.exp(-sum(share * math.log(share) for share in shares))
        expected.append((rank, rank / len(shares)))
    assert figures.experts["a"].rank == pytest.approx(sum(rank for rank, _ in expected) / 2)
    assert figures.experts["a"].rank_share == pytest.approx(sum(share for _, share in expected) / 2)
    # c changed one matrix by an outer product; matrices that it did not change do not count
    assert figures.experts["c"].rank == pytest.approx(1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_merged_adapters_are_recognised_by_their_rank(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    base = {"up": 0.05 * torch.randn(64, 48, generator=generator).to(dtype)}
    factors = [torch.randn(2, size, generator=generator) for size in (64, 48)]
    adapted = (base["up"].float() + 0.02 * factors[0].T @ factors[1]).to(dtype)
    tuned = base["up"] + 0.01 * torch.randn(64, 48, generator=generator).to(dtype)
    for expert, is_low_rank in ((adapted, True), (tuned, False)):
        models = {"base": base, "models": {"a": {"up": expert}, "b": {"up": expert}}}
        figures = diagnose({"model_pool": models}, WEIGHTS_ALONE).figures
        assert figures.kind.is_low_rank == is_low_rank


def test_labels_reveal_experts_below_the_base() -> None:
    class Rotated(TinyTasks):
        """Tasks on which every expert scores below the base."""

        def measure(self, subject: Subject, tasks: Any = None, **_: Any) -> dict[str, Any]:
            weights, base = (flat(s.state_dict()) for s in (subject.weights, pool.base))
            is_base = torch.equal(weights, base)
            return {name: {"accuracy": 0.5 if is_base else 0.25} for name in tasks or self.names}

    pool = tiny_pool("mlp")
    recipe = {"model_pool": pool, "task_pool": Rotated()}
    diagnosis = diagnose(recipe, Questions(samples=8))
    (warning,) = diagnosis.warnings
    assert "below the base on a (25.0, base 50.0), b (25.0, base 50.0), c" in warning
    assert diagnosis.advice == []
    assert diagnosis.as_json()["experts_below_base"].keys() == {"a", "b", "c"}
    without = diagnose(recipe, Questions(samples=8, labels=False))
    assert without.warnings == []
    assert without.advice


def test_layers_are_measured_separately() -> None:
    base, experts = models()
    figures = diagnose({"model_pool": {"base": base, "models": experts}}, WEIGHTS_ALONE).figures
    name = "layers.0.up"
    vectors = [expert[name] - base[name] for expert in experts.values()]
    size = math.sqrt(sum(float(vector.norm()) ** 2 for vector in vectors) / 3)
    assert figures.parts["0"].relative_norm == pytest.approx(size / float(base[name].norm()))
    cosines = [
        float(torch.cosine_similarity(one.flatten(), other.flatten(), dim=0))
        for one, other in itertools.combinations(vectors, 2)
    ]
    assert figures.parts["0"].cosine == pytest.approx(sum(cosines) / 3)


def test_large_models_are_sampled(monkeypatch: pytest.MonkeyPatch) -> None:
    base, experts = models()
    recipe = {"model_pool": {"base": base, "models": experts}}
    monkeypatch.setattr(ranks, "COLUMNS", 6)
    wide = diagnose(recipe, WEIGHTS_ALONE).figures
    assert wide.is_sampled
    delta = (experts["a"]["layers.1.up"] - base["layers.1.up"])[:, [0, 1, 2, 4, 5, 6]]
    whole = ranks.effective_rank(
        torch.linalg.svdvals(experts["a"]["layers.0.up"] - base["layers.0.up"])
    )
    part = ranks.effective_rank(torch.linalg.svdvals(delta))
    assert wide.experts["a"].rank == pytest.approx(float(whole + part) / 2)
    monkeypatch.setattr(ranks, "_BUDGET", 1)
    assert diagnose(recipe, WEIGHTS_ALONE).figures.matrices == (1, 2)


def test_without_a_base_experts_are_compared_with_their_mean() -> None:
    _, experts = models()
    diagnosis = diagnose({"model_pool": {"models": experts}}, WEIGHTS_ALONE)
    mean = torch.stack([flat(expert) for expert in experts.values()]).mean(0)
    far = float((flat(experts["b"]) - mean).norm())
    assert not diagnosis.figures.has_base
    assert diagnosis.figures.experts["b"].norm == pytest.approx(far)
    assert diagnosis.advice == []


def measure_figures(**changes: Any) -> Any:
    recipe = {"model_pool": tiny_pool("mlp"), "task_pool": TinyTasks()}
    return diagnose(recipe, Questions(samples=32, **changes)).figures


def test_predictions_are_compared_with_the_experts() -> None:
    pool, tasks = tiny_pool("mlp"), TinyTasks()
    figures = measure_figures(trials=True)
    assert [*figures.answers] == ["experts", "base", AVERAGE, *list_trial_merges()]
    assert figures.agreement("experts") == 1
    batch = tasks["a"].batch(0, size=32, split="unlabeled", seed=0)  # type: ignore[arg-type]
    assert pool.base is not None
    with torch.inference_mode():
        base, expert = (
            tasks["a"].logits(pool.build(source), batch)
            for source in (pool.base, pool.experts["a"])
        )
    entropy = torch.distributions.Categorical(logits=base).entropy().mean()
    agrees = (base.argmax(-1) == expert.argmax(-1)).double().mean()
    assert figures.answers["base"]["a"].entropy == pytest.approx(float(entropy), rel=1e-5)
    assert figures.answers["base"]["a"].agreement == float(agrees)


def test_models_on_lines_are_measured() -> None:
    figures = measure_figures(connectivity=True)
    lines = {path.ends: path for path in figures.paths}
    assert len(lines) == 3 + 3
    line = lines["base", "b"]
    assert line.tasks == ["b"]
    assert line.agreement[0] == figures.answers["base"]["b"].agreement
    assert line.agreement[-1] == 1
    assert lines["a", "c"].tasks == ["a", "c"]
    # each end agrees fully with the expert of its own task
    assert min(lines["a", "c"].agreement[0], lines["a", "c"].agreement[-1]) >= 0.5


def test_too_few_examples_are_refused_with_a_hint(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tasks = TinyTasks(["a"])
    original = tasks["a"].batch

    def batch(step: int, *, size: int, **others: Any) -> Any:
        if size > 8:
            raise RecipeError(f"a batch of {size}: there are 8", hint="Use a smaller batch.")
        return original(step, size=size, **others)

    monkeypatch.setattr(tasks["a"], "batch", batch)
    recipe = {"model_pool": tiny_pool("mlp"), "task_pool": tasks}
    with pytest.raises(RecipeError, match="there are 8") as caught:
        diagnose(recipe, Questions(samples=9))
    unlabeled = Questions(samples=8, labels=False)
    assert "--samples" in (caught.value.hint or "")
    assert diagnose(recipe, unlabeled).figures.answers.keys() >= {"base", AVERAGE}


def test_a_barrier_is_the_largest_drop_below_the_straight_line() -> None:
    assert Path(("a", "b"), ["a"], [0.5, 0.3, 0.8, 0.9, 0.9]).barrier == pytest.approx(0.3)
    assert Path(("a", "b"), ["a"], [0.4, 0.6, 0.7]).barrier == 0


def list_trial_merges(*blocked: str) -> list[str]:
    """Return the merges of a trial besides the average, as far as they are installed."""
    known = load_plugins(frozenset(blocked)).components(AlgorithmSpec)
    here = {component.spec.name for component in known}
    return [name for name in TRIED[1:] if name.partition(" ")[0] in here]


def test_blocked_plugins_are_not_tried() -> None:
    recipe = {"model_pool": tiny_pool("mlp"), "task_pool": TinyTasks()}
    options = RunOptions(block=frozenset({"fusion-ties", "fusion-spectral"}))
    figures = diagnose(recipe, Questions(samples=8, trials=True), options).figures
    assert [*figures.answers][3:] == list_trial_merges("fusion-ties", "fusion-spectral")


def test_packed_matrices_are_measured_like_single_ones() -> None:
    generator = torch.Generator().manual_seed(0)
    packed = {
        name: {"experts.up_proj": torch.randn(3, 6, 5, generator=generator)} for name in "xab"
    }
    single = {
        name: {f"experts.{n}.up_proj.weight": m for n, m in enumerate(model["experts.up_proj"])}
        for name, model in packed.items()
    }
    figures, expected = (
        diagnose(
            {"model_pool": {"base": models["x"], "models": {n: models[n] for n in "ab"}}},
            WEIGHTS_ALONE,
        ).figures
        for models in (packed, single)
    )
    assert figures.matrices == expected.matrices == (3, 3)
    assert figures.experts == expected.experts
    assert figures.pairs == expected.pairs
