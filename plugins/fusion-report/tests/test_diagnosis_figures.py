"""Figures of a diagnosis, against dense tensors and plain loops."""

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
    """Return a base, or an expert of it: a quarter of its entries is the base's."""
    generator = torch.Generator().manual_seed(seed)
    found = {
        name: torch.randn(shape, generator=generator, dtype=torch.float64)
        for name, shape in SHAPES.items()
    }
    if base is not None:
        found = {
            name: base[name] + 0.1 * own * torch.rand(own.shape, generator=generator).gt(0.25)
            for name, own in found.items()
        }
    return {**found, "steps": torch.tensor(7)}


def models() -> tuple[Weights, dict[str, Weights]]:
    base = weights(0)
    experts = {name: weights(seed, base) for seed, name in enumerate("abc", start=1)}
    experts["c"]["layers.0.up"] = base["layers.0.up"] + torch.outer(torch.ones(6), torch.rand(5))
    experts["c"]["layers.1.up"] = base["layers.1.up"]
    return base, experts


def flat(tensors: Weights) -> Tensor:
    return torch.cat([each.flatten() for name, each in tensors.items() if name != "steps"])


def test_figures_of_weights_are_those_of_dense_ones() -> None:
    base, experts = models()
    found = diagnose({"model_pool": {"base": base, "models": experts}}, WEIGHTS_ALONE).figures
    vectors = {name: flat(each) - flat(base) for name, each in experts.items()}
    for name, vector in vectors.items():
        own = found.experts[name]
        assert own.norm == pytest.approx(float(vector.norm()))
        assert own.relative_norm == pytest.approx(float(vector.norm() / flat(base).norm()))
        assert own.changed == pytest.approx(float((vector != 0).double().mean()))
    assert found.numel == len(vectors["a"]) == 65
    for (one, other), cosine in found.pairs.items():
        wanted = torch.cosine_similarity(vectors[one], vectors[other], dim=0)
        assert cosine == pytest.approx(float(wanted))
    norms = [float(each.norm()) for each in vectors.values()]
    total = float(torch.stack([*vectors.values()]).sum(0).norm())
    assert found.length_of_sum == pytest.approx(total / (sum(norms) / 3))
    assert found.norm_ratio == pytest.approx(max(norms) / sorted(norms)[1])
    assert found.matrices == (2, 2)


def test_signs_are_compared_entry_by_entry() -> None:
    base, experts = models()
    found = diagnose({"model_pool": {"base": base, "models": experts}}, WEIGHTS_ALONE).figures
    kept = []
    for expert in experts.values():
        vector = flat(expert) - flat(base)
        smallest = vector.abs().sort(descending=True).values[int(0.2 * len(vector)) - 1]
        kept.append([v if abs(v) >= smallest else 0.0 for v in vector.tolist()])
    shared = torn = 0
    mass = against = 0.0
    for column in zip(*kept, strict=True):
        up, down = sum(v for v in column if v > 0), -sum(v for v in column if v < 0)
        shared += sum(v != 0 for v in column) > 1
        torn += up > 0 and down > 0
        mass, against = mass + up + down, against + min(up, down)
    assert torn > 0
    assert found.conflict == pytest.approx(torn / shared)
    assert found.opposed == pytest.approx(against / mass)


def test_effective_ranks_are_exponentials_of_entropies() -> None:
    base, experts = models()
    found = diagnose({"model_pool": {"base": base, "models": experts}}, WEIGHTS_ALONE).figures
    wanted = []
    for name in ("layers.0.up", "layers.1.up"):
        values = torch.linalg.svdvals(experts["a"][name] - base[name])
        shares = (values / values.sum()).tolist()
        rank = math.exp(-sum(share * math.log(share) for share in shares))
        wanted.append((rank, rank / len(shares)))
    assert found.experts["a"].rank == pytest.approx(sum(rank for rank, _ in wanted) / 2)
    assert found.experts["a"].rank_share == pytest.approx(sum(share for _, share in wanted) / 2)
    # c changed one matrix, by an outer product, and is not counted where it changed nothing
    assert found.experts["c"].rank == pytest.approx(1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_merged_adapters_are_told_from_full_fine_tunes(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    base = {"up": 0.05 * torch.randn(64, 48, generator=generator).to(dtype)}
    factors = [torch.randn(2, size, generator=generator) for size in (64, 48)]
    adapted = (base["up"].float() + 0.02 * factors[0].T @ factors[1]).to(dtype)
    tuned = base["up"] + 0.01 * torch.randn(64, 48, generator=generator).to(dtype)
    for expert, is_low_rank in ((adapted, True), (tuned, False)):
        models = {"base": base, "models": {"a": {"up": expert}, "b": {"up": expert}}}
        found = diagnose({"model_pool": models}, WEIGHTS_ALONE).figures
        assert found.kind.is_low_rank == is_low_rank


def test_labels_tell_whether_experts_fit_their_tasks() -> None:
    class Rotated(TinyTasks):
        """Every expert scores below the base, by labels alone."""

        def measure(self, subject: Subject, tasks: Any = None, **_: Any) -> dict[str, Any]:
            own, base = (flat(each.state_dict()) for each in (subject.weights, pool.base))
            is_base = torch.equal(own, base)
            return {name: {"accuracy": 0.5 if is_base else 0.25} for name in tasks or self.names}

    pool = tiny_pool("mlp")
    recipe = {"model_pool": pool, "task_pool": Rotated()}
    found = diagnose(recipe, Questions(samples=8))
    (warning,) = found.warnings
    assert "below the base on a (25.0, base 50.0), b (25.0, base 50.0), c" in warning
    assert found.advice == []
    assert found.as_json()["experts_below_base"].keys() == {"a", "b", "c"}
    without = diagnose(recipe, Questions(samples=8, labels=False))
    assert without.warnings == []
    assert without.advice


def test_layers_have_figures_of_their_own() -> None:
    base, experts = models()
    found = diagnose({"model_pool": {"base": base, "models": experts}}, WEIGHTS_ALONE).figures
    name = "layers.0.up"
    vectors = [expert[name] - base[name] for expert in experts.values()]
    size = math.sqrt(sum(float(vector.norm()) ** 2 for vector in vectors) / 3)
    assert found.parts["0"].relative_norm == pytest.approx(size / float(base[name].norm()))
    cosines = [
        float(torch.cosine_similarity(one.flatten(), other.flatten(), dim=0))
        for one, other in itertools.combinations(vectors, 2)
    ]
    assert found.parts["0"].cosine == pytest.approx(sum(cosines) / 3)


def test_large_models_are_looked_at_in_part(monkeypatch: pytest.MonkeyPatch) -> None:
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
    found = diagnose({"model_pool": {"models": experts}}, WEIGHTS_ALONE)
    mean = torch.stack([flat(expert) for expert in experts.values()]).mean(0)
    far = float((flat(experts["b"]) - mean).norm())
    assert not found.figures.has_base
    assert found.figures.experts["b"].norm == pytest.approx(far)
    assert found.advice == []


def asked(**changes: Any) -> Any:
    recipe = {"model_pool": tiny_pool("mlp"), "task_pool": TinyTasks()}
    return diagnose(recipe, Questions(samples=32, **changes)).figures


def test_models_are_asked_what_experts_are() -> None:
    pool, tasks = tiny_pool("mlp"), TinyTasks()
    found = asked(trials=True)
    assert [*found.answers] == ["experts", "base", AVERAGE, *tried()]
    assert found.agreement("experts") == 1
    batch = tasks["a"].batch(0, size=32, split="unlabeled", seed=0)  # type: ignore[arg-type]
    assert pool.base is not None
    with torch.inference_mode():
        base, expert = (
            tasks["a"].logits(pool.build(each), batch) for each in (pool.base, pool.experts["a"])
        )
    entropy = torch.distributions.Categorical(logits=base).entropy().mean()
    agrees = (base.argmax(-1) == expert.argmax(-1)).double().mean()
    assert found.answers["base"]["a"].entropy == pytest.approx(float(entropy), rel=1e-5)
    assert found.answers["base"]["a"].agreement == float(agrees)


def test_models_on_lines_are_asked() -> None:
    found = asked(connectivity=True)
    lines = {path.ends: path for path in found.paths}
    assert len(lines) == 3 + 3
    own = lines["base", "b"]
    assert own.tasks == ["b"]
    assert own.agreement[0] == found.answers["base"]["b"].agreement
    assert own.agreement[-1] == 1
    assert lines["a", "c"].tasks == ["a", "c"]
    # what one of them says of its own task is right, whichever end is looked from
    assert min(lines["a", "c"].agreement[0], lines["a", "c"].agreement[-1]) >= 0.5


def test_too_few_examples_are_refused_with_a_flag_to_ask_for_fewer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tasks = TinyTasks(["a"])
    own = tasks["a"].batch

    def batch(step: int, *, size: int, **others: Any) -> Any:
        if size > 8:
            raise RecipeError(f"a batch of {size}: there are 8", hint="Use a smaller batch.")
        return own(step, size=size, **others)

    monkeypatch.setattr(tasks["a"], "batch", batch)
    recipe = {"model_pool": tiny_pool("mlp"), "task_pool": tasks}
    with pytest.raises(RecipeError, match="there are 8") as caught:
        diagnose(recipe, Questions(samples=9))
    unlabeled = Questions(samples=8, labels=False)
    assert "--samples" in (caught.value.hint or "")
    assert diagnose(recipe, unlabeled).figures.answers.keys() >= {"base", AVERAGE}


def test_a_barrier_is_what_a_line_sinks_below_the_straight_one() -> None:
    assert Path(("a", "b"), ["a"], [0.5, 0.3, 0.8, 0.9, 0.9]).barrier == pytest.approx(0.3)
    assert Path(("a", "b"), ["a"], [0.4, 0.6, 0.7]).barrier == 0


def tried(*blocked: str) -> list[str]:
    """Return what a trial compares beside the average, of what is installed here."""
    known = load_plugins(frozenset(blocked)).components(AlgorithmSpec)
    here = {each.spec.name for each in known}
    return [name for name in TRIED[1:] if name.partition(" ")[0] in here]


def test_a_plugin_that_is_not_to_be_used_is_not_tried() -> None:
    recipe = {"model_pool": tiny_pool("mlp"), "task_pool": TinyTasks()}
    options = RunOptions(block=frozenset({"fusion-ties", "fusion-spectral"}))
    found = diagnose(recipe, Questions(samples=8, trials=True), options).figures
    assert [*found.answers][3:] == tried("fusion-ties", "fusion-spectral")


def test_packed_matrices_are_diagnosed_like_single_ones() -> None:
    generator = torch.Generator().manual_seed(0)
    packed = {
        name: {"experts.up_proj": torch.randn(3, 6, 5, generator=generator)} for name in "xab"
    }
    singly = {
        name: {f"experts.{n}.up_proj.weight": each for n, each in enumerate(own["experts.up_proj"])}
        for name, own in packed.items()
    }
    found, expected = (
        diagnose(
            {"model_pool": {"base": own["x"], "models": {name: own[name] for name in "ab"}}},
            WEIGHTS_ALONE,
        ).figures
        for own in (packed, singly)
    )
    assert found.matrices == expected.matrices == (3, 3)
    assert found.experts == expected.experts
    assert found.pairs == expected.pairs
